// Defines: for lines that are rows: LINES, lines of a block; LineBlock, line_block: a block and
//          the squares that its lines cross; square_of: one of these; first_pair_of: row and key of a pair of a line;
//          line_sum.
// Expects: lib/*, square.wgsl.
// See: lines_keys.wgsl and lines_diagonals.wgsl, which define the same for other lines.

const LINES: u32 = SIDE;

struct LineBlock {
    item: Item,
    head: u32,
    first: u32, // of the rows, in squares
    squares: u32,
}

fn line_block(index: u32) -> LineBlock {
    let places = params.item_blocks;
    let at = block_of(index / places / params.num_heads, index % places, params.table_cu_seqlens_q, 1u, SIDE);
    let item = item_of(at.batch);
    return LineBlock(item, index / places % params.num_heads, at.block, (item.stored_keys + SIDE - 1u) / SIDE);
}

fn square_of(block: LineBlock, n: u32) -> vec2<u32> {
    return vec2<u32>(block.first, n);
}

fn first_pair_of(block: LineBlock, line: u32) -> vec2<u32> {
    return vec2<u32>(block.first * SIDE + line, 0u);
}

fn line_sum(line: u32) -> f32 {
    var sum = 0.0;
    for (var c = 0u; c < SIDE; c++) {
        sum += square_tile[line * SIDE + c];
    }
    return sum;
}
