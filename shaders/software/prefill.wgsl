// Defines: main: flash attention forward, whole query rows per thread, keys and values broadcast across the subgroup.
// Expects: lib/*, software/products.wgsl, software/sums.wgsl, store_output; THREADS, LANES, ROWS, KEYS, STEP, BLOCK_*, *_VECS.
// See: src/oracle/forward.rs has the formulas.
//
// A thread keeps ROWS query rows, their unnormalised output, running max and running sum, and takes STEP keys at a
// time. There is no barrier. The two products are in products.wgsl and sums.wgsl.

const_assert THREADS == LANES;
const_assert BLOCK_ROWS == THREADS * ROWS;
const_assert BLOCK_KEYS == KEYS;
const_assert KEYS % STEP == 0u;

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let work = fused_work(id);
    if (!work.exists) {
        return;
    }
    let block = work.block;
    let item = work.item;
    let kv_head = block.first_head / params.group;

    var query: Queries;
    var acc: Sums;
    var rows: array<Row, ROWS>;
    var m: array<f32, ROWS>; // running max
    var l: array<f32, ROWS>; // running sum
    var nan_rows = 0u; // one bit per row: it sees a score of NaN or +inf
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = row_of(item, block, r * THREADS + lane);
        m[r] = LOWEST;
        l[r] = 0.0;
        load_query_row(&query, r, query_row(item, rows[r].head, min(rows[r].row, item.rows - 1u)));
        for (var i = 0u; i < VALUE_SLICES; i++) {
            for (var j = 0u; j < LANES; j++) {
                acc[r][i][j] = vec4<f32>(0.0);
            }
        }
    }

    let range = key_range(item, block);
    var first = next_shown(item, block, range.start, range.end, lane);
    while (first < range.end) {
        var score = products(&query, item, kv_head, first, range.end, lane); // repeated keys are masked

        var bits = 0u; // the largest of the scores'; none is larger than that of -inf, which hides
        for (var r = 0u; r < ROWS; r++) {
            for (var c = 0u; c < STEP; c++) {
                bits = max(bits, bitcast<u32>(score[r][c]));
            }
        }
        let overflows = !tests_pairs() && bits >= NEGATIVE_INFINITY;
        let clear = first >= range.clear_start && first + STEP <= min(range.clear_end, range.end) && !overflows;
        var visible: array<array<bool, STEP>, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            for (var c = 0u; c < STEP; c++) {
                let key = first + c;
                visible[r][c] = true;
                if (!clear) {
                    visible[r][c] = key >= rows[r].keys.start && key < min(rows[r].keys.end, range.end)
                        && !is_negative_infinity(score[r][c]);
                }
            }
        }
        // Otherwise a score of NaN or +inf shows in the row's sum.
        if (tests_pairs()) {
            for (var r = 0u; r < ROWS; r++) {
                for (var c = 0u; c < STEP; c++) {
                    let pair = pair_of(item, rows[r].head, rows[r].row, first + c);
                    // rows past the last have no bias and no mask
                    let scored = score_pair(score[r][c], pair, visible[r][c] && rows[r].row < item.rows);
                    nan_rows |= select(0u, 1u << r, is_nan_score(scored));
                    visible[r][c] = scored.visible;
                    score[r][c] = select(scored.score, LOWEST, is_nan_score(scored));
                }
            }
        }
        var shrink: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let old_m = m[r];
            for (var c = 0u; c < STEP; c++) {
                score[r][c] = select(LOWEST, score[r][c], visible[r][c]);
                m[r] = max(m[r], score[r][c]);
            }
            shrink[r] = exp(old_m - m[r]);
            l[r] *= shrink[r];
            for (var c = 0u; c < STEP; c++) {
                score[r][c] = visible_weight(exp(score[r][c] - m[r]), visible[r][c]);
                l[r] += score[r][c];
                if (is_dropping()) {
                    let factor = dropout_scale(pair_of(item, rows[r].head, rows[r].row, first + c));
                    score[r][c] = visible_weight(dropped_out(score[r][c], factor), visible[r][c]);
                }
            }
        }

        if (add_values(&acc, &shrink, &score, item, kv_head, first, range.end, lane)) {
            add_special_values(&score, item, kv_head, first, range.end);
        }
        first += STEP;
        if (has_visible_terms() && (first - range.start) % KEYS == 0u) {
            first = next_shown(item, block, first, range.end, lane);
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        if (rows[r].row < item.rows) {
            let result =
                finish_row(item, block, rows[r], m[r], select(l[r], NAN_SUM, ((nan_rows >> r) & 1u) != 0u), true);
            for (var i = 0u; i < VALUE_SLICES; i++) {
                for (var j = 0u; j < LANES; j++) {
                    let e = i * LANES + j;
                    if (e < VALUE_VECS) {
                        store_part(item, block, rows[r], result, e * 4u, acc[r][i][j] + special[r * VALUE_VECS + e]);
                    }
                }
            }
        }
    }
}
