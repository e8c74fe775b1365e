// Defines: main: gradients of the owned vectors by register tiles; d_scores and weights pass through workgroup memory.
// Expects: lib/*, pair.wgsl, own_rows.wgsl or own_keys.wgsl; consts THREADS, OWN, COLS, STREAM, BLOCK_OWN,
//          BLOCK_STREAM, HEAD_VECS,
//          VALUE_VECS (sizes; loops run to head_vecs, value_vecs); GIVES_QK, GIVES_VO: which sums are wanted.
// See: src/oracle/backward.rs has the formulas.
//
// The plain algorithm (Dao et al., FlashAttention-2, 2023): a block of rows visits the keys, a block of keys the rows;
// both recompute each pair's score, its weight p = exp(score - lse) and dscore = p * (dot(d_output, value) - delta):
//     dQ_i = scale * sum_j dscore_ij K_j      dK_j = scale * sum_i dscore_ij Q_i      dV_j = sum_i p_ij d_output_i
// One loop does both: for owned vectors (a, b) and streamed vectors (a', b'), the products a·a' and b·b' give dscore
// and p, and the sums are A = sum dscore a', B = sum p b'. No other workgroup adds to them: no atomics, and a fixed
// order. The threads form a grid of THREAD_ROWS by COLS. A thread takes OWN owned vectors, every THREAD_ROWS-th, by
// STREAM streamed ones, every COLS-th, and every COLS-th vec4 column of the sums. Speed comes from unrolling, odd
// strides and one load of four for a thread's pairs, as in shaders/fused/tiles.wgsl.

const THREAD_ROWS: u32 = THREADS / COLS;
// Vec4 columns of each sum per thread, and vec4s of its pairs with one streamed vector.
const HEAD_PER: u32 = (HEAD_VECS + COLS - 1u) / COLS;
const VALUE_PER: u32 = (VALUE_VECS + COLS - 1u) / COLS;
const OWN_VECS: u32 = (OWN + 3u) / 4u;
// Strides of owned vectors, of streamed vectors and of lines of pairs, in vec4s.
const OWN_QK_STRIDE: u32 = HEAD_VECS | 1u;
const OWN_VO_STRIDE: u32 = VALUE_VECS | 1u;
const QK_STRIDE: u32 = (HEAD_PER * COLS) | 1u;
const VO_STRIDE: u32 = (VALUE_PER * COLS) | 1u;
const PAIR_STRIDE: u32 = (THREAD_ROWS * OWN_VECS) | 1u;
const WEIGHTS: u32 = select(1u, BLOCK_STREAM * PAIR_STRIDE, GIVES_VO);
const STREAM_STEP: u32 = min(4u, BLOCK_STREAM);

// Unroll factor of the loops over a row's vec4s: smaller where both sums leave few registers.
const MOST_STEPS: u32 = select(4u, 2u, GIVES_QK && GIVES_VO && OWN * (HEAD_PER + VALUE_PER) > 8u);

const_assert BLOCK_OWN == THREAD_ROWS * OWN;
const_assert BLOCK_STREAM == COLS * STREAM;
const_assert BLOCK_STREAM % STREAM_STEP == 0u;

