// Defines: main: the gradients of what the workgroup owns, whole owned vectors to a thread. The others are read by all threads alike.
// Expects: lib/*, pair.wgsl, own_rows.wgsl or own_keys.wgsl; consts THREADS, OWN, STREAM, BLOCK_OWN, BLOCK_STREAM, HEAD_VECS, VALUE_VECS;
//          GIVES_A, GIVES_B: which sums are wanted.
// Twin: src/cpu/naive_backward.rs has the formulas, tiles.wgsl the algorithm.
//
// A thread keeps OWN vectors and their sums to itself: nothing is exchanged but the tile of BLOCK_STREAM others in workgroup memory, of
// which STREAM at a time meet them. What all threads read alike is one load for a whole wave on a CPU.

const_assert BLOCK_OWN == THREADS * OWN;
const_assert BLOCK_STREAM % STREAM == 0u;

var<workgroup> a_tile: array<vec4<f32>, BLOCK_STREAM * HEAD_VECS>; // some of the others
var<workgroup> b_tile: array<vec4<f32>, BLOCK_STREAM * VALUE_VECS>;
var<workgroup> non_finite: atomic<u32>; // whether any of the others so far was infinite or NaN

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let work = work_of(index);
    let item = item_of(work_batch(index));
    if (work.first >= owned(item)) {
        return;
    }
    if (thread == 0u) {
        atomicStore(&non_finite, 0u);
    }
    var a_own: array<vec4<f32>, OWN * HEAD_VECS>;
    var b_own: array<vec4<f32>, OWN * VALUE_VECS>;
    var a_sum: array<vec4<f32>, OWN * HEAD_VECS>;
    var b_sum: array<vec4<f32>, OWN * VALUE_VECS>;
    var own: array<u32, OWN>;
    var own_ends: array<RowEnd, OWN>;
    for (var o = 0u; o < OWN; o++) {
        own[o] = min(work.first + o * THREADS + thread, owned(item) - 1u);
        for (var d = 0u; d < HEAD_VECS; d++) {
            a_own[o * HEAD_VECS + d] = own_a(item, work, own[o], d);
            a_sum[o * HEAD_VECS + d] = vec4<f32>(0.0);
        }
        for (var e = 0u; e < VALUE_VECS; e++) {
            if (GIVES_A) {
                b_own[o * VALUE_VECS + e] = own_b(item, work, own[o], e);
            }
            b_sum[o * VALUE_VECS + e] = vec4<f32>(0.0);
        }
        if (OWNS_ROWS) {
            own_ends[o] = row_end(item, pass_head(work, 0u), own[o]);
        }
    }

    let range = stream_range(item, work);
    let own_end = min(work.first + BLOCK_OWN, owned(item));
    for (var pass_index = 0u; pass_index < passes(); pass_index++) {
        let head = pass_head(work, pass_index);
        for (var first = range.start; first < range.end; first += BLOCK_STREAM) {
            let end = min(first + BLOCK_STREAM, range.end);
            let first_row = row_of_pair(work.first, first);
            let first_key = key_of_pair(work.first, first);
            if (!tile_shows_any(item, Block(item.batch, head, first_row, 0u), first_key, key_of_pair(own_end, end), thread)) {
                continue;
            }
            workgroupBarrier(); // between the last tile being read and this one being written
            var infinite = false;
            for (var n = 0u; n < (BLOCK_STREAM * HEAD_VECS + THREADS - 1u) / THREADS; n++) {
                let i = n * THREADS + thread;
                if (BLOCK_STREAM * HEAD_VECS % THREADS != 0u && i >= BLOCK_STREAM * HEAD_VECS) {
                    break;
                }
                let a = stream_a(item, work, head, min(first + i / HEAD_VECS, range.end - 1u), i % HEAD_VECS);
                infinite = infinite || !is_finite(a);
                a_tile[i] = a;
            }
            for (var n = 0u; n < (BLOCK_STREAM * VALUE_VECS + THREADS - 1u) / THREADS; n++) {
                let i = n * THREADS + thread;
                if (BLOCK_STREAM * VALUE_VECS % THREADS != 0u && i >= BLOCK_STREAM * VALUE_VECS) {
                    break;
                }
                let b = stream_b(item, work, head, min(first + i / VALUE_VECS, range.end - 1u), i % VALUE_VECS);
                infinite = infinite || !is_finite(b);
                b_tile[i] = b;
            }
            if (infinite) {
                atomicStore(&non_finite, 1u);
            }
            workgroupBarrier(); // between the tile written and read
            let careful = atomicLoad(&non_finite) != 0u;
            let low = interval_of(item, first_row);
            let high = interval_of(item, row_of_pair(own_end, end) - 1u);
            let clear = first + BLOCK_STREAM <= range.end && high.start <= first_key && key_of_pair(own_end, end) <= low.end;

            for (var local = 0u; local < BLOCK_STREAM && first + local < range.end; local += STREAM) {
                var weight: array<f32, OWN * STREAM>; // first the products of a, then the weights
                var d_score: array<f32, OWN * STREAM>; // first the products of b, then the gradients of the scores
                var b_product: array<vec4<f32>, OWN * STREAM>;
                for (var i = 0u; i < OWN * STREAM; i++) {
                    weight[i] = 0.0;
                    b_product[i] = vec4<f32>(0.0);
                }
                // Both products at once, and four sums for each of b: a chain of multiply-adds waits for itself.
                for (var d = 0u; d < max(HEAD_VECS, VALUE_VECS); d++) {
                    for (var c = 0u; c < STREAM; c++) {
                        if (d < HEAD_VECS) {
                            let a = a_tile[(local + c) * HEAD_VECS + d];
                            for (var o = 0u; o < OWN; o++) {
                                let x = a_own[o * HEAD_VECS + d];
                                weight[o * STREAM + c] = fma(x.w, a.w, fma(x.z, a.z, fma(x.y, a.y, fma(x.x, a.x, weight[o * STREAM + c]))));
                            }
                        }
                        if (GIVES_A && d < VALUE_VECS) {
                            let b = b_tile[(local + c) * VALUE_VECS + d];
                            for (var o = 0u; o < OWN; o++) {
                                b_product[o * STREAM + c] = fma(b_own[o * VALUE_VECS + d], b, b_product[o * STREAM + c]);
                            }
                        }
                    }
                }
                for (var i = 0u; i < OWN * STREAM; i++) {
                    d_score[i] = (b_product[i].x + b_product[i].y) + (b_product[i].z + b_product[i].w);
                }
                for (var c = 0u; c < STREAM; c++) {
                    let other = min(first + local + c, range.end - 1u);
                    var other_end = RowEnd(0.0, 0.0);
                    if (!OWNS_ROWS) {
                        other_end = row_end(item, head, other);
                    }
                    for (var o = 0u; o < OWN; o++) {
                        let row = row_of_pair(own[o], other);
                        let key = key_of_pair(own[o], other);
                        var inside = true;
                        if (!clear) {
                            let keys = interval_of(item, row);
                            inside = first + local + c < range.end && key >= keys.start && key < keys.end;
                        }
                        var row_end = other_end;
                        if (OWNS_ROWS) {
                            row_end = own_ends[o];
                        }
                        let pair = pair_gradient(weight[o * STREAM + c], d_score[o * STREAM + c], row_end, item, head, row, key, inside);
                        weight[o * STREAM + c] = pair.weight;
                        d_score[o * STREAM + c] = pair.d_score;
                    }
                }
                if (careful) {
                    // 0 * NaN must not reach what does not see it.
                    for (var c = 0u; c < STREAM; c++) {
                        for (var o = 0u; o < OWN; o++) {
                            if (bitcast<u32>(weight[o * STREAM + c]) == HIDDEN_BITS) {
                                continue;
                            }
                            if (GIVES_A) {
                                for (var d = 0u; d < HEAD_VECS; d++) {
                                    a_sum[o * HEAD_VECS + d] += d_score[o * STREAM + c] * a_tile[(local + c) * HEAD_VECS + d];
                                }
                            }
                            if (GIVES_B) {
                                for (var e = 0u; e < VALUE_VECS; e++) {
                                    b_sum[o * VALUE_VECS + e] += weight[o * STREAM + c] * b_tile[(local + c) * VALUE_VECS + e];
                                }
                            }
                        }
                    }
                } else {
                    if (GIVES_A) {
                        for (var d = 0u; d < HEAD_VECS; d++) {
                            for (var c = 0u; c < STREAM; c++) {
                                let a = a_tile[(local + c) * HEAD_VECS + d];
                                for (var o = 0u; o < OWN; o++) {
                                    a_sum[o * HEAD_VECS + d] = fma(vec4<f32>(d_score[o * STREAM + c]), a, a_sum[o * HEAD_VECS + d]);
                                }
                            }
                        }
                    }
                    if (GIVES_B) {
                        for (var e = 0u; e < VALUE_VECS; e++) {
                            for (var c = 0u; c < STREAM; c++) {
                                let b = b_tile[(local + c) * VALUE_VECS + e];
                                for (var o = 0u; o < OWN; o++) {
                                    b_sum[o * VALUE_VECS + e] = fma(vec4<f32>(weight[o * STREAM + c]), b, b_sum[o * VALUE_VECS + e]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    for (var o = 0u; o < OWN; o++) {
        if (work.first + o * THREADS + thread < owned(item)) {
            if (GIVES_A) {
                for (var d = 0u; d < HEAD_VECS; d++) {
                    store_a(item, work, own[o], d, a_sum[o * HEAD_VECS + d]);
                }
            }
            if (GIVES_B) {
                for (var e = 0u; e < VALUE_VECS; e++) {
                    store_b(item, work, own[o], e, b_sum[o * VALUE_VECS + e]);
                }
            }
        }
    }
}
