// Defines: main: the output of rotated values, rotated back: output = H partial_output.
// Expects: lib/*, lib/hadamard_output.wgsl, partial_output (read), store_output; value_vecs.
// See: src/plan/staged.rs; the fused algorithm's merge.wgsl does the same after it has merged.
//
// A thread takes one vec4 of one row. Threads past the end stand in for the last row, because all of them must rotate.

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let index = workgroup * THREADS + thread;
    let column = index % value_vecs();
    let rows = params.batch * params.num_heads * params.seq_len_q;
    let place = min(index / value_vecs(), rows - 1u);
    let pair = place / params.seq_len_q;
    let row = place % params.seq_len_q;
    let head = pair % params.num_heads;
    let item = item_of_rows(pair / params.num_heads);
    let numbers = rotated_back(partial_output[lse_at(item, head, row) * value_vecs() + column], thread);
    if (index / value_vecs() < rows) {
        store_output(output_row(item, head, row), column * 4u, bitcast<vec4<u32>>(numbers));
    }
}
