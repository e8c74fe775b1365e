// Defines: FusedWork, fused_work: what a fused kernel's workgroup computes; Block, locate; Row, row_of; KeyRange,
//          key_range; tile_of; tile_shows_any: false if a tile is skipped; next_shown, next_span; steps_at_once: unroll
//          factor of a loop over vec4s.
// Expects: params, Item, Interval, is_visible, has_visible_terms, SHOWS_*; told: what terms tell of a tile without its
//          pairs; test_told: whether is_visible asks those terms; any_thread; consts THREADS, BLOCK_ROWS, BLOCK_KEYS,
//          LANES_ARE_VECTORS.
// See: src/plan/fused.rs (the size of the grid).

// Rows of `pack` query heads that share a key/value head are one block: virtual row r is row r / pack of head r % pack.
struct Block {
    batch: u32,
    first_head: u32,
    first_row: u32,
    split: u32,
}

struct Row {
    head: u32,
    row: u32,
    keys: Interval,
}

struct KeyRange {
    start: u32,
    end: u32,
    // Keys in this interval are visible to every row of the block, except for terms that look at pairs.
    clear_start: u32,
    clear_end: u32,
}

// Unroll factor of a loop of `vecs` iterations: the largest power of two that divides it, at most `most`; 1 if generic.
fn steps_at_once(vecs: u32, most: u32) -> u32 {
    return select(min(most, 1u << firstTrailingBit(vecs)), 1u, IS_GENERIC);
}

// Work of a fused kernel's workgroup; it has none past the ends of the grid and of an item.
struct FusedWork {
    exists: bool,
    block: Block,
    item: Item,
}

fn fused_work(workgroup: vec3<u32>) -> FusedWork {
    let index = workgroup_index(workgroup);
    let block = locate(select(index, 0u, index == NO_WORK));
    let item = item_of(block.batch);
    return FusedWork(index != NO_WORK && block.first_row < item.rows * params.pack, block, item);
}

// Blocks of a head run from last to first: under a causal mask the long ones start early. Drivers that run lanes as vectors
// give each thread of the processor an equal run of a dispatch: there, short blocks follow long ones, and splits their block.
fn locate(index: u32) -> Block {
    let places = params.item_blocks;
    var split = index / places % params.splits;
    var place = places - 1u - index % places;
    if (LANES_ARE_VECTORS) {
        split = index % params.splits;
        let nth = index / params.splits % places;
        place = select(nth / 2u, places - 1u - nth / 2u, nth % 2u == 0u);
    }
    let pair = index / (places * params.splits);
    let heads = params.num_heads / params.pack;
    let at = block_of(pair / heads, place, params.table_cu_seqlens_q, params.pack, BLOCK_ROWS);
    return Block(at.batch, pair % heads * params.pack, at.block * BLOCK_ROWS, split);
}

fn row_of(item: Item, block: Block, local: u32) -> Row {
    let virtual_row = block.first_row + local;
    let row = virtual_row / params.pack;
    var keys = Interval(0u, 0u);
    if (row < item.rows) {
        keys = interval_of(item, row);
    }
    return Row(block.first_head + virtual_row % params.pack, row, keys);
}

// Keys that any row of the block may see, clamped to this workgroup's split.
fn key_range(item: Item, block: Block) -> KeyRange {
    let first = interval_of(item, block.first_row / params.pack);
    let last = interval_of(item, min((block.first_row + BLOCK_ROWS - 1u) / params.pack, item.rows - 1u));
    var range = KeyRange(max(first.start, params.range_start), min(last.end, params.range_end), last.start, first.end);
    if (params.splits > 1u) {
        let tiles = (max(range.end, range.start) - range.start + BLOCK_KEYS - 1u) / BLOCK_KEYS;
        let size = (tiles + params.splits - 1u) / params.splits * BLOCK_KEYS;
        range.start = range.start + block.split * size;
        range.end = min(range.end, range.start + size);
    }
    return range;
}

// Rows of a block, `count` of them if they exist, and keys from first_key on, before end_key.
fn tile_of(item: Item, block: Block, count: u32, first_key: u32, end_key: u32) -> Tile {
    let last_row = min((block.first_row + count - 1u) / params.pack, max(item.rows, 1u) - 1u);
    let rows = vec2<i32>(i32(block.first_row / params.pack), i32(last_row));
    let heads = vec2<i32>(i32(block.first_head), i32(block.first_head + params.pack - 1u));
    let keys = vec2<i32>(i32(first_key), i32(max(end_key, first_key + 1u) - 1u));
    return Tile(vec2<i32>(i32(item.batch)), heads, vec2<i32>(i32(block.first_head / params.group)), rows, keys,
        rows + item.offset, keys, vec2<i32>(i32(item.rows)), vec2<i32>(i32(item.keys)));
}

// Answer of the terms that know tiles about one.
struct Told {
    status: u32,
    // The status is SHOWS_SOME and nothing is visible perhaps, or other terms mask pairs too: only pairs can tell.
    is_open: bool,
}

// True if the terms let any row of the block see any key of the tile; otherwise the tile is skipped. Every
// thread of the workgroup must call it, in uniform control flow; the result is uniform.
fn tile_shows_any(item: Item, block: Block, first_key: u32, end_key: u32, thread: u32) -> bool {
    if (!has_visible_terms()) {
        return true;
    }
    let known = told(item, block, BLOCK_ROWS, first_key, min(end_key, first_key + BLOCK_KEYS));
    test_told(known.status != SHOWS_ALL);
    if (known.status == SHOWS_NONE || !known.is_open || !VOTES) {
        return known.status != SHOWS_NONE;
    }
    var shows = false;
    for (var i = thread; i < BLOCK_ROWS * BLOCK_KEYS; i += THREADS) {
        let row = row_of(item, block, i / BLOCK_KEYS);
        let key = first_key + i % BLOCK_KEYS;
        if (key >= max(first_key, row.keys.start) && key < min(end_key, row.keys.end)
            && is_visible(pair_of(item, row.head, row.row, key))) {
            shows = true;
            break;
        }
    }
    return any_thread(shows, thread);
}

// Tiles that are skipped at once: twice as many each time that the terms hide them all, else a quarter.
fn next_span(span: u32, is_hidden: bool, least: u32) -> u32 {
    return select(max(span / 4u, 2u * least), span * 2u, is_hidden);
}

// First key from `first` on whose tile is not skipped; past the end if there is none. A loop of its own, because
// processors that run lanes as vectors execute what a branch skips. To be called like tile_shows_any.
fn next_shown(item: Item, block: Block, first: u32, end: u32, thread: u32) -> u32 {
    var at = first;
    if (has_visible_terms()) {
        var span = 2u * BLOCK_KEYS;
        while (at < end) {
            if (tile_shows_any(item, block, at, end, thread)) {
                break;
            }
            at += BLOCK_KEYS;
            var is_hidden = true;
            while (is_hidden && at < end) {
                is_hidden = told(item, block, BLOCK_ROWS, at, min(at + span, end)).status == SHOWS_NONE;
                at += select(0u, span, is_hidden);
                span = next_span(span, is_hidden, BLOCK_KEYS);
            }
        }
    }
    return at;
}
