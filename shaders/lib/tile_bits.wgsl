// Defines: Tile: a tile of rows and keys, each field an interval; SHOWS_*: what is visible of it;
//          TileBits: bits of tiles in the tables, [batch, lists, query tiles, words of 32 key tiles]; row_tiles_of,
//          words_of: their extents; line_of; bits_show: of a pair; bits_status: of a tile; LIST_ROWS, LIST_KEYS,
//          tile_list: the list of fused/tile_list.wgsl.
// Expects: params, Pair, table.
// See: src/problem/block_list.rs; TileBits in src/terms/block_list.rs.

const SHOWS_NONE: u32 = 0u;
const SHOWS_SOME: u32 = 1u;
const SHOWS_ALL: u32 = 2u;

struct Tile {
    batch: vec2<i32>,
    head: vec2<i32>,
    kv_head: vec2<i32>,
    row: vec2<i32>,
    key: vec2<i32>,
    position: vec2<i32>,
    key_position: vec2<i32>,
    len_q: vec2<i32>,
    len_kv: vec2<i32>,
}

struct TileBits {
    start: u32, // first word
    rows: u32, // of a tile
    keys: u32,
    share: u32, // heads that share a list
    item_words: u32, // from one item's lists to the next; 0 if all items share them
}

fn row_tiles_of(bits: TileBits) -> u32 {
    return (params.seq_len_q + bits.rows - 1u) / bits.rows;
}

fn words_of(bits: TileBits) -> u32 {
    return ((params.seq_len_kv + bits.keys - 1u) / bits.keys + 31u) / 32u;
}

// First word of a query tile.
fn line_of(bits: TileBits, batch: u32, list: u32, row_tile: u32) -> u32 {
    return bits.start + batch * bits.item_words + (list * row_tiles_of(bits) + row_tile) * words_of(bits);
}

fn bits_show(bits: TileBits, at: Pair) -> bool {
    let tile = u32(at.key) / bits.keys;
    let line = line_of(bits, u32(at.batch), u32(at.head) / bits.share, u32(at.row) / bits.rows);
    return ((table(line + tile / 32u) >> (tile % 32u)) & 1u) != 0u;
}

fn bits_status(bits: TileBits, tile: Tile) -> u32 {
    let lists = vec2<u32>(tile.head) / bits.share;
    let row_tiles = vec2<u32>(tile.row) / bits.rows;
    let keys = vec2<u32>(tile.key) / bits.keys;
    var found = 0u;
    var missing = 0u;
    for (var list = lists.x; list <= lists.y; list++) {
        for (var row_tile = row_tiles.x; row_tile <= row_tiles.y; row_tile++) {
            let line = line_of(bits, u32(tile.batch.x), list, row_tile);
            for (var word = keys.x / 32u; word <= keys.y / 32u; word++) {
                let low = max(keys.x, word * 32u) - word * 32u;
                let high = min(keys.y - word * 32u, 31u);
                let wanted = (0xffffffffu << low) & (0xffffffffu >> (31u - high));
                let bits_there = table(line + word);
                found |= bits_there & wanted;
                missing |= ~bits_there & wanted;
            }
        }
    }
    return select(select(SHOWS_SOME, SHOWS_ALL, missing == 0u), SHOWS_NONE, found == 0u);
}

const LIST_ROWS: u32 = 32u;
const LIST_KEYS: u32 = 32u;

fn tile_list() -> TileBits {
    return TileBits(params.list_start, LIST_ROWS, LIST_KEYS, params.list_share, params.list_item_words);
}
