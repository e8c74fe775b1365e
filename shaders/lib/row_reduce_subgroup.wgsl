// Defines: row_max, row_sum: each of ROWS values reduced over the COLS threads that share the rows; also a barrier for the whole workgroup.
// Expects: consts ROWS, COLS; COLS a power of two, at most the subgroup size. Every thread of the workgroup calls, in uniform control flow.
// Twin: row_reduce_workgroup.wgsl, the same through workgroup memory.

fn row_max(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    for (var r = 0u; r < ROWS; r++) {
        var result = (*values)[r];
        for (var step = 1u; step < COLS; step <<= 1u) {
            result = max(result, subgroupShuffleXor(result, step));
        }
        (*values)[r] = result;
    }
    workgroupBarrier(); // what the callers promise: all threads are done with what they read before
}

fn row_sum(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    for (var r = 0u; r < ROWS; r++) {
        var result = (*values)[r];
        for (var step = 1u; step < COLS; step <<= 1u) {
            result += subgroupShuffleXor(result, step);
        }
        (*values)[r] = result;
    }
    workgroupBarrier(); // as above
}
