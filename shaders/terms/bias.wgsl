// Defines: bias_score: x + bias; -inf where the bias is -inf, which masks the pair whatever x is.
// Expects: Pair, broadcast_at, lib/numbers.wgsl, bias_at, bias_values: strides.
// See: src/terms/bias.rs.

fn bias_score(x: f32, at: Pair) -> f32 {
    let bias = bias_at(broadcast_at(at, bias_values()));
    return bitcast<f32>(select(bitcast<u32>(x + bias), NEGATIVE_INFINITY, is_negative_infinity(bias)));
}
