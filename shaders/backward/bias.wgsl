// Defines: main: gradient of a bias, summed over its broadcast axes, or a partial sum. A user's table whose elements
//          have pairs of their own is such a bias.
// Expects: lib/*, pair.wgsl, square.wgsl, sums (read_write).
// See: src/oracle/backward.rs has the formulas.
//
// A workgroup owns 16 x 16 elements of the bias (one row, column or element where an axis is broadcast) and visits all
// squares of pairs that add to them, or one of `splits` parts of these squares.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    // Along batch, head, rows, keys: true if summed; extent in items or squares; extents of the bias and of the sum.
    let summed = params.sums_strides == vec4<u32>(0u);
    let extents =
        vec4<u32>(params.batch, params.num_heads, (params.seq_len_q + SIDE - 1u) / SIDE,
            (params.seq_len_kv + SIDE - 1u) / SIDE);
    let own_extents = select(extents, vec4<u32>(1u), summed);
    let sum_extents = select(vec4<u32>(1u), extents, summed);
    let split = index % params.splits;
    let own = digits(index / params.splits, own_extents);
    let terms = sum_extents.x * sum_extents.y * sum_extents.z * sum_extents.w;
    let share = (terms + params.splits - 1u) / params.splits;
    for (var term = split * share; term < min(terms, (split + 1u) * share); term++) {
        let at = own + digits(term, sum_extents);
        pairs_of_square(item_of(at.x), at.y, at.zw * SIDE, thread);
    }

    for (var n = 0u; n < 4u; n++) {
        let pair = own_pair(thread, n);
        square_tile[pair.x * SIDE + pair.y] = pair_sums[n];
    }
    workgroupBarrier(); // between the pairs' sums written and read
    if (summed.z && thread < SIDE) {
        for (var r = 1u; r < SIDE; r++) {
            square_tile[thread] += square_tile[r * SIDE + thread];
        }
    }
    workgroupBarrier(); // between the sums over rows and over keys
    if (summed.w && thread < SIDE) {
        for (var c = 1u; c < SIDE; c++) {
            square_tile[thread * SIDE] += square_tile[thread * SIDE + c];
        }
    }
    workgroupBarrier(); // between the sums written and read
    for (var n = 0u; n < 4u; n++) {
        let pair = own_pair(thread, n);
        let at = own.zw * SIDE + pair;
        let is_there = at.x < select(params.seq_len_q, 1u, summed.z) && at.y < select(params.seq_len_kv, 1u, summed.w);
        if (is_there) {
            let strides = params.sums_strides;
            let place = own.x * strides.x + own.y * strides.y + at.x * strides.z + at.y * strides.w;
            sums[params.sums_start + split * params.output_split_stride + place] = square_tile[pair.x * SIDE + pair.y];
        }
    }
}

// Digits of a number in the given bases, the last one the lowest.
fn digits(number: u32, bases: vec4<u32>) -> vec4<u32> {
    let above = number / bases.w;
    let higher = above / bases.z;
    return vec4<u32>(higher / bases.y, higher % bases.y, above % bases.z, number % bases.w);
}
