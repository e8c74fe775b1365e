// Defines: main: Y = X W^T + b without workgroup memory, for devices with fast loads that a whole workgroup shares.
// Expects: linear/params; load_x(row, k), load_w(row, k): four elements of a row from element k on, 0 past its end;
//          consts TILE_M, TILE_N, ROWS, COLS.
// See: src/layer/matmul.rs.
//
// A workgroup computes ROWS rows x TILE_N columns of Y, a thread all of the rows in COLS columns. All threads read each
// row of X; one thread reads each element of W.

const THREADS: u32 = TILE_N / COLS;

const_assert TILE_M == ROWS && TILE_N % COLS == 0u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let tile = tile_of(id);
    if (all(tile == NO_TILE)) {
        return;
    }
    var sums: array<f32, ROWS * COLS>;
    for (var i = 0u; i < ROWS * COLS; i++) {
        sums[i] = 0.0;
    }
    for (var k = 0u; k < linear.depth; k += 4u) {
        // Rows and columns past the end read the last one: their sums are not stored.
        var w: array<vec4<f32>, COLS>;
        for (var c = 0u; c < COLS; c++) {
            w[c] = load_w(min(tile.y + thread + c * THREADS, linear.columns - 1u), k);
        }
        for (var r = 0u; r < ROWS; r++) {
            let x = load_x(min(tile.x + r, linear.rows - 1u), k);
            for (var c = 0u; c < COLS; c++) {
                sums[r * COLS + c] =
                    fma(x.w, w[c].w, fma(x.z, w[c].z, fma(x.y, w[c].y, fma(x.x, w[c].x, sums[r * COLS + c]))));
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        for (var c = 0u; c < COLS; c++) {
            store_y(tile.x + r, tile.y + thread + c * THREADS, sums[r * COLS + c]);
        }
    }
}
