// Defines: main: lengths and page table, as attention reads them, from FlashInfer's form of them. One thread an entry of the table.
// Expects: cache/params.wgsl; state (read_write), indptr, indices, last_page_len.
// Twin: src/paged.rs (PageTable::from_indices).
//
// Of the params: `slots` and `first_slot` are the words of the state from which on lengths and table lie, `copies` the pages of the pool,
// `page_words` the longest length that there may be. What from_indices refuses is an item of length 0 here: a shader cannot complain.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = cache_thread(id, thread);
    let item = index / cache.pages_per_slot;
    let entry = index % cache.pages_per_slot;
    if (item >= cache.batch) {
        return;
    }
    let start = indptr[item];
    let end = indptr[item + 1u];
    var page = 0xffffffffu;
    if (start <= end && end <= arrayLength(&indices) && entry < end - start) {
        page = indices[start + entry];
    }
    state[cache.first_slot + index] = page;
    if (entry > 0u) {
        return;
    }
    var length = 0u;
    if (start < end && end <= arrayLength(&indices) && end - start <= cache.pages_per_slot) {
        let last = last_page_len[item];
        let fits = last >= 1u && last <= cache.page_size && (end - start - 1u) * cache.page_size + last <= cache.page_words;
        length = select(0u, (end - start - 1u) * cache.page_size + last, fits);
        for (var at = start; at < end; at++) {
            if (indices[at] >= cache.copies) {
                length = 0u;
            }
        }
    }
    state[cache.slots + item] = length;
}
