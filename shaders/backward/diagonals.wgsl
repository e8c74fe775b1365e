// Defines: main: sums of the biases' gradients along each diagonal (constant key - row) of one head and item.
// Expects: lib/*, pair.wgsl, square.wgsl, sums (read_write).
// See: src/oracle/backward.rs has the formulas; relative.wgsl reads the sums.
//
// A workgroup takes a band, a diagonal of squares whose pairs are on 31 diagonals. Place t of a band has
// key - row = 16 (band - row_squares + 1) + t - 15. Places from 16 on are also in the next band: they have two sums.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let row_squares = (params.seq_len_q + SIDE - 1u) / SIDE;
    let key_squares = (params.seq_len_kv + SIDE - 1u) / SIDE;
    let bands = row_squares + key_squares - 1u;
    let band = index % bands;
    let head = index / bands % params.num_heads;
    let item = item_of(index / bands / params.num_heads);
    // Square (r, k) is in band k + row_squares - 1 - r.
    let first = row_squares - 1u - min(band, row_squares - 1u);
    for (var r = first; r < min(row_squares, row_squares + key_squares - 1u - band); r++) {
        pairs_of_square(item, head, vec2<u32>(r, band + r + 1u - row_squares) * SIDE, thread);
    }

    for (var n = 0u; n < 4u; n++) {
        let pair = own_pair(thread, n);
        square_tile[pair.x * SIDE + pair.y] = pair_sums[n];
    }
    workgroupBarrier(); // between the pairs' sums written and read
    if (thread < 2u * SIDE) {
        var sum = 0.0;
        for (var r = 0u; r < SIDE; r++) {
            // Key r + thread - 15 of the square, if it has one.
            let key = r + thread + 1u - SIDE;
            if (key < SIDE) {
                sum += square_tile[r * SIDE + key];
            }
        }
        sums[index * 2u * SIDE + thread] = sum;
    }
}
