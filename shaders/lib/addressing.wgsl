// Defines: addresses query_row, key_row, value_row, output_row, lse_at; workgroup_index; block_of: a workgroup's block.
// Expects: params, Item, has_flag, cache_word(index) -> u32.
// See: src/problem/tensor.rs (Strides), src/problem/paged.rs (Paged).

// Words per row that the backward preprocess writes: m, 1 / l, delta.
const ROW_STATS: u32 = 3u;

// Index of workgroups past the end of the work, in the grid's last line; every kernel returns for it.
const NO_WORK: u32 = 0xffffffffu;

fn workgroup_index(id: vec3<u32>) -> u32 {
    let index = params.first_workgroup + id.x + id.y * params.grid_width;
    return select(NO_WORK, index, index < params.end_workgroup);
}

struct ItemBlock {
    batch: u32,
    block: u32, // index of a block of `size` rows or keys in the item
}

// Block at a place of params.item_blocks. Varlen items share the places: item i starts at floor(cu[i] * pack / size) +
// i and always has enough. The grid depends on tokens alone, the item on lengths that a device may have written.
fn block_of(batch: u32, place: u32, cu_seqlens: u32, pack: u32, size: u32) -> ItemBlock {
    if (!has_flag(FLAG_VARLEN)) {
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

// Indices of a key along the first and third axis of key and value: item and token, or page and token slot.
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

// Index in [batch, num_heads, seq_len_q], or in [tokens, num_heads] for varlen sequences.
fn lse_at(item: Item, head: u32, row: u32) -> u32 {
    if (has_flag(FLAG_VARLEN)) {
        return (item.first_row + row) * params.num_heads + head;
    }
    return (item.batch * params.num_heads + head) * params.seq_len_q + row;
}
