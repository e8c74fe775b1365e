// Defines: main: preprocess: m, 1 / l and delta = dot(d_output, output) - d_lse of each query row, then a copy of the
//          tables.
// Expects: lib/*, row_stats.wgsl, load_result, load_d_output, d_lse_at, forward_stats (read), row_stats (read_write); value_vecs.
// See: src/oracle/backward.rs has the formulas.
//
// A thread takes one row. The kernels that follow bind one buffer instead of four.

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let index = workgroup * THREADS + thread;
    if (index < params.table_words) {
        row_stats[params.first_table + index] = table(index);
    }
    let row = index % params.seq_len_q;
    let pair = index / params.seq_len_q;
    if (pair >= params.batch * params.num_heads) {
        return;
    }
    let head = pair % params.num_heads;
    let item = item_of_rows(pair / params.num_heads);
    let at = output_row(item, head, row);
    var delta = 0.0;
    for (var e = 0u; e < value_vecs(); e++) {
        let output = load_result(at, e * 4u);
        // A row that sees no key has output 0, and its gradient may be anything.
        let d_output = select(load_d_output(at, e * 4u), vec4<f32>(0.0), output == vec4<f32>(0.0));
        delta += dot(output, d_output);
    }
    let of_row = lse_at(item, head, row);
    let sum = forward_stats[2u * of_row + 1u];
    row_stats[ROW_STATS * of_row] = forward_stats[2u * of_row];
    row_stats[ROW_STATS * of_row + 1u] = share_of(sum);
    // Where nothing is summed, the lse is no number, and its gradient may be anything.
    let d_lse = select(bitcast<u32>(d_lse_at(of_row)), 0u, sum == 0u);
    row_stats[ROW_STATS * of_row + 2u] = bitcast<u32>(delta - bitcast<f32>(d_lse));
}
