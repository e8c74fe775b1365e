// Defines: hadamard_sign: an entry of the Hadamard matrix; hadamard_vec4: four elements of a rotated block from their sum.
// Expects: lib/numbers.wgsl; consts HADAMARD, the width of a block, and HADAMARD_SCALE * HADAMARD_ROOT = 1 / sqrt(HADAMARD).
// See: src/numbers/hadamard.rs.
//
// H of a block is the Kronecker product of H of its vec4s and H of the four elements of each: vec4 v of H x is
// H4 sum_w (-1)^(number of ones in v & w) x_w.

// Entry of vec4s v and w, times a power of two.
fn hadamard_sign(v: u32, w: u32) -> f32 {
    return select(HADAMARD_SCALE, -HADAMARD_SCALE, (countOneBits(v & w) & 1u) == 1u);
}

// Multiplies the sum over the vec4s of a block by H4. `largest` has the bits of the block's largest magnitude: a block with
// NaN or infinity is NaN.
fn hadamard_vec4(sum: vec4<f32>, largest: u32) -> vec4<f32> {
    let pairs = vec4<f32>(sum.x + sum.y, sum.x - sum.y, sum.z + sum.w, sum.z - sum.w);
    let rotated = HADAMARD_ROOT * vec4<f32>(pairs.xy + pairs.zw, pairs.xy - pairs.zw);
    return bitcast<vec4<f32>>(select(bitcast<vec4<u32>>(rotated), vec4<u32>(NOT_A_NUMBER), largest >= INFINITE));
}
