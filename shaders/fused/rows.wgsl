// Defines: main: flash attention forward, whole query rows to a thread. Keys and values are read by all threads alike.
// Expects: lib/*, load_query, load_key, load_value, store_output; consts THREADS, ROWS, KEYS, STEP, BLOCK_ROWS, BLOCK_KEYS, HEAD_VECS, VALUE_VECS.
// Twin: src/cpu/naive.rs has the formulas, tiles.wgsl the algorithm.
//
// A thread keeps ROWS query rows, their unnormalised output, running maximum and sum to itself: nothing is exchanged but the tile
// of KEYS keys and values in workgroup memory, of which STEP at a time meet the rows. What all threads read alike is one load for
// a whole wave on a CPU, and goes through the scalar cache on AMD.

const_assert BLOCK_ROWS == THREADS * ROWS;
const_assert BLOCK_KEYS == KEYS;
const_assert KEYS % STEP == 0u;

var<workgroup> key_tile: array<vec4<f32>, KEYS * HEAD_VECS>; // KEYS keys
var<workgroup> value_tile: array<vec4<f32>, KEYS * VALUE_VECS>; // KEYS values
var<workgroup> non_finite: atomic<u32>; // whether any value so far was infinite or NaN

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let block = locate(index);
    let item = item_of(block.batch);
    if (block.first_row >= item.rows * params.pack) {
        return;
    }
    let kv_head = block.first_head / params.group;
    if (thread == 0u) {
        atomicStore(&non_finite, 0u);
    }

    var query: array<vec4<f32>, ROWS * HEAD_VECS>;
    var acc: array<vec4<f32>, ROWS * VALUE_VECS>;
    var rows: array<Row, ROWS>;
    var top: array<f32, ROWS>; // running maximum
    var sum: array<f32, ROWS>; // running sum
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = row_of(item, block, r * THREADS + thread);
        top[r] = LOWEST;
        sum[r] = 0.0;
        let at = query_row(item, rows[r].head, min(rows[r].row, item.rows - 1u));
        for (var d = 0u; d < HEAD_VECS; d++) {
            query[r * HEAD_VECS + d] = load_query(at, d * 4u) * params.scale;
        }
        for (var e = 0u; e < VALUE_VECS; e++) {
            acc[r * VALUE_VECS + e] = vec4<f32>(0.0);
        }
    }

    let range = key_range(item, block);
    for (var first = range.start; first < range.end; first += KEYS) {
        if (!tile_shows_any(item, block, first, range.end, thread)) {
            continue;
        }
        workgroupBarrier(); // between the last tile being read and this one being written
        for (var n = 0u; n < (KEYS * HEAD_VECS + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (i >= KEYS * HEAD_VECS) {
                break;
            }
            let key = first + i / HEAD_VECS;
            var k = vec4<f32>(0.0);
            if (key < range.end) {
                k = load_key(key_row(item, kv_head, key), (i % HEAD_VECS) * 4u);
            }
            key_tile[i] = k;
        }
        for (var n = 0u; n < (KEYS * VALUE_VECS + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (i >= KEYS * VALUE_VECS) {
                break;
            }
            let key = first + i / VALUE_VECS;
            var v = vec4<f32>(0.0);
            if (key < range.end) {
                v = load_value(value_row(item, kv_head, key), (i % VALUE_VECS) * 4u);
                if (!is_finite(v)) {
                    atomicStore(&non_finite, 1u);
                }
            }
            value_tile[i] = v;
        }
        workgroupBarrier(); // between the tile written and read
        let careful = atomicLoad(&non_finite) != 0u;

        for (var local = 0u; local < KEYS && first + local < range.end; local += STEP) {
            var score: array<f32, ROWS * STEP>;
            for (var i = 0u; i < ROWS * STEP; i++) {
                score[i] = 0.0;
            }
            for (var d = 0u; d < HEAD_VECS; d++) {
                for (var c = 0u; c < STEP; c++) {
                    let k = key_tile[(local + c) * HEAD_VECS + d];
                    for (var r = 0u; r < ROWS; r++) {
                        let q = query[r * HEAD_VECS + d];
                        score[r * STEP + c] = fma(q.w, k.w, fma(q.z, k.z, fma(q.y, k.y, fma(q.x, k.x, score[r * STEP + c]))));
                    }
                }
            }

            let clear = first + local >= range.clear_start && first + local + STEP <= min(range.clear_end, range.end);
            var visible: array<bool, ROWS * STEP>;
            var shrink: array<f32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                let old_top = top[r];
                for (var c = 0u; c < STEP; c++) {
                    let key = first + local + c;
                    var sees = true;
                    if (!clear) {
                        sees = key >= rows[r].keys.start && key < min(rows[r].keys.end, range.end);
                    }
                    if (is_modified()) {
                        if (sees) {
                            let scored = score_of(score[r * STEP + c], item, rows[r].head, rows[r].row, key);
                            score[r * STEP + c] = scored.score;
                            sees = scored.visible;
                        }
                    }
                    visible[r * STEP + c] = sees;
                    top[r] = select(top[r], max(top[r], score[r * STEP + c]), sees);
                }
                shrink[r] = exp(old_top - top[r]);
                sum[r] *= shrink[r];
                for (var c = 0u; c < STEP; c++) {
                    score[r * STEP + c] = select(0.0, exp(score[r * STEP + c] - top[r]), visible[r * STEP + c]);
                    sum[r] += score[r * STEP + c];
                    if (is_dropping()) {
                        score[r * STEP + c] *= kept(item, rows[r].head, rows[r].row, first + local + c);
                    }
                }
            }
            if (careful) {
                // 0 * NaN must not reach a row that does not see it.
                for (var r = 0u; r < ROWS; r++) {
                    for (var e = 0u; e < VALUE_VECS; e++) {
                        acc[r * VALUE_VECS + e] *= shrink[r];
                    }
                    for (var c = 0u; c < STEP; c++) {
                        if (visible[r * STEP + c]) {
                            for (var e = 0u; e < VALUE_VECS; e++) {
                                acc[r * VALUE_VECS + e] += score[r * STEP + c] * value_tile[(local + c) * VALUE_VECS + e];
                            }
                        }
                    }
                }
            } else {
                for (var e = 0u; e < VALUE_VECS; e++) {
                    for (var r = 0u; r < ROWS; r++) {
                        acc[r * VALUE_VECS + e] *= shrink[r];
                    }
                    for (var c = 0u; c < STEP; c++) {
                        let v = value_tile[(local + c) * VALUE_VECS + e];
                        for (var r = 0u; r < ROWS; r++) {
                            acc[r * VALUE_VECS + e] = fma(vec4<f32>(score[r * STEP + c]), v, acc[r * VALUE_VECS + e]);
                        }
                    }
                }
            }
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        if (rows[r].row < item.rows) {
            let factor = store_row_end(item, block, rows[r], top[r], sum[r], true);
            let at = block.split * params.output_split_stride + output_row(item, rows[r].head, rows[r].row);
            for (var e = 0u; e < VALUE_VECS; e++) {
                store_output(at, e * 4u, acc[r * VALUE_VECS + e] * factor);
            }
        }
    }
}
