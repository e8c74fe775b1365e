// Defines: for dQ, owning query rows of a head and streaming the keys: Work, work_of; owned; passes, pass_head;
//          stream_range; own_qk, own_vo, stream_qk, stream_vo; row_of_pair, key_of_pair; store_qk, store_vo.
// Expects: lib/*, load_query, load_d_output, load_key, load_value, store_d_query; consts BLOCK_OWN.
// See: own_keys.wgsl, which owns keys and streams rows.
//
// Side `a` (qk) is as wide as a query, side `b` (vo) as a value.

const OWNS_ROWS: bool = true;
const VO_IS_ONE: bool = false;

// `exists` is false past the ends of the grid and of an item.
struct Work {
    exists: bool,
    item: Item,
    head: u32,
    kv_head: u32,
    first: u32,
}

// Blocks of a head run from last to first: under a causal mask the long ones start early.
fn work_of(workgroup: vec3<u32>) -> Work {
    let place = workgroup_index(workgroup);
    let index = select(place, 0u, place == NO_WORK);
    let places = params.item_blocks;
    let head = index / places % params.num_heads;
    let at = block_of(index / places / params.num_heads, places - 1u - index % places, params.table_cu_seqlens_q, 1u,
        BLOCK_OWN);
    let item = item_of(at.batch);
    let first = at.block * BLOCK_OWN;
    return Work(place != NO_WORK && first < owned(item), item, head, head / params.group, first);
}

fn owned(item: Item) -> u32 {
    return item.rows;
}

// Passes over the streamed vectors, one per query head.
fn passes() -> u32 {
    return 1u;
}

fn pass_head(work: Work, pass_index: u32) -> u32 {
    return work.head;
}

// Keys of this step that some owned row may see.
fn stream_range(item: Item, work: Work) -> Interval {
    let last = interval_of(item, min(work.first + BLOCK_OWN, item.rows) - 1u);
    return Interval(max(interval_of(item, work.first).start, params.range_start), min(last.end, params.range_end));
}

fn own_qk(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    return load_query(query_row(item, work.head, index), column * 4u) * params.scale;
}

fn own_vo(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    return load_d_output(output_row(item, work.head, index), column * 4u);
}

fn stream_qk(item: Item, work: Work, head: u32, index: u32, column: u32) -> vec4<f32> {
    return load_key(key_row(item, work.kv_head, index), column * 4u);
}

fn stream_vo(item: Item, work: Work, head: u32, index: u32, column: u32) -> vec4<f32> {
    return load_value(value_row(item, work.kv_head, index), column * 4u);
}

fn row_of_pair(own: u32, stream: u32) -> u32 {
    return own;
}

fn key_of_pair(own: u32, stream: u32) -> u32 {
    return stream;
}

fn store_qk(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
    store_d_query(query_row(item, work.head, index), column * 4u, bitcast<vec4<u32>>(sum * params.scale));
}

fn store_vo(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
}
