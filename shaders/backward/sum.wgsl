// Defines: main: sum of partial gradients, in a fixed order.
// Expects: lib/*, parts (read), sums (read_write).
// See: none.

const THREADS: u32 = 64u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let index = workgroup * THREADS + thread;
    if (index >= params.output_split_stride) {
        return;
    }
    var sum = 0.0;
    for (var split = 0u; split < params.splits; split++) {
        sum += parts[split * params.output_split_stride + index];
    }
    sums[params.sums_start + index] = sum;
}
