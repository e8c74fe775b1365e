// Defines: for key sums, owning keys and streaming the summed rows of all their query heads: work_of; owned;
//          stream_range; own_qk, own_vo, stream_vo; store_qk, store_vo; row_stats_of, pair_gradient.
// Expects: lib/*, row_stats.wgsl, rows_of_group.wgsl, load_key, forward_stats (read), sums (read_write); const BLOCK_OWN.
// See: own_keys.wgsl, the same for dK and dV; src/plan/key_sums.rs.
//
// The sum of a key's weights is a dV whose output gradients are 1, and one element wide. Only side `b` is wanted.

// No streamed vector of side `b` is infinite or NaN.
const VO_IS_ONE: bool = true;

// Blocks cover seq_len_kv in every item: keys past its length get 0.
fn work_of(workgroup: vec3<u32>) -> Work {
    let place = workgroup_index(workgroup);
    let index = select(place, 0u, place == NO_WORK);
    let blocks = params.item_blocks;
    let heads = params.num_heads / params.group;
    return Work(place != NO_WORK, item_of(index / blocks / heads), index / blocks % heads, index % blocks * BLOCK_OWN);
}

fn owned(item: Item) -> u32 {
    return params.seq_len_kv;
}

// Summed rows of this step that may see an owned key. The range of a step counts from the first summed row.
fn stream_range(item: Item, work: Work) -> Interval {
    let first = item.rows - min(item.rows, params.summed_rows);
    let seeing = rows_that_see(item, work.first, min(work.first + BLOCK_OWN, item.stored_keys));
    return Interval(max(seeing.start, first + params.range_start), min(seeing.end, first + params.range_end));
}

fn own_qk(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    if (index >= item.stored_keys) {
        return vec4<f32>(0.0);
    }
    return load_key(key_row(item, work.kv_head, index), column * 4u);
}

fn own_vo(item: Item, work: Work, index: u32, column: u32) -> vec4<f32> {
    return vec4<f32>(0.0);
}

fn stream_vo(item: Item, work: Work, head: u32, index: u32, column: u32) -> vec4<f32> {
    return vec4<f32>(1.0, 0.0, 0.0, 0.0);
}

fn store_qk(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
}

fn store_vo(item: Item, work: Work, index: u32, column: u32, sum: vec4<f32>) {
    let strides = params.sums_strides;
    let at = params.sums_start + item.batch * strides.x + work.kv_head * strides.y + index;
    var total = sum.x;
    if (has_flag(FLAG_ADDS)) {
        total += sums[at];
    }
    sums[at] = total;
}

fn row_stats_of(item: Item, head: u32, row: u32) -> RowStats {
    let at = 2u * lse_at(item, head, row);
    return RowStats(bitcast<f32>(forward_stats[at]), bitcast<f32>(share_of(forward_stats[at + 1u])), 0.0);
}

// Takes scaled = scale * dot(query, key); `inside`: the key is in the row's interval. Dropout does not count.
fn pair_gradient(scaled: f32, product: f32, end: RowStats, at: Pair, inside: bool) -> PairGradient {
    let scored = score_pair(scaled, at, inside);
    if (!scored.visible) {
        return PairGradient(0.0, 0.0, 0.0);
    }
    return PairGradient(visible_weight(exp(scored.score - end.m) * end.share, true), 0.0, 0.0);
}
