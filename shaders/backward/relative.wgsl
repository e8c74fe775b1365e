// Defines: main: gradient of the table of relative biases, from the sums along the diagonals.
// Expects: lib/*, reduce.wgsl, parts (read), sums (read_write).
// See: src/oracle/backward.rs has the formulas; diagonals.wgsl writes the parts.
//
// A workgroup takes one table entry and sums the diagonals at its distance in each item: many at the table's ends.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let most = i32(relative_bias_values().y);
    let columns = u32(2 * most + 1);
    let head = index / columns;
    let column = i32(index % columns);
    let row_squares = i32((params.seq_len_q + 15u) / 16u);
    let bands = row_squares + i32((params.seq_len_kv + 15u) / 16u) - 1;
    var sum = 0.0;
    for (var batch = 0u; batch < params.batch; batch++) {
        // key - row = offset - distance; the ends of the table also have all larger distances.
        let middle = item_of(batch).offset + most - column;
        let low = select(max(middle, -i32(params.seq_len_q)), -i32(params.seq_len_q), column == 2 * most);
        let high = select(min(middle, i32(params.seq_len_kv)), i32(params.seq_len_kv), column == 0);
        for (var difference = low + i32(thread); difference <= high; difference += i32(THREADS)) {
            // Place t of band b has difference 16 (b - row_squares + 1) + t - 15.
            let at = difference + 16 * (row_squares - 1) + 15;
            for (var place = at & 15; place < 31; place += 16) {
                let band = (at - place) / 16;
                if (band >= 0 && band < bands) {
                    sum += parts[((batch * params.num_heads + head) * u32(bands) + u32(band)) * 32u + u32(place)];
                }
            }
        }
    }
    let total = workgroup_total(sum, thread);
    if (thread == 0u) {
        sums[index] = total;
    }
}
