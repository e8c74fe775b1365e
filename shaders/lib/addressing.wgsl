// Defines: where rows lie: query_row, key_row, value_row, output_row, lse_at; the linear grid: workgroup_index; block_of: a workgroup's item and block.
// Expects: params, Item, has_flag, cache_word(index) -> u32.
// See: src/tensor.rs (Strides), src/paged.rs (Paged).

// Words of a row between the kernels of a backward pass: m, 1 / l, delta.
const ROW_WORDS: u32 = 3u;

// The grid's last line may be longer than the work: those workgroups get an index that every kernel turns away.
const NO_WORK: u32 = 0xffffffffu;

fn workgroup_index(id: vec3<u32>) -> u32 {
    let index = params.first_workgroup + id.x + id.y * params.grid_width;
    return select(NO_WORK, index, index < params.end_workgroup);
}

struct ItemBlock {
    batch: u32,
    block: u32, // of `size` rows or keys of that item
}

// The block at a place of params.item_blocks. Varlen sequences share the places, item i those from floor(cu[i] * pack / size) + i on, as many as it
// may need wherever it starts: the grid follows from the tokens alone, and the item from the lengths that a device may have written.
fn block_of(batch: u32, place: u32, cu_seqlens: u32, pack: u32, size: u32) -> ItemBlock {
    if (!has_flag(FLAG_PACKED)) {
        return ItemBlock(batch, place);
    }
    var item = 0u;
    var end = params.batch;
    while (item + 1u < end) {
        let middle = (item + end) / 2u;
        if (table(cu_seqlens + middle) * pack / size + middle <= place) {
            item = middle;
        } else {
            end = middle;
        }
    }
    return ItemBlock(item, place - (table(cu_seqlens + item) * pack / size + item));
}

fn row_start(offset: u32, strides: vec4<u32>, batch: u32, head: u32, seq: u32) -> u32 {
    return offset + batch * strides.x + head * strides.y + seq * strides.z;
}

fn query_row(item: Item, head: u32, row: u32) -> u32 {
    return row_start(params.offsets.x, params.query_strides, item.batch, head, item.first_row + row);
}

// Where a key lies along the first and the third axis of key and value: item and token, or page and slot.
fn place_of(item: Item, key: u32) -> vec2<u32> {
    if (is_paged()) {
        let page = cache_word(params.table_page_table + item.batch * params.pages_per_item + key / params.page_size);
        return vec2<u32>(page, key % params.page_size);
    }
    return vec2<u32>(item.batch, item.first_key + key);
}

fn key_row(item: Item, kv_head: u32, key: u32) -> u32 {
    let place = place_of(item, key);
    return row_start(params.offsets.y, params.key_strides, place.x, kv_head, place.y);
}

fn value_row(item: Item, kv_head: u32, key: u32) -> u32 {
    let place = place_of(item, key);
    return row_start(params.offsets.z, params.value_strides, place.x, kv_head, place.y);
}

fn output_row(item: Item, head: u32, row: u32) -> u32 {
    return row_start(params.offsets.w, params.output_strides, item.batch, head, item.first_row + row);
}

// [batch, num_heads, seq_len_q]; of packed sequences [tokens, num_heads].
fn lse_at(item: Item, head: u32, row: u32) -> u32 {
    if (has_flag(FLAG_PACKED)) {
        return (item.first_row + row) * params.num_heads + head;
    }
    return (item.batch * params.num_heads + head) * params.seq_len_q + row;
}
