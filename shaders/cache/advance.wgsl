// Defines: main: a step begins: every slot gets the keys that are to be appended to it. One thread a slot.
// Expects: cache/params.wgsl; state (read_write).
// Twin: src/gpu/cache.rs (DeviceCache::extend), which counts the same on the host.
//
// A slot without pages for all of them stays as it is, and says so.

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
