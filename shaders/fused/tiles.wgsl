// Defines: main: flash attention forward by register tiles, scores exchanged through workgroup memory. Any head_dim that fits.
// Expects: lib/*, load_query, load_key, load_value, store_output; row_max, row_sum; consts THREADS, ROWS, COLS, KEYS, BLOCK_ROWS, BLOCK_KEYS, HEAD_VECS, VALUE_VECS (sizes; loops run to head_vecs, value_vecs).
// Twin: src/cpu/naive.rs has the formulas.
//
// The plain algorithm (Dao et al., FlashAttention-2, 2023): for each tile of keys: scores s = scale * Q K^T; m' = max(m, rowmax s);
// p = exp(s - m'); l = l * exp(m - m') + rowsum p; O = O * exp(m - m') + p V. At the end output = O / l and lse = m + ln l.
// Here a workgroup takes BLOCK_ROWS rows; its threads form a grid of BLOCK_ROWS / ROWS by COLS. A thread owns ROWS rows: of the scores
// KEYS keys, of the output every COLS-th vec4 column. Queries stay in workgroup memory, keys and values take turns in one tile.

// Vec4s from one row to the next, odd so that threads reading neighbouring rows hit different banks.
const QUERY_STRIDE: u32 = HEAD_VECS;
const TILE_STRIDE: u32 = max(HEAD_VECS, VALUE_PER * COLS) + 1u;
const WEIGHT_STRIDE: u32 = BLOCK_ROWS + 4u;
// Vec4 columns of the output that a thread owns.
const VALUE_PER: u32 = (VALUE_VECS + COLS - 1u) / COLS;

// The same, of which the loops run.
fn value_per() -> u32 {
    return (value_vecs() + COLS - 1u) / COLS;
}

const_assert BLOCK_ROWS == THREADS / COLS * ROWS;
const_assert BLOCK_KEYS == COLS * KEYS;

