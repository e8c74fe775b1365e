// Defines: main: the output of rotated values, rotated back: output = H partial_output.
// Expects: lib/*, lib/output_vec.wgsl, lib/hadamard_output.wgsl, partial_output (read), store_output; value_vecs.
// See: src/plan/staged.rs; the fused algorithm's merge.wgsl does the same after it has merged.
//
// A thread takes one vec4 of one row.

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let own = output_vec_of(workgroup * THREADS + thread);
    let at = lse_at(own.item, own.head, own.row);
    let numbers = rotated_back(partial_output[at * value_vecs() + own.column], thread);
    if (own.exists) {
        store_output(output_row(own.item, own.head, own.row), own.column * 4u, bitcast<vec4<u32>>(numbers));
    }
}
