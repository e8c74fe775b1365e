// Defines: rotated: element i of a new key after rotation by a line of the angles.
// Expects: cache/params.wgsl; load_new_key, angles, INTERLEAVED.
// See: src/rotary.rs (Rotary::apply).

// Rotates the elements of pairs and leaves the others of a row as they are.
fn rotated(at: u32, i: u32, line: u32) -> f32 {
    let x = load_new_key(at + i);
    let is_first = select(i < cache.distance, (i & 1u) == 0u, INTERLEAVED);
    let pair = select(select(i - cache.distance, i, is_first), i / 2u, INTERLEAVED);
    if (pair >= cache.pairs) {
        return x;
    }
    let step = select(cache.distance, 1u, INTERLEAVED);
    let other = load_new_key(at + select(i - step, i + step, is_first));
    let angle = angles[line * cache.pairs + pair];
    return angle.x * x + select(angle.y, -angle.y, is_first) * other;
}
