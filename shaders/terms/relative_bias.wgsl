// Defines: relative_bias_score: x + table[head, clamp(position - key, -max, max) + max].
// Expects: Pair, add_bias, table, relative_bias_values: offset of the table in the tables, max.
// See: src/terms/relative_bias.rs.

fn relative_bias_score(x: f32, at: Pair) -> f32 {
    let words = relative_bias_values();
    let most = i32(words.y);
    let column = clamp(at.position - at.key, -most, most) + most;
    return add_bias(x, bitcast<f32>(table(words.x + u32(at.head) * (2u * words.y + 1u) + u32(column))));
}
