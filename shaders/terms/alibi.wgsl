// Defines: alibi_score: x + slope * (key - position), or x - slope * |key - position|.
// Expects: Pair, add_bias, table, alibi_values: offset of the slopes in the tables, 1 if symmetric.
// See: src/terms/alibi.rs.

fn alibi_score(x: f32, at: Pair) -> f32 {
    let words = alibi_values();
    let distance = at.key - at.position;
    let slope = bitcast<f32>(table(words.x + u32(at.head)));
    return add_bias(x, slope * f32(select(distance, -abs(distance), words.y != 0u)));
}
