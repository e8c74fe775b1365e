// Defines: main: gathers the angles of tokens by positions of their own. One thread per token and pair.
// Expects: cache/params.wgsl; positions [coordinates, tokens], tables, angles (read_write).
// See: src/rotary/mod.rs (Rotary::apply_at); src/rotary/sections.rs.
//
// Params: `seq_len` is the number of tokens, `page_size` that of positions in the tables, `key_strides` the sections of
// pairs and their kind: 0 without, 1 in chunks, 2 interleaved. A position past the tables makes NaN: a shader cannot
// report errors.

fn coordinate(pair: u32) -> u32 {
    let sections = cache.key_strides;
    if (sections.w == 1u) {
        return select(select(2u, 1u, pair < sections.x + sections.y), 0u, pair < sections.x);
    }
    let own = pair % 3u;
    let is_own = sections.w == 2u && pair < 3u * select(sections.y, sections.z, own == 2u);
    return select(0u, own, is_own);
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = cache_thread(id, thread);
    let pair = index % cache.pairs;
    let token = index / cache.pairs;
    if (token >= cache.seq_len) {
        return;
    }
    let position = positions[coordinate(pair) * cache.seq_len + token];
    let angle = bitcast<vec2<u32>>(tables[min(position, cache.page_size - 1u) * cache.pairs + pair]);
    angles[index] = bitcast<vec2<f32>>(select(angle, vec2<u32>(0x7fc00000u), position >= cache.page_size));
}
