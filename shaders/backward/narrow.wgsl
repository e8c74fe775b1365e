// Defines: main: converts a gradient that was summed in f32 over several steps to its storage type.
// Expects: lib/*, parts (read), gradient_row, gradient_stride, gradient_vecs, gradient_dim, store_gradient.
// See: src/plan/backward.rs.
//
// A thread takes four elements of one row. The sums have the layout of the gradient.

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let index = workgroup * THREADS + thread;
    let dim = index % gradient_vecs() * 4u;
    let row = index / gradient_vecs() % params.seq_len_q;
    let pair = index / gradient_vecs() / params.seq_len_q;
    if (pair >= params.batch * params.num_heads) {
        return;
    }
    let at = gradient_row(pair / params.num_heads, pair % params.num_heads, row);
    var numbers = vec4<f32>(0.0);
    for (var c = 0u; c < 4u; c++) {
        if (dim + c < gradient_dim()) {
            numbers[c] = parts[at + (dim + c) * gradient_stride()];
        }
    }
    store_gradient(at, dim, bitcast<vec4<u32>>(numbers));
}
