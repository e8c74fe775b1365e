// Defines: Invocation; thread_of: the thread's number in its workgroup, by which shuffles find it; subgroups_hold: true if they do.
// Expects: const THREADS.
// See: docs/architecture.md, "Numerics".
//
// No API promises that lanes are in the order of local_invocation_index, nor that subgroups are full. So subgroups take numbers as they come, and a
// thread's number follows from its subgroup's and its lane. Where a subgroup is not full, or smaller than a shuffle reaches, the numbers are
// local_invocation_index, and the caller goes through workgroup memory.

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
