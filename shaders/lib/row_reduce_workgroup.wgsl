// Defines: Invocation, thread_of, subgroups_hold, as subgroup_threads.wgsl; row_max (also a barrier), row_sum: ROWS
//          values reduced over the COLS threads that share the rows.
// Expects: lib/row_reduce.wgsl.
// See: row_reduce_subgroup.wgsl, which uses subgroup shuffles.

struct Invocation {
    @builtin(local_invocation_index) index: u32,
}

fn thread_of(at: Invocation) -> u32 {
    return at.index;
}

fn subgroups_hold(lanes: u32) -> bool {
    return false;
}

fn row_max(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32, by_subgroup: bool) {
    shared_row_max(values, thread_row, thread_col);
}

fn row_sum(values: ptr<function, array<f32, ROWS>>, thread_row: u32, thread_col: u32, by_subgroup: bool) {
    shared_row_sum(values, thread_row, thread_col);
}
