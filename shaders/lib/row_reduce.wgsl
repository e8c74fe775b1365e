// Defines: shared_row_max, shared_row_sum: each of ROWS values reduced over the COLS threads that share the rows, through workgroup memory.
// Expects: weight_tile, with ROW_VECS vec4s of a thread's own in each of its lines, free for this; consts ROWS, COLS, ROW_VECS, WEIGHT_STRIDE.
// See: row_reduce_subgroup.wgsl and row_reduce_workgroup.wgsl, which decide when.

fn share_rows(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32) {
    for (var i = 0u; i < ROW_VECS; i++) {
        var v = vec4<f32>(0.0);
        for (var r = i * 4u; r < min(ROWS, i * 4u + 4u); r++) {
            v[r % 4u] = (*values)[r];
        }
        weight_tile[thread_col * WEIGHT_STRIDE + thread_row * ROW_VECS + i] = v;
    }
}

fn take_rows(values: ptr<function, array<f32, ROWS>>, v: vec4<f32>, i: u32) {
    for (var r = i * 4u; r < min(ROWS, i * 4u + 4u); r++) {
        (*values)[r] = v[r % 4u];
    }
}

// Every thread of the workgroup calls, in uniform control flow; afterwards all are done with what they read and wrote before.
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

// As shared_row_max; the last weights have been read.
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
