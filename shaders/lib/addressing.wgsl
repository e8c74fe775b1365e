// Defines: where rows lie: query_row, key_row, value_row, output_row, lse_at; the linear grid: workgroup_index.
// Expects: params, Item.
// Twin: src/tensor.rs (Strides).

// The grid's last line may be longer than the work: those workgroups get an index that every kernel turns away.
const NO_WORK: u32 = 0xffffffffu;

fn workgroup_index(id: vec3<u32>) -> u32 {
    let index = params.first_workgroup + id.x + id.y * params.grid_width;
    return select(NO_WORK, index, index < params.end_workgroup);
}

fn row_start(offset: u32, strides: vec4<u32>, batch: u32, head: u32, seq: u32) -> u32 {
    return offset + batch * strides.x + head * strides.y + seq * strides.z;
}

fn query_row(item: Item, head: u32, row: u32) -> u32 {
    return row_start(params.offsets.x, params.query_strides, item.batch, head, item.first_row + row);
}

fn key_row(item: Item, kv_head: u32, key: u32) -> u32 {
    return row_start(params.offsets.y, params.key_strides, item.batch, kv_head, item.first_key + key);
}

fn value_row(item: Item, kv_head: u32, key: u32) -> u32 {
    return row_start(params.offsets.z, params.value_strides, item.batch, kv_head, item.first_key + key);
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
