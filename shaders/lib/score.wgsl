// Defines: Pair, pair_of; is_shown: element-wise visibility; Scored, score_pair: a pair's score and visibility;
//          is_nan_score, NAN_SUM, LARGEST_SUM: tests for NaN rows; visible_weight.
// Expects: params, Item, table, bias_at, mask_at; switches (flags if generic): is_modified, softcap_first,
//          softcap_last, has_bias, alibi_signed, alibi_symmetric, has_relative_bias, has_documents, has_mask.
// See: src/cpu/naive.rs has the formulas.

// A query row and a key. Signed, so that differences need no conversions.
struct Pair {
    batch: i32,
    head: i32,
    row: i32,
    key: i32,
    position: i32, // of the row among the keys
}

fn pair_of(item: Item, head: u32, row: u32, key: u32) -> Pair {
    return Pair(i32(item.batch), i32(head), i32(row), i32(key), i32(row) + item.offset);
}

struct Scored {
    score: f32,
    visible: bool,
}

// tanh without overflow for any argument and without cancellation near 0.
fn tanh_exact(x: f32) -> f32 {
    let t = exp(-2.0 * abs(x));
    let far = (1.0 - t) / (1.0 + t);
    let square = x * x;
    let near = x + x * square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488)));
    return select(select(far, -far, x < 0.0), near, abs(x) < 0.3);
}

// Returns softcap * tanh(x / softcap). Infinity is capped; NaN is passed on by its bits, not by arithmetic.
fn softcapped(x: f32) -> f32 {
    let capped = params.softcap * tanh_exact(x / params.softcap);
    return bitcast<f32>(select(bitcast<u32>(capped), bitcast<u32>(x), magnitude_bits(x) > INFINITE));
}

// Index of an element of a bias or mask that broadcasts to [batch, num_heads, seq_len_q, seq_len_kv].
fn broadcast_at(at: Pair, strides: vec4<u32>) -> u32 {
    return u32(at.batch) * strides.x + u32(at.head) * strides.y + u32(at.row) * strides.z + u32(at.key) * strides.w;
}

// True if segments and mask, the element-wise part of visibility, let the row see the key.
fn is_shown(at: Pair) -> bool {
    var shown = true;
    if (has_documents()) {
        let own = table(params.table_documents_q + u32(at.batch) * params.seq_len_q + u32(at.row));
        shown = own == table(params.table_documents_kv + u32(at.batch) * params.seq_len_kv + u32(at.key));
    }
    if (has_mask()) {
        shown = shown && mask_at(broadcast_at(at, params.mask_strides));
    }
    return shown;
}

// Score of a pair, from scaled = scale * dot(query, key). `inside`: the key is in the row's interval; else it is
// masked. A bias of -inf masks, as does a score that becomes -inf. Other non-finite scores make the row NaN.
fn score_pair(scaled: f32, at: Pair, inside: bool) -> Scored {
    if (!is_modified() || !inside) {
        return Scored(scaled, inside && !is_negative_infinity(scaled));
    }
    var score = scaled;
    var is_hidden = false;
    if (softcap_first()) {
        score = softcapped(score);
    }
    if (has_bias()) {
        let bias = bias_at(broadcast_at(at, params.bias_strides));
        is_hidden = is_negative_infinity(bias);
        score += bias;
    }
    if (alibi_signed() || alibi_symmetric() || has_relative_bias()) {
        let distance = at.key - at.position;
        if (alibi_signed()) {
            score += bitcast<f32>(table(params.table_alibi_slopes + u32(at.head))) * f32(distance);
        }
        if (alibi_symmetric()) {
            score -= bitcast<f32>(table(params.table_alibi_slopes + u32(at.head))) * f32(abs(distance));
        }
        if (has_relative_bias()) {
            let column = clamp(-distance, -params.max_distance, params.max_distance) + params.max_distance;
            score += bitcast<f32>(table(params.table_relative_bias + u32(at.head) * u32(2 * params.max_distance + 1) + u32(column)));
        }
    }
    is_hidden = is_hidden || is_negative_infinity(score);
    if (softcap_last()) {
        score = softcapped(score);
    }
    return Scored(score, !is_hidden && is_shown(at));
}

// Running sum that no row of finite scores reaches: a weight is at most 1. The bits of NaN and infinity are larger.
const NAN_SUM: f32 = 1e38;
const LARGEST_SUM: u32 = 0x70000000u;

// True if a visible score is NaN or +inf, which makes its row NaN.
fn is_nan_score(scored: Scored) -> bool {
    return scored.visible && magnitude_bits(scored.score) >= INFINITE;
}

// Weight that is never 0 by its bits for a visible pair: 0 marks a masked pair, whose value is skipped.
fn visible_weight(weight: f32, visible: bool) -> f32 {
    return bitcast<f32>(select(0u, max(bitcast<u32>(weight), 1u), visible));
}
