// Defines: main: gradients of the owned vectors, whole vectors per thread; the streamed vectors are broadcast across
//          the subgroup.
// Expects: lib/*, pair.wgsl, own_rows.wgsl or own_keys.wgsl; consts THREADS, LANES, OWN, STREAM, BLOCK_OWN,
//          BLOCK_STREAM, HEAD_VECS,
//          VALUE_VECS; GIVES_QK, GIVES_VO: which sums are wanted.
// See: src/oracle/backward.rs has the formulas, tiles.wgsl the algorithm.
//
// As in software/prefill.wgsl, OWN vectors of a thread meet STREAM streamed ones at a time; each lane loads every
// LANES-th
// vec4 of these once, then each vec4 is broadcast. Subgroups have exactly LANES threads. Arrays are nested like the
// loops, so that compilers unroll these and keep arrays in registers.

const_assert THREADS == LANES;
const_assert BLOCK_OWN == THREADS * OWN;
const_assert BLOCK_STREAM % STREAM == 0u;

const HEAD_SLICES: u32 = (HEAD_VECS + LANES - 1u) / LANES;
const VALUE_SLICES: u32 = (VALUE_VECS + LANES - 1u) / LANES;

// Contribution of infinite and NaN output gradients to the sums of `b`, kept apart so that 0 * NaN reaches no vector
// that does not see them. Rarely written. A non-finite `a` makes d_score NaN, so its finite part suffices.
var<private> special: array<vec4<f32>, OWN * VALUE_VECS>;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let work = work_of(id);
    if (!work.exists) {
        return;
    }
    let item = work.item;
    var qk_own: array<array<array<vec4<f32>, LANES>, HEAD_SLICES>, OWN>;
    var vo_own: array<array<array<vec4<f32>, LANES>, VALUE_SLICES>, OWN>;
    var qk_sum: array<array<array<vec4<f32>, LANES>, HEAD_SLICES>, OWN>;
    var vo_sum: array<array<array<vec4<f32>, LANES>, VALUE_SLICES>, OWN>;
    var own: array<u32, OWN>;
    var own_ends: array<RowStats, OWN>;
    for (var o = 0u; o < OWN; o++) {
        own[o] = min(work.first + o * THREADS + lane, owned(item) - 1u);
        for (var i = 0u; i < HEAD_SLICES; i++) {
            for (var j = 0u; j < LANES; j++) {
                if (i * LANES + j < HEAD_VECS) {
                    qk_own[o][i][j] = own_qk(item, work, own[o], i * LANES + j);
                }
                qk_sum[o][i][j] = vec4<f32>(0.0);
            }
        }
        for (var i = 0u; i < VALUE_SLICES; i++) {
            for (var j = 0u; j < LANES; j++) {
                if (GIVES_QK && i * LANES + j < VALUE_VECS) {
                    vo_own[o][i][j] = own_vo(item, work, own[o], i * LANES + j);
                }
                vo_sum[o][i][j] = vec4<f32>(0.0);
            }
        }
        if (OWNS_ROWS) {
            own_ends[o] = row_stats_of(item, pass_head(work, 0u), own[o]);
        }
    }

    let range = stream_range(item, work);
    let own_end = min(work.first + BLOCK_OWN, owned(item));
    for (var pass_index = 0u; pass_index < passes(); pass_index++) {
        let head = pass_head(work, pass_index);
        var first = next_stream(item, work, head, range.start, range.end, own_end, lane);
        while (first < range.end) {
            let end = min(first + STREAM, range.end);
            let first_row = row_of_pair(work.first, first);
            let first_key = key_of_pair(work.first, first);
            var weight: array<array<f32, STREAM>, OWN>; // products of a, later the weights
            var d_score: array<array<f32, STREAM>, OWN>; // products of b, later the gradients of the scores
            for (var o = 0u; o < OWN; o++) {
                for (var c = 0u; c < STREAM; c++) {
                    weight[o][c] = 0.0;
                    d_score[o][c] = 0.0;
                }
            }
            for (var i = 0u; i < HEAD_SLICES; i++) {
                var a: array<vec4<f32>, STREAM>;
                for (var c = 0u; c < STREAM; c++) {
                    a[c] = stream_qk(item, work, head, min(first + c, range.end - 1u),
                        min(i * LANES + lane, HEAD_VECS - 1u));
                }
                for (var j = 0u; j < LANES; j++) {
                    if (i * LANES + j < HEAD_VECS) {
                        for (var c = 0u; c < STREAM; c++) {
                            let y = subgroupShuffle(a[c], j);
                            for (var o = 0u; o < OWN; o++) {
                                let x = qk_own[o][i][j];
                                weight[o][c] = dot_add(weight[o][c], x, y);
                            }
                        }
                    }
                }
            }
            if (GIVES_QK) {
                for (var i = 0u; i < VALUE_SLICES; i++) {
                    var b: array<vec4<f32>, STREAM>;
                    for (var c = 0u; c < STREAM; c++) {
                        b[c] = stream_vo(item, work, head, min(first + c, range.end - 1u),
                            min(i * LANES + lane, VALUE_VECS - 1u));
                    }
                    for (var j = 0u; j < LANES; j++) {
                        if (i * LANES + j < VALUE_VECS) {
                            for (var c = 0u; c < STREAM; c++) {
                                let y = subgroupShuffle(b[c], j);
                                for (var o = 0u; o < OWN; o++) {
                                    let x = vo_own[o][i][j];
                                    d_score[o][c] = dot_add(d_score[o][c], x, y);
                                }
                            }
                        }
                    }
                }
            }

            let low = interval_of(item, first_row);
            let high = interval_of(item, row_of_pair(own_end, end) - 1u);
            let clear = first + STREAM <= range.end && high.start <= first_key && key_of_pair(own_end, end) <= low.end;
            for (var c = 0u; c < STREAM; c++) {
                let other = min(first + c, range.end - 1u); // repeats are masked
                var other_end = RowStats(0.0, 0.0, 0.0);
                if (!OWNS_ROWS) {
                    other_end = row_stats_of(item, head, other);
                }
                for (var o = 0u; o < OWN; o++) {
                    let row = row_of_pair(own[o], other);
                    let key = key_of_pair(own[o], other);
                    var inside = true;
                    if (!clear) {
                        let keys = interval_of(item, row);
                        inside = first + c < range.end && key >= keys.start && key < keys.end;
                    }
                    var row_end = other_end;
                    if (OWNS_ROWS) {
                        row_end = own_ends[o];
                    }
                    let pair = pair_of(item, head, row, key);
                    let gradient = pair_gradient(weight[o][c], d_score[o][c], row_end, pair, inside);
                    weight[o][c] = gradient.weight;
                    d_score[o][c] = gradient.d_score;
                }
            }

            if (GIVES_QK) {
                for (var i = 0u; i < HEAD_SLICES; i++) {
                    var a: array<vec4<f32>, STREAM>;
                    for (var c = 0u; c < STREAM; c++) {
                        a[c] = finite_part(stream_qk(item, work, head, min(first + c, range.end - 1u),
                            min(i * LANES + lane, HEAD_VECS - 1u)));
                    }
                    for (var j = 0u; j < LANES; j++) {
                        if (i * LANES + j < HEAD_VECS) {
                            for (var c = 0u; c < STREAM; c++) {
                                let y = subgroupShuffle(a[c], j);
                                for (var o = 0u; o < OWN; o++) {
                                    qk_sum[o][i][j] = fma(vec4<f32>(d_score[o][c]), y, qk_sum[o][i][j]);
                                }
                            }
                        }
                    }
                }
            }
            if (GIVES_VO) {
                var infinite = false;
                for (var i = 0u; i < VALUE_SLICES; i++) {
                    var b: array<vec4<f32>, STREAM>;
                    for (var c = 0u; c < STREAM; c++) {
                        let loaded =
                            stream_vo(item, work, head, min(first + c, range.end - 1u),
                                min(i * LANES + lane, VALUE_VECS - 1u));
                        if (!VO_IS_ONE) {
                            infinite = infinite || !is_finite(loaded);
                        }
                        b[c] = finite_part(loaded);
                    }
                    for (var j = 0u; j < LANES; j++) {
                        if (i * LANES + j < VALUE_VECS) {
                            for (var c = 0u; c < STREAM; c++) {
                                let y = subgroupShuffle(b[c], j);
                                for (var o = 0u; o < OWN; o++) {
                                    vo_sum[o][i][j] = fma(vec4<f32>(weight[o][c]), y, vo_sum[o][i][j]);
                                }
                            }
                        }
                    }
                }
                if (!VO_IS_ONE && any_thread(infinite, lane)) {
                    for (var c = 0u; c < STREAM; c++) {
                        for (var e = 0u; e < VALUE_VECS + params.zero; e++) { // rolled: slow path for non-finite values
                            let b = special_part(stream_vo(item, work, head, min(first + c, range.end - 1u), e));
                            for (var o = 0u; o < OWN; o++) {
                                if (bitcast<u32>(weight[o][c]) != 0u) {
                                    special[o * VALUE_VECS + e] += exact_weight(weight[o][c]) * b;
                                }
                            }
                        }
                    }
                }
            }
            first += STREAM;
            if (has_visible_terms() && (first - range.start) % BLOCK_STREAM == 0u) {
                first = next_stream(item, work, head, first, range.end, own_end, lane);
            }
        }
    }

    for (var o = 0u; o < OWN; o++) {
        if (work.first + o * THREADS + lane < owned(item)) {
            if (GIVES_QK) {
                for (var i = 0u; i < HEAD_SLICES; i++) {
                    for (var j = 0u; j < LANES; j++) {
                        if (i * LANES + j < HEAD_VECS) {
                            store_qk(item, work, own[o], i * LANES + j, qk_sum[o][i][j]);
                        }
                    }
                }
            }
            if (GIVES_VO) {
                for (var i = 0u; i < VALUE_SLICES; i++) {
                    for (var j = 0u; j < LANES; j++) {
                        let e = i * LANES + j;
                        if (e < VALUE_VECS) {
                            store_vo(item, work, own[o], e, vo_sum[o][i][j] + special[o * VALUE_VECS + e]);
                        }
                    }
                }
            }
        }
    }
}
