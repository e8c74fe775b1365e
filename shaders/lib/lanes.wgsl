// Defines: any_lane: a vote of a subgroup; finite_part, special_part: a vec4's finite numbers, and its others.
// Expects: const LANES, the threads of a subgroup.
// Twin: none.

// Whether any lane says so; the same answer for all, and all lanes must be there.
fn any_lane(yes: bool) -> bool {
    var word = select(0u, 1u, yes);
    for (var step = 1u; step < LANES; step <<= 1u) {
        word |= subgroupShuffleXor(word, step);
    }
    return subgroupBroadcastFirst(word) != 0u;
}

// The numbers of v that are finite, 0 for the others.
fn finite_part(v: vec4<f32>) -> vec4<f32> {
    return select(v, vec4<f32>(0.0), (bitcast<vec4<u32>>(v) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
}

// The numbers of v that are infinite or NaN, 0 for the others.
fn special_part(v: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(0.0), v, (bitcast<vec4<u32>>(v) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
}
