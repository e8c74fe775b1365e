// Defines: CacheParams, the uniform of every cache kernel; THREADS, NO_WORK, cache_thread.
// Expects: nothing. The bindings are declared by the prelude.
// See: src/wgsl/cache.rs, field by field; src/cache/ledger.rs (State).
//
// The state is four words per slot, as arrays over the slots: visible keys; keys that a step adds; keys that its pages
// hold; 1 if a step had more keys than fit. The page table, [slots, pages_per_slot], follows.

struct CacheParams {
    // Strides in elements along item, head and token of new keys, new values, queries; the fourth is the first element.
    key_strides: vec4<u32>,
    value_strides: vec4<u32>,
    query_strides: vec4<u32>,
    // Strides in elements along page, head and token slot of the pools.
    key_pool_strides: vec4<u32>,
    value_pool_strides: vec4<u32>,
    batch: u32,
    seq_len: u32,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    head_dim_v: u32,
    // Number of slots of the cache, and the slot of item 0.
    slots: u32,
    first_slot: u32,
    page_size: u32,
    pages_per_slot: u32,
    // Pairs of elements per head that are rotated.
    pairs: u32,
    // Pairs of pages to copy, and words of a page.
    copies: u32,
    page_words: u32,
    // The grid is linear; y counts lines of this width.
    grid_width: u32,
    workgroups: u32,
    // Distance between the elements of a pair, unless they are neighbours.
    distance: u32,
}

const THREADS: u32 = 64u;
// Index beyond any work; every kernel returns for it.
const NO_WORK: u32 = 0xffffffffu;

// Index of the thread in the whole grid.
fn cache_thread(id: vec3<u32>, thread: u32) -> u32 {
    let workgroup = id.x + id.y * cache.grid_width;
    return select(NO_WORK, workgroup * THREADS + thread, workgroup < cache.workgroups);
}
