// Defines: main: start of a step: every slot grows by the keys that will be appended to it. One thread per slot.
// Expects: cache/params.wgsl; state (read_write).
// See: src/cache/ledger.rs (Ledger::extend), which counts the lengths on the host.
//
// A slot without pages for all of its new keys keeps its length, adds none and sets its overflow word.

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = cache_thread(id, thread);
    if (slot >= cache.slots) {
        return;
    }
    let length = state[slot] + state[cache.slots + slot];
    if (length <= state[2u * cache.slots + slot]) {
        state[slot] = length;
    } else {
        state[cache.slots + slot] = 0u;
        state[3u * cache.slots + slot] = 1u;
    }
}
