// Defines: for dK and dV, owning keys and streaming the rows of all their query heads: Work, work_of; owned; passes,
//          pass_head; stream_range; own_qk, own_vo, stream_qk, stream_vo; row_of_pair, key_of_pair; store_qk, store_vo.
// Expects: lib/*, load_query, load_d_output, load_key, load_value, store_d_key, store_d_value; consts BLOCK_OWN.
// See: own_rows.wgsl, which owns rows and streams keys.

const OWNS_ROWS: bool = false;

// `exists` is false past the ends of the grid and of an item.
struct Work {
    exists: bool,
    item: Item,
    kv_head: u32,
    first: u32,
}

// Blocks of a head run from first to last: under a causal mask the long ones start early.
fn work_of(workgroup: vec3<u32>) -> Work {
    let place = workgroup_index(workgroup);
    let index = select(place, 0u, place == NO_WORK);
    let places = params.item_blocks;
    let heads = params.num_heads / params.group;
    let at = block_of(index / places / heads, index % places, params.table_cu_seqlens_kv, 1u, BLOCK_OWN);
    let item = item_of(at.batch);
    let first = at.block * BLOCK_OWN;
    return Work(place != NO_WORK && first < owned(item), item, index / places % heads, first);
}

fn owned(item: Item) -> u32 {
    return item.stored_keys;
}

fn passes() -> u32 {
    return params.group;
}

fn pass_head(work: Work, pass_index: u32) -> u32 {
    return work.kv_head * params.group + pass_index;
}

// Rows of this step that may see an owned key: from the first whose interval ends after the first owned key to the last
// whose interval starts before the end of the owned keys. Bounds of intervals never decrease.
fn stream_range(item: Item, work: Work) -> Interval {
    let end = min(work.first + BLOCK_OWN, item.stored_keys);
    var range = Interval(0u, 0u);
    var above = item.rows;
    while (range.start < above) {
        let middle = (range.start + above) / 2u;
        if (interval_of(item, middle).end > work.first) {
            above = middle;
        } else {
            range.start = middle + 1u;
        }
    }
    range.end = range.start;
    above = item.rows;
    while (range.end < above) {
        let middle = (range.end + above) / 2u;
        if (interval_of(item, middle).start < end) {
            range.end = middle + 1u;
        } else {
            above = middle;
        }
    }
    return Interval(max(range.start, params.range_start), min(range.end, params.range_end));
}

fn own_qk(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    return load_key(key_row(item, work.kv_head, index), column * 4u);
}

fn own_vo(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    return load_value(value_row(item, work.kv_head, index), column * 4u);
}

fn stream_qk(item: Item, work: Work, head: u32, index: u32, column: u32) -> vec4<f32> {
    return load_query(query_row(item, head, index), column * 4u) * params.scale;
}

fn stream_vo(item: Item, work: Work, head: u32, index: u32, column: u32) -> vec4<f32> {
    return load_d_output(output_row(item, head, index), column * 4u);
}

fn row_of_pair(own: u32, stream: u32) -> u32 {
    return stream;
}

fn key_of_pair(own: u32, stream: u32) -> u32 {
    return own;
}

fn store_qk(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
    store_d_key(key_row(item, work.kv_head, index), column * 4u, bitcast<vec4<u32>>(sum));
}

fn store_vo(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
    store_d_value(value_row(item, work.kv_head, index), column * 4u, bitcast<vec4<u32>>(sum));
}
