// Defines: for lines that are diagonals (constant key - row): LINES, lines of a block; LineBlock, line_block: a block
//          and the squares that its lines cross; square_of: one of these; first_pair_of: row and key of a pair of a line;
//          line_sum.
// Expects: lib/*, square.wgsl.
// See: lines_straight.wgsl, which defines the same for rows and keys.
//
// A block is a band, a diagonal of squares whose pairs are on 31 diagonals. Line t of a band has
// key - row = 16 (band - row_squares + 1) + t - 15. Lines from 16 on are also in the next band: they have two sums.

const LINES: u32 = 2u * SIDE - 1u;

struct LineBlock {
    item: Item,
    head: u32,
    first: u32, // the band
    squares: u32,
}

fn row_squares() -> u32 {
    return (params.seq_len_q + SIDE - 1u) / SIDE;
}

fn line_block(index: u32) -> LineBlock {
    let key_squares = (params.seq_len_kv + SIDE - 1u) / SIDE;
    let bands = row_squares() + key_squares - 1u;
    let band = index % bands;
    let squares = min(row_squares(), row_squares() + key_squares - 1u - band) - first_row_square(band);
    return LineBlock(item_of(index / bands / params.num_heads), index / bands % params.num_heads, band, squares);
}

// Square (r, k) is in band k + row_squares - 1 - r.
fn first_row_square(band: u32) -> u32 {
    return row_squares() - 1u - min(band, row_squares() - 1u);
}

fn square_of(block: LineBlock, n: u32) -> vec2<u32> {
    let row = first_row_square(block.first) + n;
    return vec2<u32>(row, block.first + row + 1u - row_squares());
}

fn first_pair_of(block: LineBlock, line: u32) -> vec2<u32> {
    let difference = i32(SIDE * block.first + line) - i32(SIDE * row_squares() - 1u);
    return vec2<u32>(u32(max(-difference, 0)), u32(max(difference, 0)));
}

fn line_sum(line: u32) -> f32 {
    var sum = 0.0;
    for (var r = 0u; r < SIDE; r++) {
        // Key r + line - 15 of the square, if it has one.
        let key = r + line + 1u - SIDE;
        if (key < SIDE) {
            sum += square_tile[r * SIDE + key];
        }
    }
    return sum;
}
