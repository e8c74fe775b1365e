// Defines: for lines that are rows, or keys: LINES, lines of a block; LineBlock, line_block: a block and
//          the squares that its lines cross; square_of: one of these; first_pair_of: row and key of a pair of a line;
//          line_sum.
// Expects: lib/*, square.wgsl; const LINES_ARE_KEYS.
// See: lines_diagonals.wgsl, which defines the same for diagonals.

const LINES: u32 = SIDE;

struct LineBlock {
    item: Item,
    head: u32,
    first: u32, // of the rows or keys, in squares
    squares: u32,
}

// Row and key, of the place of a line and a place along it.
fn row_and_key(line: u32, along: u32) -> vec2<u32> {
    return select(vec2<u32>(line, along), vec2<u32>(along, line), LINES_ARE_KEYS);
}

fn line_block(index: u32) -> LineBlock {
    let places = params.item_blocks;
    let cu_seqlens = select(params.table_cu_seqlens_q, params.table_cu_seqlens_kv, LINES_ARE_KEYS);
    let at = block_of(index / places / params.num_heads, index % places, cu_seqlens, 1u, SIDE);
    let item = item_of(at.batch);
    let along = select(item.stored_keys, item.rows, LINES_ARE_KEYS);
    return LineBlock(item, index / places % params.num_heads, at.block, (along + SIDE - 1u) / SIDE);
}

fn square_of(block: LineBlock, n: u32) -> vec2<u32> {
    return row_and_key(block.first, n);
}

fn first_pair_of(block: LineBlock, line: u32) -> vec2<u32> {
    return row_and_key(block.first * SIDE + line, 0u);
}

fn line_sum(line: u32) -> f32 {
    var sum = 0.0;
    for (var along = 0u; along < SIDE; along++) {
        let pair = row_and_key(line, along);
        sum += square_tile[pair.x * SIDE + pair.y];
    }
    return sum;
}
