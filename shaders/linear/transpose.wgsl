// Defines: main: Y[column, row] = X[row, column].
// Expects: linear (LinearParams): rows and columns of X; x, y.
// See: src/layer/backward.rs (transposed).
//
// A workgroup moves a square of 16 x 16 through workgroup memory, so that reads and writes are contiguous.

const SIDE: u32 = 16u;
const THREADS: u32 = 64u;

var<workgroup> square: array<f32, SIDE * (SIDE + 1u)>; // rows of X, padded: neighbouring rows in different banks

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = linear.first_workgroup + id.x + id.y * linear.grid_width;
    if (index >= linear.end_workgroup) {
        return;
    }
    let squares = (linear.columns + SIDE - 1u) / SIDE;
    let first = vec2<u32>(index / squares, index % squares) * SIDE;
    for (var i = thread; i < SIDE * SIDE; i += THREADS) {
        let at = first + vec2<u32>(i / SIDE, i % SIDE);
        if (at.x < linear.rows && at.y < linear.columns) {
            square[i / SIDE * (SIDE + 1u) + i % SIDE] = x[at.x * linear.columns + at.y];
        }
    }
    workgroupBarrier(); // between the square written and read
    for (var i = thread; i < SIDE * SIDE; i += THREADS) {
        let at = first + vec2<u32>(i % SIDE, i / SIDE);
        if (at.x < linear.rows && at.y < linear.columns) {
            y[at.y * linear.rows + at.x] = square[i % SIDE * (SIDE + 1u) + i / SIDE];
        }
    }
}
