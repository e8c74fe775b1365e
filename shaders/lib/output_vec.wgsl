// Defines: output_vec_of: the vec4 of an output row that a thread takes.
// Expects: lib/visibility.wgsl; value_vecs.
// See: src/plan/fused.rs, src/plan/staged.rs.

struct OutputVec {
    item: Item,
    head: u32,
    row: u32,
    column: u32,
    exists: bool,
}

// Threads past the end stand in for the last row, because all threads of a workgroup rotate rows together.
fn output_vec_of(index: u32) -> OutputVec {
    let rows = params.batch * params.num_heads * params.seq_len_q;
    let place = index / value_vecs();
    let pair = min(place, rows - 1u) / params.seq_len_q;
    let row = min(place, rows - 1u) % params.seq_len_q;
    return OutputVec(item_of_rows(pair / params.num_heads), pair % params.num_heads, row, index % value_vecs(), place < rows);
}