var<workgroup> query_tile: array<vec4<f32>, BLOCK_ROWS * QUERY_STRIDE>; // BLOCK_ROWS rows of queries, scaled
var<workgroup> tile: array<vec4<f32>, BLOCK_KEYS * TILE_STRIDE>; // BLOCK_KEYS keys, then their values
var<workgroup> weight_tile: array<f32, BLOCK_KEYS * WEIGHT_STRIDE>; // p, one line a key; a hidden pair is -0
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
    let thread_row = thread / COLS;
    let thread_col = thread % COLS;

    if (thread == 0u) {
        atomicStore(&non_finite, 0u);
    }
    for (var n = 0u; n < (BLOCK_ROWS * head_vecs() + THREADS - 1u) / THREADS; n++) {
        let i = n * THREADS + thread;
        if (i >= BLOCK_ROWS * head_vecs()) {
            break;
        }
        let row = row_of(item, block, i / head_vecs());
        var q = vec4<f32>(0.0);
        if (row.row < item.rows) {
            q = load_query(query_row(item, row.head, row.row), (i % head_vecs()) * 4u) * params.scale;
        }
        query_tile[i / head_vecs() * QUERY_STRIDE + i % head_vecs()] = q;
    }

    var rows: array<Row, ROWS>;
    var top: array<f32, ROWS>; // running maximum
    var sum: array<f32, ROWS>; // running sum over this thread's keys
    var acc: array<vec4<f32>, ROWS * VALUE_PER>;
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = row_of(item, block, thread_row * ROWS + r);
        top[r] = LOWEST;
        sum[r] = 0.0;
    }
    for (var i = 0u; i < ROWS * VALUE_PER; i++) {
        acc[i] = vec4<f32>(0.0);
    }

    let range = key_range(item, block);
    for (var first = range.start; first < range.end; first += BLOCK_KEYS) {
        if (!tile_shows_any(item, block, first, range.end, thread)) {
            continue;
        }
        workgroupBarrier(); // between the last tile's values and weights being read and this tile being written
        for (var n = 0u; n < (BLOCK_KEYS * head_vecs() + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (BLOCK_KEYS * head_vecs() % THREADS != 0u && i >= BLOCK_KEYS * head_vecs()) {
                break;
            }
            let key = min(first + i / head_vecs(), range.end - 1u); // no branch, so that loads overlap; what repeats is not seen
            let k = load_key(key_row(item, kv_head, key), (i % head_vecs()) * 4u);
            tile[i / head_vecs() * TILE_STRIDE + i % head_vecs()] = k;
        }
        workgroupBarrier(); // between keys written and read

        var score: array<f32, ROWS * KEYS>;
        for (var i = 0u; i < ROWS * KEYS; i++) {
            score[i] = 0.0;
        }
        for (var d = 0u; d < head_vecs(); d++) {
            var k: array<vec4<f32>, KEYS>;
            for (var c = 0u; c < KEYS; c++) {
                k[c] = tile[(thread_col + c * COLS) * TILE_STRIDE + d];
            }
            for (var r = 0u; r < ROWS; r++) {
                let q = query_tile[(thread_row * ROWS + r) * QUERY_STRIDE + d];
                for (var c = 0u; c < KEYS; c++) {
                    score[r * KEYS + c] = fma(q.w, k[c].w, fma(q.z, k[c].z, fma(q.y, k[c].y, fma(q.x, k[c].x, score[r * KEYS + c]))));
                }
            }
        }

        let clear = first >= range.clear_start && first + BLOCK_KEYS <= min(range.clear_end, range.end);
        var visible: array<bool, ROWS * KEYS>;
        var old_top = top;
        for (var r = 0u; r < ROWS; r++) {
            for (var c = 0u; c < KEYS; c++) {
                let key = first + thread_col + c * COLS;
                var sees = true;
                if (!clear) {
                    sees = key >= rows[r].keys.start && key < min(rows[r].keys.end, range.end);
                }
                if (is_modified()) {
                    if (sees) {
                        let scored = score_of(score[r * KEYS + c], item, rows[r].head, rows[r].row, key);
                        score[r * KEYS + c] = scored.score;
                        sees = scored.visible;
                    }
                }
                visible[r * KEYS + c] = sees;
                top[r] = select(top[r], max(top[r], score[r * KEYS + c]), sees);
            }
        }
        row_max(&top, thread_row, thread_col); // also: all threads are done with the keys

        for (var r = 0u; r < ROWS; r++) {
            let shrink = exp(old_top[r] - top[r]);
            sum[r] *= shrink;
            for (var c = 0u; c < KEYS; c++) {
                var p = bitcast<f32>(select(HIDDEN_BITS, bitcast<u32>(exp(score[r * KEYS + c] - top[r])), visible[r * KEYS + c]));
                sum[r] += p;
                if (is_dropping()) {
                    if (visible[r * KEYS + c]) {
                        p *= kept(item, rows[r].head, rows[r].row, first + thread_col + c * COLS);
                    }
                }
                weight_tile[(thread_col + c * COLS) * WEIGHT_STRIDE + thread_row * ROWS + r] = p;
            }
            for (var e = 0u; e < value_per(); e++) {
                acc[r * VALUE_PER + e] *= shrink;
            }
        }
        var infinite = false;
        for (var n = 0u; n < (BLOCK_KEYS * value_vecs() + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (BLOCK_KEYS * value_vecs() % THREADS != 0u && i >= BLOCK_KEYS * value_vecs()) {
                break;
            }
            let key = min(first + i / value_vecs(), range.end - 1u);
            let v = load_value(value_row(item, kv_head, key), (i % value_vecs()) * 4u);
            infinite = infinite || !is_finite(v);
            tile[i / value_vecs() * TILE_STRIDE + i % value_vecs()] = v;
        }
        if (infinite) {
            atomicStore(&non_finite, 1u);
        }
        workgroupBarrier(); // between values and weights written and read

        let careful = atomicLoad(&non_finite) != 0u;
        if (careful) {
            for (var j = 0u; j < BLOCK_KEYS + params.zero; j++) { // rolled: rarely run
                for (var r = 0u; r < ROWS; r++) {
                    let p = weight_tile[j * WEIGHT_STRIDE + thread_row * ROWS + r];
                    if (bitcast<u32>(p) == HIDDEN_BITS) {
                        continue; // 0 * NaN must not reach a row that does not see it
                    }
                    for (var e = 0u; e < value_per(); e++) {
                        acc[r * VALUE_PER + e] = fma(vec4<f32>(p), tile[j * TILE_STRIDE + thread_col + e * COLS], acc[r * VALUE_PER + e]);
                    }
                }
            }
        } else {
            for (var j = 0u; j < rolled(BLOCK_KEYS); j++) {
                var v: array<vec4<f32>, VALUE_PER>;
                for (var e = 0u; e < value_per(); e++) {
                    v[e] = tile[j * TILE_STRIDE + thread_col + e * COLS];
                }
                for (var r = 0u; r < ROWS; r++) {
                    let p = weight_tile[j * WEIGHT_STRIDE + thread_row * ROWS + r];
                    for (var e = 0u; e < value_per(); e++) {
                        acc[r * VALUE_PER + e] = fma(vec4<f32>(p), v[e], acc[r * VALUE_PER + e]);
                    }
                }
            }
        }
    }

    row_sum(&sum, thread_row, thread_col);
    for (var r = 0u; r < ROWS; r++) {
        if (rows[r].row < item.rows) {
            let factor = store_row_end(item, block, rows[r], top[r], sum[r], thread_col == 0u);
            let at = block.split * params.output_split_stride + output_row(item, rows[r].head, rows[r].row);
            for (var e = 0u; e < value_per(); e++) {
                if (thread_col + e * COLS < value_vecs()) {
                    store_output(at, (thread_col + e * COLS) * 4u, acc[r * VALUE_PER + e] * factor);
                }
            }
        }
    }
}
