// Defines: main: copies pages within a pool. One thread per word.
// Expects: cache/params.wgsl; page_pairs (from, to), pool (read_write).
// See: src/cache/host.rs (copy_slots).

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = cache_thread(id, thread);
    if (index / cache.page_words >= cache.copies) {
        return;
    }
    let pages = page_pairs[index / cache.page_words];
    pool[pages.y * cache.page_words + index % cache.page_words] =
        pool[pages.x * cache.page_words + index % cache.page_words];
}
