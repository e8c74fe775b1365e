// Defines: bias_score: x + bias.
// Expects: Pair, broadcast_at, add_bias, bias_at, bias_values: strides.
// See: src/terms/bias.rs.

fn bias_score(x: f32, at: Pair) -> f32 {
    return add_bias(x, bias_at(broadcast_at(at, bias_values())));
}
