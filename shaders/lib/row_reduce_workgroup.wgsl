// Defines: row_max, row_sum: each of ROWS values reduced over the COLS threads that share the rows; also a barrier for the whole workgroup.
// Expects: consts BLOCK_ROWS, ROWS, COLS. Every thread of the workgroup calls, in uniform control flow.
// Twin: row_reduce_subgroup.wgsl, the same by subgroup shuffles.

// BLOCK_ROWS x COLS partial results.
var<workgroup> row_partial: array<f32, BLOCK_ROWS * COLS>;

fn row_max(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    for (var r = 0u; r < ROWS; r++) {
        row_partial[(thread_row * ROWS + r) * COLS + thread_col] = (*values)[r];
    }
    workgroupBarrier(); // between writing and reading row_partial
    for (var r = 0u; r < ROWS; r++) {
        var result = row_partial[(thread_row * ROWS + r) * COLS];
        for (var c = 1u; c < COLS; c++) {
            result = max(result, row_partial[(thread_row * ROWS + r) * COLS + c]);
        }
        (*values)[r] = result;
    }
}

fn row_sum(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    workgroupBarrier(); // between the last row_max reading row_partial and this writing it
    for (var r = 0u; r < ROWS; r++) {
        row_partial[(thread_row * ROWS + r) * COLS + thread_col] = (*values)[r];
    }
    workgroupBarrier(); // between writing and reading row_partial
    for (var r = 0u; r < ROWS; r++) {
        var result = 0.0;
        for (var c = 0u; c < COLS; c++) {
            result += row_partial[(thread_row * ROWS + r) * COLS + c];
        }
        (*values)[r] = result;
    }
}
