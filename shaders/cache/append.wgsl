// Defines: main: appends new keys, rotated, and values to the cache, in its storage type; rotates queries in place.
// Expects: cache/params.wgsl, cache/append_unit.wgsl; angle_line, rotate_query; consts KEY_UNIT, VALUE_UNIT, QUERY_UNIT, HAS_QUERY.
// See: cache/append_rows.wgsl, which also normalises. A thread takes a unit of elements.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    var index = cache_thread(id, thread);
    if (index == NO_WORK) {
        return;
    }
    let tokens = cache.batch * cache.seq_len;
    let key_units = cache.head_dim / KEY_UNIT;
    let value_units = cache.head_dim_v / VALUE_UNIT;
    let keys = tokens * cache.num_kv_heads * key_units;
    let values = tokens * cache.num_kv_heads * value_units;
    if (index >= keys + values) {
        if (HAS_QUERY) {
            index -= keys + values;
            let units = cache.pairs / QUERY_UNIT;
            let head = index / units % cache.num_heads;
            let token = index / units / cache.num_heads;
            let position = position_of(token);
            if (token < tokens && position >= 0) {
                rotate_query(row_at(cache.query_strides, token, head), index % units, angle_line(token, u32(position)));
            }
        }
        return;
    }
    let is_value = index >= keys;
    let within = select(index, index - keys, is_value);
    let units = select(key_units, value_units, is_value);
    append_unit(is_value, within / units / cache.num_kv_heads, within / units % cache.num_kv_heads, within % units);
}
