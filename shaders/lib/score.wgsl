// Defines: Pair, pair_of; broadcast_at, add_bias; Scored, score_pair: a pair's score and visibility; Slopes; next_score,
//          next_slopes;
//          is_nan_score, NAN_SUM, LARGEST_SUM: tests for NaN rows; visible_weight, dropped_out, exact_weight.
// Expects: params, Item; tests_pairs: false if no term changes or masks pairs of the tile; EVALUATES_ALL: no branch around
//          terms that are cheap; score_of, is_visible, which src/wgsl/terms.rs makes of the terms.
// See: src/oracle/forward.rs has the formulas.

// A query row and a key. Signed, so that differences need no conversions.
struct Pair {
    batch: i32,
    head: i32,
    kv_head: i32,
    row: i32,
    key: i32,
    position: i32, // of the row among the keys
    key_position: i32,
    len_q: i32, // of the item
    len_kv: i32,
}

fn pair_of(item: Item, head: u32, row: u32, key: u32) -> Pair {
    let kv_head = i32(head / params.group);
    let position = i32(row) + item.offset;
    return Pair(i32(item.batch), i32(head), kv_head, i32(row), i32(key), position, i32(key), i32(item.rows), i32(item.keys));
}

struct Scored {
    score: f32,
    visible: bool,
}

// Derivatives of a pair's score by scaled = scale * dot(query, key), and by what the biases add.
struct Slopes {
    scaled: f32,
    biased: f32,
}

// A score that becomes -inf masks its pair, whatever follows.
fn next_score(before: Scored, score: f32) -> Scored {
    return Scored(score, before.visible && !is_negative_infinity(score));
}

// A score that is NaN stays NaN, whatever a user's function makes of it.
fn next_user_score(before: Scored, score: f32) -> Scored {
    let is_nan = magnitude_bits(before.score) > INFINITE;
    return next_score(before, bitcast<f32>(select(bitcast<u32>(score), bitcast<u32>(before.score), is_nan)));
}

// A derivative of 0 makes 0, even of what is infinite.
fn next_slope(before: f32, slope: f32) -> f32 {
    return select(before * slope, 0.0, (slope == 0.0) | (before == 0.0));
}

fn next_user_slopes(before: Slopes, slope: f32) -> Slopes {
    return Slopes(next_slope(before.scaled, slope), next_slope(before.biased, slope));
}

fn next_slopes(before: Slopes, slope: f32) -> Slopes {
    return Slopes(before.scaled * slope, before.biased * slope);
}

// A bias added to a score. A bias of -inf masks the pair, whatever the score is.
fn add_bias(x: f32, bias: f32) -> f32 {
    return bitcast<f32>(select(bitcast<u32>(x + bias), NEGATIVE_INFINITY, is_negative_infinity(bias)));
}

// Index of an element of a bias or mask that broadcasts to [batch, num_heads, seq_len_q, seq_len_kv].
fn broadcast_at(at: Pair, strides: vec4<u32>) -> u32 {
    return u32(at.batch) * strides.x + u32(at.head) * strides.y + u32(at.row) * strides.z + u32(at.key) * strides.w;
}

// Score of a pair, from scaled = scale * dot(query, key). `inside`: the key is in the row's interval; else it is
// masked. A score that is or becomes -inf masks. Other non-finite scores make the row NaN.
fn score_pair(scaled: f32, at: Pair, inside: bool) -> Scored {
    var scored = Scored(scaled, inside);
    if (tests_pairs() && (EVALUATES_ALL || inside)) {
        scored = score_of(scaled, at);
        scored.visible = (scored.visible & inside) && is_visible(at);
    }
    scored.visible = scored.visible && !is_negative_infinity(scored.score);
    return scored;
}

// Running sum that no row of finite scores reaches: a weight is at most 1. The bits of NaN and infinity are larger.
const NAN_SUM: f32 = 1e38;
const LARGEST_SUM: u32 = 0x70000000u;

// True if a visible score is NaN or +inf, which makes its row NaN.
fn is_nan_score(scored: Scored) -> bool {
    return scored.visible && magnitude_bits(scored.score) >= INFINITE;
}

// Bits of the weight of a visible pair that dropout drops: too small to count, unlike 0 and the least other weight.
const DROPPED: u32 = 2u;

fn dropped_out(weight: f32, factor: f32) -> f32 {
    let product = bitcast<u32>(weight * factor);
    return bitcast<f32>(select(product, DROPPED, (factor == 0.0) & (product == 0u)));
}

// Weight for a value that is infinite or NaN: 0 * infinity is NaN, the least weight's product is infinite.
fn exact_weight(weight: f32) -> f32 {
    return select(weight, 0.0, bitcast<u32>(weight) == DROPPED);
}

// Weight that is never 0 by its bits for a visible pair: 0 marks a masked pair, whose value is skipped.
fn visible_weight(weight: f32, visible: bool) -> f32 {
    return bitcast<f32>(select(0u, max(bitcast<u32>(weight), 1u), visible));
}
