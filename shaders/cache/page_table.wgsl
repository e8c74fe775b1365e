// Defines: main: converts FlashInfer's page table to the lengths and page table of attention. One thread per entry.
// Expects: cache/params.wgsl; state (read_write), indptr, indices, last_page_len.
// See: src/problem/paged.rs (PageTable::from_indices).
//
// Params: `slots` and `first_slot` are the first words of lengths and table in the state, `copies` the pages of the
// pool, `page_words` the maximum length. Items that from_indices refuses get length 0: a shader cannot report errors.

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
        let fits = last >= 1u && last <= cache.page_size
            && (end - start - 1u) * cache.page_size + last <= cache.page_words;
        length = select(0u, (end - start - 1u) * cache.page_size + last, fits);
        for (var at = start; at < end; at++) {
            if (indices[at] >= cache.copies) {
                length = 0u;
            }
        }
    }
    state[cache.slots + item] = length;
}
