// Defines: rotate_part: 32 elements of a rotated block, from sums over the block's parts of 32.
// Expects: nothing.
// See: src/numbers/hadamard.rs (rotate_part), bit by bit.
//
// H of a block is the Kronecker product of H of its parts, whose sums are in `numbers`, and H of the 32 elements of each.
// `largest` has the bits of the block's largest magnitude: a block with NaN or infinity is NaN.

fn rotate_part(numbers: ptr<function, array<f32, 32>>, largest: u32, root: f32) {
    for (var step = 1u; step < 32u; step <<= 1u) {
        for (var pair = 0u; pair < 16u; pair++) {
            let i = pair / step * 2u * step + pair % step;
            let a = (*numbers)[i];
            let b = (*numbers)[i + step];
            (*numbers)[i] = a + b;
            (*numbers)[i + step] = a - b;
        }
    }
    for (var i = 0u; i < 32u; i++) {
        let bits = bitcast<u32>((*numbers)[i] * root);
        (*numbers)[i] = bitcast<f32>(select(bits, 0x7fc00000u, largest >= 0x7f800000u));
    }
}
