// Defines: shared_row_max, shared_row_sum: ROWS values reduced over COLS threads through workgroup memory.
// Expects: weight_tile, free, with ROW_VECS vec4s per thread in each line; consts ROWS, COLS, ROW_VECS, VEC_ROWS,
//          WEIGHT_STRIDE.
// See: row_reduce_subgroup.wgsl and row_reduce_workgroup.wgsl, which decide when.

fn share_rows(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    for (var i = 0u; i < ROW_VECS; i++) {
        var v = vec4<f32>(0.0);
        for (var c = 0u; c < VEC_ROWS; c++) {
            v[c] = (*values)[i * 4u + c];
        }
        weight_tile[thread_col * WEIGHT_STRIDE + thread_row * ROW_VECS + i] = v;
    }
}

fn take_rows(values: ptr<function, array<f32, ROWS>>, v: vec4<f32>, i: u32) {
    for (var c = 0u; c < VEC_ROWS; c++) {
        (*values)[i * 4u + c] = v[c];
    }
}

// Call from every thread of the workgroup, in uniform control flow. On return, all earlier accesses are complete.
fn shared_row_max(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    share_rows(values, thread_row, thread_col);
    workgroupBarrier(); // between values written and read
    for (var i = 0u; i < ROW_VECS; i++) {
        var result = weight_tile[thread_row * ROW_VECS + i];
        for (var c = 1u; c < COLS; c++) {
            result = max(result, weight_tile[c * WEIGHT_STRIDE + thread_row * ROW_VECS + i]);
        }
        take_rows(values, result, i);
    }
    workgroupBarrier(); // between values read and weights written
}

// Called like shared_row_max. On return, all threads have read the last weights.
fn shared_row_sum(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    workgroupBarrier(); // between the last weights read and values written
    share_rows(values, thread_row, thread_col);
    workgroupBarrier(); // between values written and read
    for (var i = 0u; i < ROW_VECS; i++) {
        var result = vec4<f32>(0.0);
        for (var c = 0u; c < COLS; c++) {
            result += weight_tile[c * WEIGHT_STRIDE + thread_row * ROW_VECS + i];
        }
        take_rows(values, result, i);
    }
}
