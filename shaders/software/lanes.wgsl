// Defines: any_lane: a vote across the subgroup.
// Expects: const LANES, the threads of a subgroup.
// See: none.

// True in all lanes if `yes` is true in any. All lanes must be active.
fn any_lane(yes: bool) -> bool {
    var word = select(0u, 1u, yes);
    for (var step = 1u; step < LANES; step <<= 1u) {
        word |= subgroupShuffleXor(word, step);
    }
    return subgroupBroadcastFirst(word) != 0u;
}
