// Defines: LinearParams, the uniform of the projections of a multi-head layer; tile_of, store_y.
// Expects: linear (LinearParams), y, bias_at; consts TILE_M, TILE_N, HAS_BIAS.
// See: src/wgsl/linear.rs, field by field.

struct LinearParams {
    // Rows of X, columns of Y (rows of W), elements of a row of X and of W.
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

// First row and column of a workgroup's tile; NO_TILE past the end of the work.
const NO_TILE: vec2<u32> = vec2<u32>(0xffffffffu);

fn tile_of(id: vec3<u32>) -> vec2<u32> {
    let index = linear.first_workgroup + id.x + id.y * linear.grid_width;
    let column_tiles = (linear.columns + TILE_N - 1u) / TILE_N;
    let place = vec2<u32>(index / column_tiles * TILE_M, index % column_tiles * TILE_N);
    return select(NO_TILE, place, index < linear.end_workgroup);
}

// Adds the bias and writes Y[row, column]; elements outside Y are dropped.
fn store_y(row: u32, column: u32, sum: f32) {
    if (row < linear.rows && column < linear.columns) {
        var biased = sum;
        if (HAS_BIAS) {
            biased += bias_at(column);
        }
        y[(row / linear.item_rows * linear.item_stride + row % linear.item_rows) * linear.columns + column] = biased;
    }
}
