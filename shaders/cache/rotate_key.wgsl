// Defines: rotated: element i of a new key after rotation.
// Expects: cache/params.wgsl; load_new_key, angles, INTERLEAVED.
// See: src/rotary.rs (Rotary::apply).

// Rotates elements 0..2 * pairs of a row and leaves the others as they are.
fn rotated(at: u32, i: u32, position: u32) -> f32 {
    let x = load_new_key(at + i);
    if (i >= 2u * cache.pairs) {
        return x;
    }
    let is_first = select(i < cache.pairs, (i & 1u) == 0u, INTERLEAVED);
    let pair = select(i % cache.pairs, i / 2u, INTERLEAVED);
    let step = select(cache.pairs, 1u, INTERLEAVED);
    let other = load_new_key(at + select(i - step, i + step, is_first));
    let angle = angles[position * cache.pairs + pair];
    return angle.x * x + select(angle.y, -angle.y, is_first) * other;
}
