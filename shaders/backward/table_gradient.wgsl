// Defines: main: gradient of a user's table, from the sums along lines.
// Expects: lib/*, reduce.wgsl, parts (read), sums (read_write).
// See: src/oracle/backward.rs has the formulas; table_lines.wgsl writes the parts.
//
// A workgroup takes one element of the table and sums the lines whose pairs read it. A thread looks only into the blocks
// whose lines may: the first word pair of a block has the least and the greatest element that they read.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let element = workgroup_index(id);
    if (element == NO_WORK) {
        return;
    }
    let stride = params.output_split_stride;
    var sum = 0.0;
    for (var block = thread; block < params.splits; block += THREADS) {
        let range = parts[block * stride];
        if (element >= range.x && element <= range.y) {
            for (var at = block * stride + 1u; at < (block + 1u) * stride; at++) {
                let line = parts[at];
                if (line.y == element) {
                    sum += bitcast<f32>(line.x);
                }
            }
        }
    }
    let total = workgroup_total(sum, thread);
    if (thread == 0u) {
        sums[params.sums_start + element] = total;
    }
}
