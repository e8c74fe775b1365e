// Defines: for dK and dV, owning keys and streaming the rows of all their query heads: work_of; owned; stream_range;
//          VO_IS_ONE; own_qk, own_vo, stream_vo; store_qk, store_vo.
// Expects: lib/*, rows_of_group.wgsl, load_d_output, load_key, load_value, store_d_key, store_d_value; consts BLOCK_OWN.
// See: own_rows.wgsl, which owns rows and streams keys.

const VO_IS_ONE: bool = false;

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

// Rows of this step that may see an owned key.
fn stream_range(item: Item, work: Work) -> Interval {
    let seeing = rows_that_see(item, work.first, min(work.first + BLOCK_OWN, item.stored_keys));
    return Interval(max(seeing.start, params.range_start), min(seeing.end, params.range_end));
}

fn own_qk(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    return load_key(key_row(item, work.kv_head, index), column * 4u);
}

fn own_vo(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    return load_value(value_row(item, work.kv_head, index), column * 4u);
}

fn stream_vo(item: Item, work: Work, head: u32, index: u32, column: u32) -> vec4<f32> {
    return load_d_output(output_row(item, head, index), column * 4u);
}

fn store_qk(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
    store_d_key(key_row(item, work.kv_head, index), column * 4u, bitcast<vec4<u32>>(sum));
}

fn store_vo(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
    store_d_value(value_row(item, work.kv_head, index), column * 4u, bitcast<vec4<u32>>(sum));
}
