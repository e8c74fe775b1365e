// Defines: LinearParams; main: Y = X W^T + b, the projections of a multi-head layer.
// Expects: linear (LinearParams), y, bias_at; load_x(row, k), load_w(row, k): four numbers of a row from number k on, 0 past its end;
//          consts TILE_M, TILE_N, TILE_K, ROWS, COLS, HAS_BIAS.
// Twin: src/layer/matmul.rs; src/shader/linear.rs has LinearParams field by field.
//
// A workgroup computes TILE_M rows x TILE_N columns of Y, a thread ROWS x COLS of them. X and W go through workgroup memory TILE_K
// numbers of a row at a time.

struct LinearParams {
    // Rows of X, columns of Y (rows of W), numbers of a row of X and of W.
    rows: u32,
    columns: u32,
    depth: u32,
    // Row r of X becomes row r / item_rows * item_stride + r % item_rows of Y: room for appended keys.
    item_rows: u32,
    item_stride: u32,
    // The grid is linear; y counts lines of this width. A dispatch computes the workgroups first..end.
    grid_width: u32,
    first_workgroup: u32,
    end_workgroup: u32,
}

const STEP: u32 = TILE_K / 4u; // vec4s of a row at a time
const STRIDE: u32 = STEP + 1u; // vec4s from one row to the next: rows of neighbouring threads start in different banks
const COLUMN_THREADS: u32 = TILE_N / COLS;
const THREADS: u32 = TILE_M / ROWS * COLUMN_THREADS;

const_assert TILE_K % 4u == 0u && TILE_M % ROWS == 0u && TILE_N % COLS == 0u;

var<workgroup> x_tile: array<vec4<f32>, TILE_M * STRIDE>; // TILE_M rows of X
var<workgroup> w_tile: array<vec4<f32>, TILE_N * STRIDE>; // TILE_N rows of W

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = linear.first_workgroup + id.x + id.y * linear.grid_width;
    if (index >= linear.end_workgroup) {
        return; // the grid's last line may be longer than the work
    }
    let column_tiles = (linear.columns + TILE_N - 1u) / TILE_N;
    let first_row = index / column_tiles * TILE_M;
    let first_column = index % column_tiles * TILE_N;
    let thread_row = thread / COLUMN_THREADS * ROWS;
    let thread_column = thread % COLUMN_THREADS;

    var sums: array<f32, ROWS * COLS>;
    for (var i = 0u; i < ROWS * COLS; i++) {
        sums[i] = 0.0;
    }
    for (var k = 0u; k < linear.depth; k += TILE_K) {
        workgroupBarrier(); // between the last step's tiles being read and these being written
        for (var i = thread; i < TILE_M * STEP; i += THREADS) {
            var x = vec4<f32>(0.0);
            if (first_row + i / STEP < linear.rows && k + i % STEP * 4u < linear.depth) {
                x = load_x(first_row + i / STEP, k + i % STEP * 4u);
            }
            x_tile[i / STEP * STRIDE + i % STEP] = x;
        }
        for (var i = thread; i < TILE_N * STEP; i += THREADS) {
            var w = vec4<f32>(0.0);
            if (first_column + i / STEP < linear.columns && k + i % STEP * 4u < linear.depth) {
                w = load_w(first_column + i / STEP, k + i % STEP * 4u);
            }
            w_tile[i / STEP * STRIDE + i % STEP] = w;
        }
        workgroupBarrier(); // between tiles written and read
        for (var s = 0u; s < STEP; s++) {
            var w: array<vec4<f32>, COLS>;
            for (var c = 0u; c < COLS; c++) {
                w[c] = w_tile[(thread_column + c * COLUMN_THREADS) * STRIDE + s];
            }
            for (var r = 0u; r < ROWS; r++) {
                let x = x_tile[(thread_row + r) * STRIDE + s];
                for (var c = 0u; c < COLS; c++) {
                    sums[r * COLS + c] = fma(x.w, w[c].w, fma(x.z, w[c].z, fma(x.y, w[c].y, fma(x.x, w[c].x, sums[r * COLS + c]))));
                }
            }
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        let row = first_row + thread_row + r;
        if (row < linear.rows) {
            let start = (row / linear.item_rows * linear.item_stride + row % linear.item_rows) * linear.columns;
            for (var c = 0u; c < COLS; c++) {
                let column = first_column + thread_column + c * COLUMN_THREADS;
                if (column < linear.columns) {
                    var sum = sums[r * COLS + c];
                    if (HAS_BIAS) {
                        sum += bias_at(column);
                    }
                    y[start + column] = sum;
                }
            }
        }
    }
}
