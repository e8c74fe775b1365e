// Defines: main: gradient of the sinks: for each head, the sum over its rows of -exp(sink - lse) * delta.
// Expects: lib/*, reduce.wgsl, row_stats, sums (read_write).
// See: src/oracle/backward.rs has the formulas.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = workgroup_index(id);
    if (head == NO_WORK) {
        return;
    }
    let sink = bitcast<f32>(table(params.table_sinks + head));
    var sum = 0.0;
    for (var batch = 0u; batch < params.batch; batch++) {
        let item = item_of_rows(batch);
        for (var row = thread; row < item.rows; row += THREADS) {
            let at = ROW_STATS * lse_at(item, head, row);
            sum -= exp(sink - bitcast<f32>(row_stats[at])) * bitcast<f32>(row_stats[at + 1u])
                * bitcast<f32>(row_stats[at + 2u]);
        }
    }
    let total = workgroup_total(sum, thread);
    if (thread == 0u) {
        sums[head] = total;
    }
}
