// Defines: main: flash attention forward, a query row per thread; any_thread, a vote that is not taken.
// Expects: lib/*, store_output; THREADS, STEP, BLOCK_*, *_VECS.
// See: src/oracle/forward.rs has the formulas; prefill.wgsl is faster where subgroups have a known size.
//
// There is no workgroup memory and no barrier, and no loop is unrolled but those over STEP keys: drivers that run workgroups
// on a processor compile this in a fifth of the time of tiles.wgsl, whose barriers save all variables.

const_assert BLOCK_ROWS == THREADS;
const_assert BLOCK_KEYS % STEP == 0u;

// Threads cannot ask each other.
const VOTES: bool = false;

fn any_thread(yes: bool, thread: u32) -> bool {
    return true;
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = fused_work(id);
    if (!work.exists) {
        return;
    }
    let block = work.block;
    let item = work.item;
    let kv_head = block.first_head / params.group;
    let row = row_of(item, block, thread);
    if (row.row >= item.rows) {
        return;
    }

    var query: array<vec4<f32>, HEAD_VECS>;
    var acc: array<vec4<f32>, VALUE_VECS>;
    let query_at = query_row(item, row.head, row.row);
    for (var d = 0u; d < rolled(head_vecs()); d++) {
        query[d] = load_query(query_at, d * 4u) * params.scale;
    }
    for (var e = 0u; e < rolled(value_vecs()); e++) {
        acc[e] = vec4<f32>(0.0);
    }
    var m = LOWEST; // running max
    var l = 0.0; // running sum
    var is_nan = false; // it sees a score of NaN or +inf

    let range = key_range(item, block);
    var first = next_shown(item, block, range.start, range.end, thread);
    while (first < range.end) {
        var score: array<f32, STEP>;
        var key_at: array<u32, STEP>;
        for (var c = 0u; c < STEP; c++) {
            score[c] = 0.0; // Dawn on SwiftShader keeps the numbers of the last turn
            key_at[c] = key_row(item, kv_head, min(first + c, range.end - 1u)); // repeated keys are masked
        }
        for (var d = 0u; d < rolled(head_vecs()); d++) {
            let q = query[d];
            for (var c = 0u; c < STEP; c++) {
                score[c] = dot_add(score[c], q, load_key(key_at[c], d * 4u));
            }
        }

        var visible: array<bool, STEP>;
        let old_m = m;
        for (var c = 0u; c < STEP; c++) {
            let key = first + c;
            let inside = key >= row.keys.start && key < min(row.keys.end, range.end);
            let scored = score_pair(score[c], pair_of(item, row.head, row.row, key), inside);
            is_nan = is_nan || is_nan_score(scored);
            visible[c] = scored.visible;
            score[c] = select(LOWEST, scored.score, scored.visible && !is_nan_score(scored));
            m = max(m, score[c]);
        }
        let shrink = exp(old_m - m);
        l *= shrink;
        for (var c = 0u; c < STEP; c++) {
            score[c] = visible_weight(exp(score[c] - m), visible[c]);
            l += score[c];
            if (is_dropping()) {
                let factor = dropout_scale(pair_of(item, row.head, row.row, first + c));
                score[c] = visible_weight(dropped_out(score[c], factor), visible[c]);
            }
        }

        var value_at: array<u32, STEP>;
        var weight: array<f32, STEP>;
        for (var c = 0u; c < STEP; c++) {
            value_at[c] = value_row(item, kv_head, min(first + c, range.end - 1u));
            weight[c] = exact_weight(score[c]);
        }
        for (var e = 0u; e < rolled(value_vecs()); e++) {
            var sum = acc[e] * shrink;
            for (var c = 0u; c < STEP; c++) {
                // 0 * NaN must not reach a row that masks the key.
                let v = load_value(value_at[c], e * 4u);
                sum = select(sum, fma(vec4<f32>(weight[c]), v, sum), visible[c]);
            }
            acc[e] = sum;
        }
        first += STEP;
        if (has_visible_terms() && (first - range.start) % BLOCK_KEYS == 0u) {
            first = next_shown(item, block, first, range.end, thread);
        }
    }

    let result = finish_row(item, block, row, m, select(l, NAN_SUM, is_nan), true);
    for (var e = 0u; e < rolled(value_vecs()); e++) {
        store_part(item, block, row, result, e * 4u, acc[e]);
    }
}
