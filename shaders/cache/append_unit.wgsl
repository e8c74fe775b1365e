// Defines: append_unit: writes a unit of a new key or value to the cache; position_of, row_at.
// Expects: cache/params.wgsl; state, angle_line, take_key, take_value, store_key, store_value; consts KEY_UNIT, VALUE_UNIT.
// See: src/cache/host.rs (KvCache::append).
//
// Runs after `advance`: an item that now has `length` keys gets the last `added` of the seq_len new ones, the last of
// them at length - 1. So token t has position length - seq_len + t, as under a causal mask aligned to the bottom right.
// A unit is one f32, a word of two halves, or a block of 32; of rows that are stored rotated, 32 elements of a rotated
// block (cache/hadamard.wgsl).

fn append_unit(is_value: bool, token: u32, head: u32, unit: u32) {
    let position = position_of(token);
    let slot = cache.first_slot + token / cache.seq_len;
    if (position < 0 || token % cache.seq_len + state[cache.slots + slot] < cache.seq_len) {
        return;
    }
    let entry = 4u * cache.slots + slot * cache.pages_per_slot + u32(position) / cache.page_size;
    let place = vec2<u32>(state[entry], u32(position) % cache.page_size);
    let line = angle_line(token, u32(position));
    if (is_value) {
        var numbers: array<f32, VALUE_UNIT>;
        let row = row_at(cache.value_strides, token, head);
        take_value(&numbers, row, unit, line);
        let steps = cache.value_pool_strides;
        store_value(place.x * steps.x + head * steps.y + place.y * steps.z + unit * VALUE_UNIT, &numbers);
    } else {
        var numbers: array<f32, KEY_UNIT>;
        let row = row_at(cache.key_strides, token, head);
        take_key(&numbers, row, unit, line);
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
