// Defines: main: appends new keys, rotated, and values to the cache, in its storage type; rotates queries in place.
// Expects: cache/params.wgsl; state, take_key, take_value, rotate_query, store_key, store_value; consts KEY_UNIT,
//          VALUE_UNIT, QUERY_UNIT, HAS_QUERY.
// See: src/cache/host.rs (KvCache::append).
//
// Runs after `advance`: an item that now has `length` keys gets the last `added` of the seq_len new ones, the last of
// them at length - 1. So token t has position length - seq_len + t, as under a causal mask aligned to the bottom right.
// A thread takes a unit of elements: one f32, a word of two halves, or a block of 32; of rows that are stored rotated, 32
// elements of a rotated block (cache/hadamard.wgsl).

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
                rotate_query(row_at(cache.query_strides, token, head), index % units, u32(position));
            }
        }
        return;
    }
    let is_value = index >= keys;
    let within = select(index, index - keys, is_value);
    let units = select(key_units, value_units, is_value);
    let unit = within % units;
    let head = within / units % cache.num_kv_heads;
    let token = within / units / cache.num_kv_heads;
    let position = position_of(token);
    let slot = cache.first_slot + token / cache.seq_len;
    if (position < 0 || token % cache.seq_len + state[cache.slots + slot] < cache.seq_len) {
        return;
    }
    let entry = 4u * cache.slots + slot * cache.pages_per_slot + u32(position) / cache.page_size;
    let place = vec2<u32>(state[entry], u32(position) % cache.page_size);
    if (is_value) {
        var numbers: array<f32, VALUE_UNIT>;
        let row = row_at(cache.value_strides, token, head);
        take_value(&numbers, row, unit, u32(position));
        let steps = cache.value_pool_strides;
        store_value(place.x * steps.x + head * steps.y + place.y * steps.z + unit * VALUE_UNIT, &numbers);
    } else {
        var numbers: array<f32, KEY_UNIT>;
        let row = row_at(cache.key_strides, token, head);
        take_key(&numbers, row, unit, u32(position));
        let steps = cache.key_pool_strides;
        store_key(place.x * steps.x + head * steps.y + place.y * steps.z + unit * KEY_UNIT, &numbers);
    }
}

// Position of a token, counted over the batch; below 0 in front of an item that is shorter than seq_len.
fn position_of(token: u32) -> i32 {
    if (token >= cache.batch * cache.seq_len) {
        return -1;
    }
    return i32(state[cache.first_slot + token / cache.seq_len]) - i32(cache.seq_len) + i32(token % cache.seq_len);
}

fn row_at(strides: vec4<u32>, token: u32, head: u32) -> u32 {
    return strides.w + token / cache.seq_len * strides.x + head * strides.y + token % cache.seq_len * strides.z;
}
