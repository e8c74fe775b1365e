// Defines: main: copies single tokens within the pools, one after the other. One thread per word of a token.
// Expects: cache/params.wgsl; moves (from, to), numbers of token slots; key_words, value_words (read_write).
// See: src/cache/keep.rs (Compaction); src/cache/host.rs (KvCache::keep).
//
// Strides of the pools are in words here, the fourth is that of a row. A slot that one copy reads may be written by a later
// one. Every copy of a word is made by the same thread, in order, so no other can come between. The list ends at the
// first pair of equal slots, or at `copies`.

fn place(strides: vec4<u32>, slot: u32) -> u32 {
    return slot / cache.page_size * strides.x + slot % cache.page_size * strides.z;
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = cache_thread(id, thread);
    let keys = cache.num_kv_heads * cache.key_pool_strides.w;
    let values = cache.num_kv_heads * cache.value_pool_strides.w;
    if (index >= keys + values) {
        return;
    }
    let is_value = index >= keys;
    let within = select(index, index - keys, is_value);
    let strides = select(cache.key_pool_strides, cache.value_pool_strides, is_value);
    let word = within / strides.w * strides.y + within % strides.w;
    for (var i = 0u; i < cache.copies; i++) {
        let slots = moves[i];
        if (slots.x == slots.y) {
            break;
        }
        let source = place(strides, slots.x) + word;
        let destination = place(strides, slots.y) + word;
        if (is_value) {
            value_words[destination] = value_words[source];
        } else {
            key_words[destination] = key_words[source];
        }
    }
}
