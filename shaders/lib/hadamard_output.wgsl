// Defines: rotated_back: a thread's vec4 of an output row, rotated back. All threads of the workgroup must call it.
// Expects: lib/hadamard.wgsl. 64 threads hold neighbouring vec4s of rows of whole blocks.
// See: src/cpu/job.rs (finish_row).

var<workgroup> hadamard_tile: array<vec4<f32>, 64>; // a vec4 of each thread

fn rotated_back(numbers: vec4<f32>, thread: u32) -> vec4<f32> {
    const VECS: u32 = HADAMARD / 4u;
    hadamard_tile[thread] = numbers;
    workgroupBarrier(); // between vec4s written and read
    var sum = vec4<f32>(0.0);
    var largest = 0u;
    for (var v = 0u; v < VECS; v++) {
        let other = hadamard_tile[thread / VECS * VECS + v];
        largest = max(largest, magnitude(other));
        sum = fma(vec4<f32>(hadamard_sign(thread % VECS, v)), other, sum);
    }
    return hadamard_vec4(sum, largest);
}
