// Defines: CacheParams, the uniform of every cache kernel; the words of the cache's state; cache_workgroup.
// Expects: nothing. The bindings are declared by the prelude.
// Twin: src/shader/cache.rs, field by field; src/gpu/cache.rs (State).
//
// The state is words, for each slot one of: how many keys it has (what attention sees); how many a step adds; how many it has pages for;
// whether a step would have had more. Then the page table, [slots, pages_per_slot].

struct CacheParams {
    // Steps in numbers along item, head and token of new keys, new values, queries; the fourth is the first number.
    key_strides: vec4<u32>,
    value_strides: vec4<u32>,
    query_strides: vec4<u32>,
    // Steps in numbers along page, head and slot of the pools.
    key_pool_strides: vec4<u32>,
    value_pool_strides: vec4<u32>,
    batch: u32,
    seq_len: u32,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    head_dim_v: u32,
    // Slots of the cache, and the one that item 0 is.
    slots: u32,
    first_slot: u32,
    page_size: u32,
    pages_per_slot: u32,
    // Numbers of a head that are rotated, halved.
    pairs: u32,
    // What is copied: pairs of pages, and words of a page.
    copies: u32,
    page_words: u32,
    // The grid is linear; y counts lines of this width.
    grid_width: u32,
    workgroups: u32,
    padding: u32,
}

const THREADS: u32 = 64u;
// More than any work there is: every kernel turns it away.
const NO_WORK: u32 = 0xffffffffu;

// The thread's number in the whole grid.
fn cache_thread(id: vec3<u32>, thread: u32) -> u32 {
    let workgroup = id.x + id.y * cache.grid_width;
    return select(NO_WORK, workgroup * THREADS + thread, workgroup < cache.workgroups);
}
