// Defines: load_query: elements of a query row, rotated as the keys are.
// Expects: lib/hadamard.wgsl, load_stored_query.
// See: src/cpu/job.rs (read_unscaled_query).
//
// A forward kernel loads each query row of a workgroup once, so that these HADAMARD / 4 loads count little beside those of the
// keys. Key sums load the rows again for each block of keys.

const LOADS: u32 = 4u; // at once, to hide their latency

const_assert HADAMARD % (4u * LOADS) == 0u;

fn load_query(at: u32, dim: u32) -> vec4<f32> {
    let first = dim / HADAMARD * HADAMARD;
    let own = dim % HADAMARD / 4u;
    var sum = vec4<f32>(0.0);
    var largest = 0u;
    for (var v = 0u; v < HADAMARD / 4u + params.zero; v += LOADS) {
        for (var step = 0u; step < LOADS; step++) {
            let q = load_stored_query(at, first + 4u * (v + step));
            largest = max(largest, magnitude(q));
            sum = fma(vec4<f32>(hadamard_sign(own, v + step)), q, sum);
        }
    }
    return hadamard_vec4(sum, largest);
}
