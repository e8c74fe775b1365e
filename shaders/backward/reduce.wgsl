// Defines: workgroup_total: the sum of one number a thread, always in the same order.
// Expects: nothing.
// See: none.

const THREADS: u32 = 64u;

var<workgroup> partial: array<f32, THREADS>; // one number a thread, on its way through the reduction

// Once in a kernel, in uniform control flow.
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
