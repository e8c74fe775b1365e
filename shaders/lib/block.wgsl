// Defines: Block, locate: which rows of which head and batch item a workgroup of a fused kernel computes; Row, row_of; KeyRange, key_range;
//          tile_shows_any: whether a tile has anything to see, where that is not arithmetic; store_row_end: normalisation, sink and lse of a finished row;
//          steps_at_once: of a loop over the vec4s of a row.
// Expects: params, Item, Interval, lse_at, store_lse, mask_at; consts THREADS, BLOCK_ROWS, BLOCK_KEYS.
// Twin: src/plan/fused.rs (the size of the grid).

// The rows of `pack` query heads that read the same keys are rows of one block: virtual row r is row r / pack of head r % pack.
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
    // Keys in here are visible to every row of the block, as far as arithmetic tells.
    clear_start: u32,
    clear_end: u32,
}

// Of a loop over so many vec4s, at most `most`, a power of two, so that whole groups of steps make up the loop.
fn steps_at_once(vecs: u32, most: u32) -> u32 {
    return select(min(most, 1u << firstTrailingBit(vecs)), 1u, IS_GENERAL);
}

// Blocks of a head run from the last to the first: under a causal mask the long ones start early.
fn locate(index: u32) -> Block {
    let blocks = (params.pack * params.seq_len_q + BLOCK_ROWS - 1u) / BLOCK_ROWS;
    let heads = params.num_heads / params.pack;
    let split = params.first_part + (index / blocks) % params.splits;
    let head = (index / (blocks * params.splits)) % heads;
    return Block(index / (blocks * params.splits * heads), head * params.pack, (blocks - 1u - index % blocks) * BLOCK_ROWS, split);
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

// The keys that any row of the block may see, cut down to this workgroup's split.
fn key_range(item: Item, block: Block) -> KeyRange {
    let first = interval_of(item, block.first_row / params.pack);
    let last = interval_of(item, min((block.first_row + BLOCK_ROWS - 1u) / params.pack, item.rows - 1u));
    var range = KeyRange(max(first.start, params.key_start), min(last.end, params.key_end), last.start, first.end);
    if (params.splits > 1u) {
        let tiles = (max(range.end, range.start) - range.start + BLOCK_KEYS - 1u) / BLOCK_KEYS;
        let size = (tiles + params.splits - 1u) / params.splits * BLOCK_KEYS;
        range.start = range.start + (block.split - params.first_part) * size;
        range.end = min(range.end, range.start + size);
    }
    return range;
}

var<workgroup> pairs_seen: atomic<u32>; // whether any thread saw a visible pair
var<workgroup> shows_any: u32; // the same, as all threads read it

// Whether mask and documents let any row of the block see any key of the tile. A tile that shows nothing is skipped whole.
// Every thread of the workgroup calls, in uniform control flow, and all get the same answer.
fn tile_shows_any(item: Item, block: Block, first_key: u32, end_key: u32, thread: u32) -> bool {
    if (!has_mask() && !has_documents()) {
        return true;
    }
    if (thread == 0u) {
        atomicStore(&pairs_seen, 0u);
    }
    workgroupBarrier(); // between clearing and setting pairs_seen
    for (var i = thread; i < BLOCK_ROWS * BLOCK_KEYS; i += THREADS) {
        let row = row_of(item, block, i / BLOCK_KEYS);
        let key = first_key + i % BLOCK_KEYS;
        if (key >= max(first_key, row.keys.start) && key < min(end_key, row.keys.end) && is_shown(item, row.head, row.row, key)) {
            atomicStore(&pairs_seen, 1u);
            break;
        }
    }
    workgroupBarrier(); // between setting and reading pairs_seen
    if (thread == 0u) {
        shows_any = atomicLoad(&pairs_seen);
    }
    return workgroupUniformLoad(&shows_any) != 0u;
}

// Takes a row's running maximum and sum; writes its lse and returns the factor on its unnormalised output.
fn store_row_end(item: Item, block: Block, row: Row, maximum: f32, sum: f32, writes_lse: bool) -> f32 {
    var top = maximum;
    var total = sum;
    var factor = 1.0;
    if (params.splits == 1u && has_flag(FLAG_SINKS)) {
        let sink = bitcast<f32>(table(params.table_sinks + row.head));
        top = max(maximum, sink);
        factor = exp(maximum - top);
        total = sum * factor + exp(sink - top);
    }
    if (writes_lse) {
        let lse = select(top + log(total), negative_infinity(), total == 0.0);
        store_lse(block.split * params.lse_split_stride + lse_at(item, row.head, row.row), lse);
    }
    return select(factor / total, 0.0, sum == 0.0);
}
