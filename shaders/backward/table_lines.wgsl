// Defines: main: sums of the gradient of a user's table along lines (rows, keys or diagonals) of one head and item, each
//          with the element that its pairs read.
// Expects: lib/*, pair.wgsl, square.wgsl, lines_*.wgsl; table_index(at: Pair) -> u32; sums (read_write).
// See: src/oracle/backward.rs has the formulas; table_gradient.wgsl reads the sums.
//
// A workgroup takes the lines of one block, which cross a series of squares, or one of `splits` parts of this series. It
// writes the least and the greatest element that its lines read, then the sum and the element of each line.

const NO_ELEMENT: u32 = 0xffffffffu;

var<workgroup> elements: array<u32, LINES>; // element that the pairs of a line read

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let block = line_block(index / params.splits);
    let share = (block.squares + params.splits - 1u) / params.splits;
    let first = index % params.splits * share;
    for (var n = first; n < min(block.squares, first + share); n++) {
        pairs_of_square(block.item, block.head, square_of(block, n) * SIDE, thread);
    }

    for (var n = 0u; n < 4u; n++) {
        let pair = own_pair(thread, n);
        square_tile[pair.x * SIDE + pair.y] = pair_sums[n];
    }
    let line = first_pair_of(block, thread);
    let is_there = thread < LINES && line.x < block.item.rows && line.y < block.item.stored_keys;
    let element = table_index(pair_of(block.item, block.head, line.x, line.y));
    if (thread < LINES) {
        elements[thread] = select(NO_ELEMENT, element, is_there);
    }
    workgroupBarrier(); // between sums and elements written and read
    let to = index * (LINES + 1u);
    if (thread < LINES) {
        sums[to + 1u + thread] = vec2<u32>(bitcast<u32>(line_sum(thread)), elements[thread]);
    }
    if (thread == 0u) {
        var range = vec2<u32>(NO_ELEMENT, 0u);
        for (var n = 0u; n < LINES; n++) {
            if (elements[n] != NO_ELEMENT) {
                range = vec2<u32>(min(range.x, elements[n]), max(range.y, elements[n]));
            }
        }
        sums[to] = range;
    }
}
