#!/usr/bin/env bash
# Fails on words that docs/architecture.md's vocabulary has replaced, and on comments that do not begin with a noun or verb.
#
#   scripts/language.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/lib.sh

# Identifiers that are gone, with what stands for them.
gone='
DType::ALL|DType::FLOATS
BLOCKS|QUANTISED
is_blocks|is_quantised
dropout::Drop|DropoutRule
Attend|AttentionFn
Control|Progress
Want|Returns
Dims::square|Dims::self_attention
documents|segments
documents_q|segment_ids_q
documents_kv|segment_ids_kv
Packed|Varlen
FLAG_PACKED|FLAG_VARLEN
RowEnds|Preprocess
RowEnd|RowStats
row_words|row_stats
FewShape|DecodeShape
IS_GENERAL|IS_GENERIC
Bound|Dispatches, BindingRange
own_a|own_qk
own_b|own_vo
stream_a|stream_qk
stream_b|stream_vo
GIVES_A|GIVES_QK
GIVES_B|GIVES_VO
Extra|additive mask
ExtraKind|MaskKind
Hiding|Masking
is_shown|is_visible
is_modified|has_pair_terms
'
found=0
folders="src shaders attn xtask simulator web tests examples benches"
while IFS='|' read -r old new; do
    [ -n "$old" ] || continue
    # In code: comments may use a word in its plain meaning.
    if grep -rnwE --exclude-dir=target --include='*.rs' --include='*.wgsl' "$old" $folders | grep -vE '^[^:]+:[0-9]+:\s*//' | grep -vwE "\"[^\"]*$old[^\"]*\""; then
        echo "$old: the word is $new" >&2
        found=1
    fi
done <<EOF
$gone
EOF
if grep -rnE '^\s*//[/!]? ?(What|How|Whether|Of|The same)\b' --exclude-dir=target --include='*.rs' --include='*.wgsl' $folders; then
    echo "a comment begins with a noun or a verb" >&2
    found=1
fi
exit $found
