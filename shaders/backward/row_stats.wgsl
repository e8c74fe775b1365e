// Defines: RowStats: m, 1 / l and delta of a row; share_of: the bits of 1 / l; PairGradient: weight and gradients of a pair.
// Expects: lib/numbers.wgsl.
// See: pair.wgsl, key_sums.wgsl, rows.wgsl.

struct RowStats {
    m: f32,
    share: f32, // 1 / l; NaN by its bits if a visible score is not finite
    delta: f32, // dot(d_output, output); 0 where no gradient is wanted
}

// All three are 0 for a masked pair. The weight of a visible pair is never 0 by its bits.
struct PairGradient {
    weight: f32, // after dropout
    d_bias: f32, // with respect to the biases, or to the element of a user's table
    d_score: f32, // with respect to scale * dot(query, key)
}

// Bits of 1 / l, from those of l: 0 for a row that sees nothing, NaN for one that sees NaN or infinity.
fn share_of(sum: u32) -> u32 {
    let share = select(bitcast<u32>(1.0 / bitcast<f32>(sum)), 0u, sum == 0u);
    return select(share, NOT_A_NUMBER, (sum & 0x7fffffffu) >= INFINITE);
}
