// Defines: any_lane: a vote of a subgroup.
// Expects: const LANES, the threads of a subgroup.
// See: none.

// Whether any lane says so; the same answer for all, and all lanes must be there.
fn any_lane(yes: bool) -> bool {
    var word = select(0u, 1u, yes);
    for (var step = 1u; step < LANES; step <<= 1u) {
        word |= subgroupShuffleXor(word, step);
    }
    return subgroupBroadcastFirst(word) != 0u;
}
