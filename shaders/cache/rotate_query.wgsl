// Defines: rotate_query: rotates pairs of a query row in place.
// Expects: cache/params.wgsl; load_query, store_query, angles, INTERLEAVED, QUERY_UNIT.
// See: src/rotary.rs (Rotary::apply).

// Rotates QUERY_UNIT pairs of a row, from pair unit * QUERY_UNIT on, by a line of the angles.
fn rotate_query(at: u32, unit: u32, line: u32) {
    let first = unit * QUERY_UNIT;
    var a: array<f32, QUERY_UNIT>;
    var b: array<f32, QUERY_UNIT>;
    for (var n = 0u; n < QUERY_UNIT; n++) {
        let pair = first + n;
        let place = at + select(pair, 2u * pair, INTERLEAVED);
        let x = load_query(place);
        let y = load_query(place + select(cache.distance, 1u, INTERLEAVED));
        let angle = angles[line * cache.pairs + pair];
        a[n] = angle.x * x - angle.y * y;
        b[n] = angle.y * x + angle.x * y;
    }
    // A store takes neighbours: the first elements of the pairs, then the second ones; or one pair, then the next.
    if (INTERLEAVED) {
        let last = a[QUERY_UNIT - 1u];
        a[QUERY_UNIT - 1u] = select(last, b[0], QUERY_UNIT > 1u);
        b[0] = select(b[0], last, QUERY_UNIT > 1u);
    }
    store_query(at + select(first, 2u * first, INTERLEAVED), &a);
    store_query(at + select(first + cache.distance, 2u * first + QUERY_UNIT, INTERLEAVED), &b);
}
