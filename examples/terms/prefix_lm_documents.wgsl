// Prefix LM in documents: a row sees its own document, causally, but all of that document's prefix. Training of
// vision-language models on concatenated examples, whose images are prefixes. For self-attention.
// Tables: segment_ids array<i32> [batch * tokens], the document of each token, best ascending and declared sorted;
//         in_prefix array<u32> [batch * tokens], 1 for tokens of a prefix, else 0.

fn visible(at: Pair) -> bool {
    let first = at.batch * at.len_kv;
    let same = segment_ids[first + at.row] == segment_ids[first + at.key];
    return same && (at.key <= at.position || in_prefix[first + at.key] != 0u);
}
