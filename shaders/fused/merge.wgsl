// Defines: main: partial results over disjoint keys merged into one: lse = ln(sum of exp(lse_s)), output = sum of exp(lse_s - lse) output_s.
// Expects: lib/*, partial_output, partial_lse (read), store_output, store_lse; value_vecs.
// Twin: src/cpu/naive.rs has the formulas.
//
// A thread takes one vec4 of one row. Each part is normalised by its own sum; a part that saw nothing has lse -inf and joins with
// weight 0. A sink joins the denominator here, not in the parts.

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let index = workgroup * THREADS + thread;
    let column = index % value_vecs();
    let row = index / value_vecs() % params.seq_len_q;
    let pair = index / value_vecs() / params.seq_len_q;
    if (pair >= params.batch * params.num_heads) {
        return;
    }
    let head = pair % params.num_heads;
    let item = item_of(pair / params.num_heads);
    if (row >= item.rows) {
        return;
    }
    // Parts lie as [split][item.first_row + row, head] rows of whole vec4s.
    let at = lse_at(item, head, row);
    var top = LOWEST;
    for (var s = 0u; s < params.splits; s++) {
        top = max(top, partial_lse[s * params.lse_split_stride + at]);
    }
    if (has_flag(FLAG_SINKS)) {
        top = max(top, bitcast<f32>(table(params.table_sinks + head)));
    }
    var total = 0.0;
    var acc = vec4<f32>(0.0);
    for (var s = 0u; s < params.splits; s++) {
        let lse = partial_lse[s * params.lse_split_stride + at];
        if (!is_negative_infinity(lse)) {
            let weight = exp(lse - top);
            total += weight;
            acc = fma(vec4<f32>(weight), partial_output[(s * params.lse_split_stride + at) * value_vecs() + column], acc);
        }
    }
    let seen = total;
    if (has_flag(FLAG_SINKS)) {
        total += exp(bitcast<f32>(table(params.table_sinks + head)) - top);
    }
    if (column == 0u) {
        store_lse(at, select(top + log(total), negative_infinity(), total == 0.0));
    }
    store_output(output_row(item, head, row), column * 4u, select(acc / total, vec4<f32>(0.0), seen == 0.0));
}
