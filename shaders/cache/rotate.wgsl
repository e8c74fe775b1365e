// Defines: main: rotates rows [tokens, num_heads, head_dim] in place, each token by a position of its own.
// Expects: cache/params.wgsl, cache/rotate_query.wgsl; positions.
// See: src/rotary.rs (Rotary::apply_tokens).

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = cache_thread(id, thread);
    let units = cache.pairs / QUERY_UNIT;
    let head = index / units % cache.num_heads;
    let token = index / units / cache.num_heads;
    if (token >= cache.seq_len) {
        return;
    }
    let at = cache.query_strides.w + head * cache.query_strides.y + token * cache.query_strides.z;
    rotate_query(at, index % units, positions[token]);
}
