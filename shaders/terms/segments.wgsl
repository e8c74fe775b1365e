// Defines: segments_visible: row and key have equal segment ids.
// Expects: Pair, table, segments_values: offsets of segment_ids_q and segment_ids_kv in the tables.
// See: src/terms/segments.rs.

fn segments_visible(at: Pair) -> bool {
    let tables = segments_values().xy;
    let own = table(tables.x + u32(at.batch) * params.seq_len_q + u32(at.row));
    return own == table(tables.y + u32(at.batch) * params.seq_len_kv + u32(at.key));
}
