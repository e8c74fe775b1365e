// Defines: Invocation; thread_of: index of a thread in its workgroup, by lane; subgroups_hold: true if lanes suffice.
// Expects: const THREADS.
// See: docs/architecture.md, "Numerics".
//
// No API promises that lanes are in the order of local_invocation_index, or that subgroups are full. So subgroups are
// numbered as they arrive, and a thread's index follows from its subgroup and lane. If subgroups are not full, the
// index is local_invocation_index; then, or if they are too small, the caller uses workgroup memory.

struct Invocation {
    @builtin(local_invocation_index) index: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
}

var<workgroup> subgroups_seen: atomic<u32>; // subgroups that have taken a number
var<workgroup> full_lanes: u32; // threads of a subgroup where all are full, else 0

fn thread_of(at: Invocation) -> u32 {
    if (at.index == 0u) {
        atomicStore(&subgroups_seen, 0u);
    }
    workgroupBarrier(); // between clearing and counting subgroups_seen
    let is_first = subgroupMin(at.lane) == at.lane;
    var number = 0u;
    if (is_first) {
        number = atomicAdd(&subgroups_seen, 1u);
    }
    number = subgroupBroadcastFirst(number);
    workgroupBarrier(); // between counting and reading subgroups_seen
    if (at.index == 0u) {
        full_lanes = select(0u, at.lanes, atomicLoad(&subgroups_seen) * at.lanes == THREADS);
    }
    return select(at.index, number * at.lanes + at.lane, workgroupUniformLoad(&full_lanes) > 0u);
}

fn subgroups_hold(lanes: u32) -> bool {
    return workgroupUniformLoad(&full_lanes) >= lanes;
}
