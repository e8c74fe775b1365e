// Defines: any_thread: a vote across the workgroup; VOTES: whether there are votes.
// Expects: nothing.
// See: shaders/software/lanes.wgsl, the same where the workgroup is one subgroup; src/wgsl/shapes.rs (bytes of workgroup memory).

var<workgroup> votes: atomic<u32>; // 1 if any thread voted yes
var<workgroup> verdict: u32; // copy of votes that all threads read

const VOTES: bool = true;

// True in all threads if `yes` is true in any. Every thread must call it, in uniform control flow; the result is uniform.
fn any_thread(yes: bool, thread: u32) -> bool {
    if (thread == 0u) {
        atomicStore(&votes, 0u);
    }
    workgroupBarrier(); // between clearing and setting votes
    if (yes) {
        atomicStore(&votes, 1u);
    }
    workgroupBarrier(); // between setting and reading votes
    if (thread == 0u) {
        verdict = atomicLoad(&votes);
    }
    return workgroupUniformLoad(&verdict) != 0u;
}
