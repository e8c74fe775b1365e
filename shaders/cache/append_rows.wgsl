// Defines: main: appends new keys, normalised and rotated, and values to the cache; normalises and rotates queries in place.
// Expects: cache/params.wgsl, cache/append_unit.wgsl, cache/norm.wgsl; angle_line, rotate_query, store_query; consts KEY_UNIT,
//          VALUE_UNIT, QUERY_UNIT, HAS_QUERY.
// See: cache/append.wgsl. A workgroup takes a row, because a norm needs all of it.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = id.x + id.y * cache.grid_width;
    if (workgroup >= cache.workgroups) {
        return;
    }
    let keys = cache.batch * cache.seq_len * cache.num_kv_heads;
    if (workgroup >= 2u * keys) {
        if (HAS_QUERY) {
            let row = workgroup - 2u * keys;
            finish_query(row / cache.num_heads, row % cache.num_heads, thread);
        }
        return;
    }
    let is_value = workgroup >= keys;
    let row = select(workgroup, workgroup - keys, is_value);
    let token = row / cache.num_kv_heads;
    let head = row % cache.num_kv_heads;
    if (!is_value) {
        measure_row(false, row_at(cache.key_strides, token, head), thread);
    }
    let units = select(cache.head_dim / KEY_UNIT, cache.head_dim_v / VALUE_UNIT, is_value);
    for (var unit = thread; unit < units; unit += THREADS) {
        append_unit(is_value, token, head, unit);
    }
}

// Normalises a query, and rotates it. Threads write what no other reads.
fn finish_query(token: u32, head: u32, thread: u32) {
    let at = row_at(cache.query_strides, token, head);
    measure_row(true, at, thread);
    storageBarrier(); // every element of the row has been read before one is written
    let position = position_of(token);
    if (position < 0) {
        return;
    }
    for (var unit = thread; unit < cache.pairs / QUERY_UNIT; unit += THREADS) {
        rotate_query(at, unit, angle_line(token, u32(position)));
    }
    // The elements of no pair: from `pairs` on up to the second half of the pairs, and after that.
    let gap = cache.distance - cache.pairs;
    for (var rest = thread * QUERY_UNIT; rest < cache.head_dim - 2u * cache.pairs; rest += THREADS * QUERY_UNIT) {
        let i = rest + select(2u * cache.pairs, cache.pairs, rest < gap);
        var numbers: array<f32, QUERY_UNIT>;
        for (var n = 0u; n < QUERY_UNIT; n++) {
            numbers[n] = load_query(at + i + n);
        }
        store_query(at + i, &numbers);
    }
}