var<workgroup> own_qk_tile: array<vec4<f32>, BLOCK_OWN * OWN_QK_STRIDE>; // owned vectors
var<workgroup> own_vo_tile: array<vec4<f32>, BLOCK_OWN * OWN_VO_STRIDE>;
var<workgroup> qk_tile: array<vec4<f32>, BLOCK_STREAM * QK_STRIDE>; // streamed vectors
var<workgroup> vo_tile: array<vec4<f32>, BLOCK_STREAM * VO_STRIDE>;
// by streamed vector, then thread; 0 if masked
var<workgroup> d_score_tile: array<vec4<f32>, BLOCK_STREAM * PAIR_STRIDE>;
var<workgroup> weight_tile: array<vec4<f32>, WEIGHTS>; // laid out like d_score_tile
var<workgroup> non_finite: atomic<u32>; // 1 if any streamed vector so far was infinite or NaN

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(id);
    if (!work.exists) {
        return;
    }
    let item = work.item;
    let thread_row = thread / COLS;
    let thread_col = thread % COLS;
    if (thread == 0u) {
        atomicStore(&non_finite, 0u);
    }
    for (var n = 0u; n < (BLOCK_OWN * head_vecs() + THREADS - 1u) / THREADS; n++) {
        let i = n * THREADS + thread;
        if (BLOCK_OWN * head_vecs() % THREADS != 0u && i >= BLOCK_OWN * head_vecs()) {
            break;
        }
        let own = min(work.first + i / head_vecs(), owned(item) - 1u);
        own_qk_tile[i / head_vecs() * OWN_QK_STRIDE + i % head_vecs()] = own_qk(item, work, own, i % head_vecs());
    }
    if (GIVES_QK) {
        for (var n = 0u; n < (BLOCK_OWN * value_vecs() + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (BLOCK_OWN * value_vecs() % THREADS != 0u && i >= BLOCK_OWN * value_vecs()) {
                break;
            }
            let own = min(work.first + i / value_vecs(), owned(item) - 1u);
            let at = i / value_vecs() * OWN_VO_STRIDE + i % value_vecs();
            own_vo_tile[at] = own_vo(item, work, own, i % value_vecs());
        }
    }

    var own_ends: array<RowStats, OWN>;
    if (OWNS_ROWS) {
        for (var o = 0u; o < OWN; o++) {
            own_ends[o] =
                row_stats_of(item, pass_head(work, 0u),
                    min(work.first + thread_row + o * THREAD_ROWS, owned(item) - 1u));
        }
    }
    var qk_sum: array<vec4<f32>, OWN * HEAD_PER>;
    var vo_sum: array<vec4<f32>, OWN * VALUE_PER>;
    for (var i = 0u; i < OWN * HEAD_PER; i++) {
        qk_sum[i] = vec4<f32>(0.0);
    }
    for (var i = 0u; i < OWN * VALUE_PER; i++) {
        vo_sum[i] = vec4<f32>(0.0);
    }

    let range = stream_range(item, work);
    let own_end = min(work.first + BLOCK_OWN, owned(item));
    for (var pass_index = 0u; pass_index < passes(); pass_index++) {
        let head = pass_head(work, pass_index);
        for (var first = range.start; ; first += BLOCK_STREAM) {
            first = next_stream(item, work, head, first, range.end, own_end, thread);
            if (first >= range.end) {
                break;
            }
            let first_row = row_of_pair(work.first, first);
            let first_key = key_of_pair(work.first, first);
            let end_row = row_of_pair(own_end, min(first + BLOCK_STREAM, range.end));
            let end_key = key_of_pair(own_end, min(first + BLOCK_STREAM, range.end));
            workgroupBarrier(); // between the last tile being read and this one being written
            var infinite = false;
            for (var n = 0u; n < (BLOCK_STREAM * head_vecs() + THREADS - 1u) / THREADS; n++) {
                let i = n * THREADS + thread;
                if (BLOCK_STREAM * head_vecs() % THREADS != 0u && i >= BLOCK_STREAM * head_vecs()) {
                    break;
                }
                // clamped, so that loads overlap; repeats are masked
                let other = min(first + i / head_vecs(), range.end - 1u);
                let a = stream_qk(item, work, head, other, i % head_vecs());
                infinite = infinite || !is_finite(a);
                qk_tile[i / head_vecs() * QK_STRIDE + i % head_vecs()] = a;
            }
            for (var n = 0u; n < (BLOCK_STREAM * value_vecs() + THREADS - 1u) / THREADS; n++) {
                let i = n * THREADS + thread;
                if (BLOCK_STREAM * value_vecs() % THREADS != 0u && i >= BLOCK_STREAM * value_vecs()) {
                    break;
                }
                let other = min(first + i / value_vecs(), range.end - 1u);
                let b = stream_vo(item, work, head, other, i % value_vecs());
                infinite = infinite || !is_finite(b);
                vo_tile[i / value_vecs() * VO_STRIDE + i % value_vecs()] = b;
            }
            if (infinite) {
                atomicStore(&non_finite, 1u);
            }
            workgroupBarrier(); // between the tile written and read

            var qk_product: array<f32, OWN * STREAM>;
            var vo_product: array<f32, OWN * STREAM>;
            for (var i = 0u; i < OWN * STREAM; i++) {
                qk_product[i] = 0.0;
                vo_product[i] = 0.0;
            }
            let qk_step = steps_at_once(HEAD_VECS, MOST_STEPS);
            for (var d = 0u; d < head_vecs() + params.zero; d += qk_step) {
                for (var step = 0u; step < qk_step; step++) {
                    var a: array<vec4<f32>, STREAM>;
                    for (var c = 0u; c < STREAM; c++) {
                        a[c] = qk_tile[(thread_col + c * COLS) * QK_STRIDE + d + step];
                    }
                    for (var o = 0u; o < OWN; o++) {
                        let x = own_qk_tile[(thread_row + o * THREAD_ROWS) * OWN_QK_STRIDE + d + step];
                        for (var c = 0u; c < STREAM; c++) {
                            qk_product[o * STREAM + c] = dot_add(qk_product[o * STREAM + c], x, a[c]);
                        }
                    }
                }
            }
            if (GIVES_QK) {
                let vo_step = steps_at_once(VALUE_VECS, MOST_STEPS);
                for (var d = 0u; d < value_vecs() + params.zero; d += vo_step) {
                    for (var step = 0u; step < vo_step; step++) {
                        var b: array<vec4<f32>, STREAM>;
                        for (var c = 0u; c < STREAM; c++) {
                            b[c] = vo_tile[(thread_col + c * COLS) * VO_STRIDE + d + step];
                        }
                        for (var o = 0u; o < OWN; o++) {
                            let x = own_vo_tile[(thread_row + o * THREAD_ROWS) * OWN_VO_STRIDE + d + step];
                            for (var c = 0u; c < STREAM; c++) {
                                vo_product[o * STREAM + c] = dot_add(vo_product[o * STREAM + c], x, b[c]);
                            }
                        }
                    }
                }
            }

            let low = interval_of(item, first_row);
            let high = interval_of(item, end_row - 1u);
            let clear = first + BLOCK_STREAM <= range.end && high.start <= first_key && end_key <= low.end;
            for (var c = 0u; c < STREAM; c++) {
                let local = thread_col + c * COLS;
                let other = min(first + local, range.end - 1u);
                var other_end = RowStats(0.0, 0.0, 0.0);
                if (!OWNS_ROWS) {
                    other_end = row_stats_of(item, head, other);
                }
                for (var o = 0u; o < OWN; o++) {
                    let own = min(work.first + thread_row + o * THREAD_ROWS, owned(item) - 1u);
                    let row = row_of_pair(own, other);
                    let key = key_of_pair(own, other);
                    var inside = true;
                    if (!clear) {
                        let keys = interval_of(item, row);
                        inside = first + local < range.end && key >= keys.start && key < keys.end;
                    }
                    var end = other_end;
                    if (OWNS_ROWS) {
                        end = own_ends[o];
                    }
                    let pair = pair_of(item, head, row, key);
                    let gradient =
                        pair_gradient(qk_product[o * STREAM + c], vo_product[o * STREAM + c], end, pair, inside);
                    d_score_tile[local * PAIR_STRIDE + thread_row * OWN_VECS + o / 4u][o % 4u] = gradient.d_score;
                    if (GIVES_VO) {
                        weight_tile[local * PAIR_STRIDE + thread_row * OWN_VECS + o / 4u][o % 4u] = gradient.weight;
                    }
                }
            }
            workgroupBarrier(); // between d_scores and weights written and read

            let careful = atomicLoad(&non_finite) != 0u;
            if (careful || IS_GENERIC) {
                for (var j = 0u; j < BLOCK_STREAM + params.zero; j++) { // rolled: slow path for non-finite values
                    for (var o = 0u; o < OWN; o++) {
                        let d_score = d_score_tile[j * PAIR_STRIDE + thread_row * OWN_VECS + o / 4u][o % 4u];
                        if (GIVES_QK) {
                            for (var e = 0u; e < HEAD_PER; e++) {
                                // A non-finite element of `a` makes d_score NaN: its finite part suffices.
                                let a = finite_part(qk_tile[j * QK_STRIDE + thread_col + e * COLS]);
                                qk_sum[o * HEAD_PER + e] = fma(vec4<f32>(d_score), a, qk_sum[o * HEAD_PER + e]);
                            }
                        }
                    }
                    if (GIVES_VO) {
                        for (var o = 0u; o < OWN; o++) {
                            let weight = weight_tile[j * PAIR_STRIDE + thread_row * OWN_VECS + o / 4u][o % 4u];
                            if (bitcast<u32>(weight) == 0u) {
                                continue; // 0 * NaN must not reach a vector that does not see it
                            }
                            for (var e = 0u; e < VALUE_PER; e++) {
                                vo_sum[o * VALUE_PER + e] =
                                    fma(vec4<f32>(exact_weight(weight)), vo_tile[j * VO_STRIDE + thread_col + e * COLS],
                                        vo_sum[o * VALUE_PER + e]);
                            }
                        }
                    }
                }
            } else {
                var pair_at = thread_row * OWN_VECS;
                var qk_at = thread_col;
                var vo_at = thread_col;
                for (var j = 0u; j < BLOCK_STREAM + params.zero; j += STREAM_STEP) {
                    for (var step = 0u; step < STREAM_STEP; step++) {
                        if (GIVES_QK) {
                            var a: array<vec4<f32>, HEAD_PER>;
                            for (var e = 0u; e < HEAD_PER; e++) {
                                a[e] = qk_tile[qk_at + step * QK_STRIDE + e * COLS];
                            }
                            for (var i = 0u; i < OWN_VECS; i++) {
                                let d_score = d_score_tile[pair_at + step * PAIR_STRIDE + i];
                                for (var o = i * 4u; o < min(OWN, i * 4u + 4u); o++) {
                                    for (var e = 0u; e < HEAD_PER; e++) {
                                        qk_sum[o * HEAD_PER + e] =
                                            fma(vec4<f32>(d_score[o % 4u]), a[e], qk_sum[o * HEAD_PER + e]);
                                    }
                                }
                            }
                        }
                        if (GIVES_VO) {
                            var b: array<vec4<f32>, VALUE_PER>;
                            for (var e = 0u; e < VALUE_PER; e++) {
                                b[e] = vo_tile[vo_at + step * VO_STRIDE + e * COLS];
                            }
                            for (var i = 0u; i < OWN_VECS; i++) {
                                let weight = weight_tile[pair_at + step * PAIR_STRIDE + i];
                                for (var o = i * 4u; o < min(OWN, i * 4u + 4u); o++) {
                                    for (var e = 0u; e < VALUE_PER; e++) {
                                        vo_sum[o * VALUE_PER + e] =
                                            fma(vec4<f32>(weight[o % 4u]), b[e], vo_sum[o * VALUE_PER + e]);
                                    }
                                }
                            }
                        }
                    }
                    pair_at += STREAM_STEP * PAIR_STRIDE;
                    qk_at += STREAM_STEP * QK_STRIDE;
                    vo_at += STREAM_STEP * VO_STRIDE;
                }
            }
        }
    }

    // Sums pass through this thread's part of the owned tiles to keep the loops of stores rolled: they can be long.
    workgroupBarrier(); // between the last reads of owned vectors and the sums written in their place
    if (GIVES_QK) {
        for (var o = 0u; o < OWN; o++) {
            for (var e = 0u; e < HEAD_PER; e++) {
                if (thread_col + e * COLS < head_vecs()) {
                    own_qk_tile[(thread_row + o * THREAD_ROWS) * OWN_QK_STRIDE + thread_col + e * COLS] =
                        qk_sum[o * HEAD_PER + e];
                }
            }
        }
        for (var i = 0u; i < OWN * HEAD_PER + params.zero; i++) {
            let local = thread_row + i / HEAD_PER * THREAD_ROWS;
            let column = thread_col + i % HEAD_PER * COLS;
            if (work.first + local < owned(item) && column < head_vecs()) {
                store_qk(item, work, work.first + local, column, own_qk_tile[local * OWN_QK_STRIDE + column]);
            }
        }
    }
    if (GIVES_VO) {
        for (var o = 0u; o < OWN; o++) {
            for (var e = 0u; e < VALUE_PER; e++) {
                if (thread_col + e * COLS < value_vecs()) {
                    own_vo_tile[(thread_row + o * THREAD_ROWS) * OWN_VO_STRIDE + thread_col + e * COLS] =
                        vo_sum[o * VALUE_PER + e];
                }
            }
        }
        for (var i = 0u; i < OWN * VALUE_PER + params.zero; i++) {
            let local = thread_row + i / VALUE_PER * THREAD_ROWS;
            let column = thread_col + i % VALUE_PER * COLS;
            if (work.first + local < owned(item) && column < value_vecs()) {
                store_vo(item, work, work.first + local, column, own_vo_tile[local * OWN_VO_STRIDE + column]);
            }
        }
    }
}
