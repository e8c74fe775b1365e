// Defines: rotated: element i of a new key after rotation; rotate_query: rotates pairs of a query row in place.
// Expects: cache/params.wgsl; load_new_key, load_query, store_pairs, angle_at; INTERLEAVED, ROTATED, QUERY_PAIRS.
// See: src/rotary.rs (Rotary::apply).

// Rotates elements 0..2 * pairs of a row and leaves the others as they are.
fn rotated(at: u32, i: u32, position: u32) -> f32 {
    let x = load_new_key(at + i);
    if (!ROTATED || i >= 2u * cache.pairs) {
        return x;
    }
    let is_first = select(i < cache.pairs, (i & 1u) == 0u, INTERLEAVED);
    let pair = select(i % cache.pairs, i / 2u, INTERLEAVED);
    let step = select(cache.pairs, 1u, INTERLEAVED);
    let other = load_new_key(at + select(i - step, i + step, is_first));
    let angle = angle_at(position * cache.pairs + pair);
    return angle.x * x + select(angle.y, -angle.y, is_first) * other;
}

// Rotates QUERY_PAIRS pairs of a row, from pair unit * QUERY_PAIRS on.
fn rotate_query(at: u32, unit: u32, position: u32) {
    let first = unit * QUERY_PAIRS;
    var a: array<f32, QUERY_PAIRS>;
    var b: array<f32, QUERY_PAIRS>;
    for (var n = 0u; n < QUERY_PAIRS; n++) {
        let pair = first + n;
        let place = at + select(pair, 2u * pair, INTERLEAVED);
        let x = load_query(place);
        let y = load_query(place + select(cache.pairs, 1u, INTERLEAVED));
        let angle = angle_at(position * cache.pairs + pair);
        a[n] = angle.x * x - angle.y * y;
        b[n] = angle.y * x + angle.x * y;
    }
    store_pairs(at, first, a, b);
}
