// Defines: main: sums of the biases' gradients along each diagonal (constant key - row) of one head and item.
// Expects: lib/*, pair.wgsl, square.wgsl, lines_diagonals.wgsl, sums (read_write).
// See: src/oracle/backward.rs has the formulas; relative.wgsl reads the sums.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let block = line_block(index);
    for (var n = 0u; n < block.squares; n++) {
        pairs_of_square(block.item, block.head, square_of(block, n) * SIDE, thread);
    }

    for (var n = 0u; n < 4u; n++) {
        let pair = own_pair(thread, n);
        square_tile[pair.x * SIDE + pair.y] = pair_sums[n];
    }
    workgroupBarrier(); // between the pairs' sums written and read
    if (thread < LINES) {
        sums[index * (LINES + 1u) + thread] = line_sum(thread);
    }
}
