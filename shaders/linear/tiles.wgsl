// Defines: main: Y = X W^T + b by tiles in workgroup memory.
// Expects: linear/params; load_x(row, k), load_w(row, k): four elements of a row from element k on, 0 past its end;
//          consts TILE_M, TILE_N, TILE_K, ROWS, COLS.
// See: src/layer/matmul.rs.
//
// A workgroup computes TILE_M rows x TILE_N columns of Y, a thread ROWS x COLS of them. X and W pass through workgroup
// memory TILE_K elements of a row at a time.

const STEP: u32 = TILE_K / 4u; // vec4s of a row at a time
const STRIDE: u32 = STEP + 1u; // vec4s from one row to the next: rows of neighbouring threads start in different banks
const COLUMN_THREADS: u32 = TILE_N / COLS;
const THREADS: u32 = TILE_M / ROWS * COLUMN_THREADS;

const_assert TILE_K % 4u == 0u && TILE_M % ROWS == 0u && TILE_N % COLS == 0u;

var<workgroup> x_tile: array<vec4<f32>, TILE_M * STRIDE>; // TILE_M rows of X
var<workgroup> w_tile: array<vec4<f32>, TILE_N * STRIDE>; // TILE_N rows of W

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = tile_of(id);
    if (all(tile == NO_TILE)) {
        return;
    }
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
            if (tile.x + i / STEP < linear.rows && k + i % STEP * 4u < linear.depth) {
                x = load_x(tile.x + i / STEP, k + i % STEP * 4u);
            }
            x_tile[i / STEP * STRIDE + i % STEP] = x;
        }
        for (var i = thread; i < TILE_N * STEP; i += THREADS) {
            var w = vec4<f32>(0.0);
            if (tile.y + i / STEP < linear.columns && k + i % STEP * 4u < linear.depth) {
                w = load_w(tile.y + i / STEP, k + i % STEP * 4u);
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
                    sums[r * COLS + c] =
                        fma(x.w, w[c].w, fma(x.z, w[c].z, fma(x.y, w[c].y, fma(x.x, w[c].x, sums[r * COLS + c]))));
                }
            }
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        for (var c = 0u; c < COLS; c++) {
            store_y(tile.x + thread_row + r, tile.y + thread_column + c * COLUMN_THREADS, sums[r * COLS + c]);
        }
    }
}
