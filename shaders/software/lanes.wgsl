// Defines: any_thread: a vote across the workgroup, which is one subgroup; VOTES: whether there are votes.
// Expects: const LANES, the threads of a subgroup.
// See: shaders/lib/vote.wgsl, the same for workgroups of any size. Its barriers would cost more here: a driver that runs lanes
//      as vectors saves all variables at each.

const VOTES: bool = true;

// True in all lanes if `yes` is true in any. All lanes must be active.
fn any_thread(yes: bool, lane: u32) -> bool {
    var word = select(0u, 1u, yes);
    for (var step = 1u; step < LANES; step <<= 1u) {
        word |= subgroupShuffleXor(word, step);
    }
    return subgroupBroadcastFirst(word) != 0u;
}
