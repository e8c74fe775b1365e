// Defines: workgroup_total: sum of one element per thread, in a fixed order.
// Expects: nothing.
// See: none.

const THREADS: u32 = 64u;

var<workgroup> partial: array<f32, THREADS>; // one element per thread during the reduction

// Sums `value` over the workgroup. Call once per kernel, in uniform control flow.
fn workgroup_total(value: f32, thread: u32) -> f32 {
    partial[thread] = value;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier(); // between one round and the next
        if (thread < step) {
            partial[thread] += partial[thread + step];
        }
    }
    workgroupBarrier(); // between the result written and read
    return partial[0];
}
