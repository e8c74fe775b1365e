// Defines: row_max (also a barrier), row_sum: ROWS values reduced over COLS threads, by_subgroup if one holds them.
// Expects: lib/row_reduce.wgsl, lib/subgroup_threads.wgsl; consts ROWS, COLS, a power of two.
// See: row_reduce_workgroup.wgsl, which goes through workgroup memory.

fn row_max(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32, by_subgroup: bool) {
    if (!by_subgroup) {
        shared_row_max(values, thread_row, thread_col);
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        var result = (*values)[r];
        for (var step = 1u; step < COLS; step <<= 1u) {
            result = max(result, subgroupShuffleXor(result, step));
        }
        (*values)[r] = result;
    }
    workgroupBarrier(); // between the callers' earlier reads and later writes, as row_max promises
}

fn row_sum(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32, by_subgroup: bool) {
    if (!by_subgroup) {
        shared_row_sum(values, thread_row, thread_col);
        return;
    }
    for (var r = 0u; r < ROWS; r++) {
        var result = (*values)[r];
        for (var step = 1u; step < COLS; step <<= 1u) {
            result += subgroupShuffleXor(result, step);
        }
        (*values)[r] = result;
    }
}
