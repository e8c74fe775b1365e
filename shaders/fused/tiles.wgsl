// Defines: main: flash attention forward by register tiles; scores pass through workgroup memory; any fitting head_dim.
// Expects: lib/*, load_query, load_key, load_value, store_output; row_max, row_sum; consts THREADS, ROWS, COLS, KEYS,
//          BLOCK_ROWS, BLOCK_KEYS, HEAD_VECS, VALUE_VECS (sizes; loops run to head_vecs, value_vecs).
// See: src/oracle/forward.rs has the formulas; src/wgsl/shapes.rs (TileShape) the bytes of workgroup memory.
//
// The plain algorithm (Dao et al., FlashAttention-2, 2023), per tile of keys: s = scale * Q K^T; m' = max(m, rowmax s);
// p = exp(s - m'); l = l * exp(m - m') + rowsum p; O = O * exp(m - m') + p V. Finally output = O / l, lse = m + ln l.
// Here a workgroup takes BLOCK_ROWS rows with a grid of THREAD_ROWS by COLS threads. A thread owns every THREAD_ROWS-th
// row, ROWS in all: every COLS-th key of its scores, every COLS-th vec4 column of its output. Queries stay in workgroup
// memory; keys and values alternate in one tile. For speed:
// - loops over a row's vec4s and a tile's keys are unrolled by a few steps at constant strides: one address, loads far
//   ahead of their use, and code that fits an instruction cache;
// - strides are odd and neighbouring threads take neighbouring rows, so that threads read different banks;
// - weights are stored by key, those of a thread's rows side by side: one load of four;
// - visibility is checked only where intervals or options leave it open.

const THREAD_ROWS: u32 = THREADS / COLS;
// Vec4 columns of the output per thread; vec4s of a thread's weights per key, and rows of each.
const VALUE_PER: u32 = (VALUE_VECS + COLS - 1u) / COLS;
const ROW_VECS: u32 = (ROWS + 3u) / 4u;
const VEC_ROWS: u32 = min(ROWS, 4u);
// Strides of rows, keys and lines of weights, in vec4s.
const QUERY_STRIDE: u32 = HEAD_VECS | 1u;
const TILE_STRIDE: u32 = max(HEAD_VECS, VALUE_PER * COLS) | 1u;
const WEIGHT_STRIDE: u32 = (THREAD_ROWS * ROW_VECS) | 1u;
// Unroll factors of the loops over a row's vec4s and a tile's keys: larger where a step is short.
const MOST_STEPS: u32 = select(4u, 8u, ROWS == 1u);
const KEY_STEP: u32 = min(MOST_STEPS, BLOCK_KEYS);

// Prefetch of values, and of a known next tile's keys, during multiply-adds, if read as vec4s and few enough.
const KEY_TURNS: u32 = (BLOCK_KEYS * HEAD_VECS + THREADS - 1u) / THREADS;
const VALUE_TURNS: u32 = (BLOCK_KEYS * VALUE_VECS + THREADS - 1u) / THREADS;
const KEYS_AHEAD: bool = !IS_GENERIC && READS_VECTORS && !SKIPS_TILES && KEY_TURNS <= 8u;
const VALUES_AHEAD: bool = !IS_GENERIC && READS_VECTORS && VALUE_TURNS <= 8u;

const_assert BLOCK_ROWS == THREAD_ROWS * ROWS;
const_assert BLOCK_KEYS == COLS * KEYS;
const_assert ROWS == ROW_VECS * VEC_ROWS;
const_assert BLOCK_KEYS % KEY_STEP == 0u;
const_assert ROWS * KEYS <= 32u; // bits of `hidden`

var<workgroup> query_tile: array<vec4<f32>, BLOCK_ROWS * QUERY_STRIDE>; // BLOCK_ROWS rows of queries, scaled
var<workgroup> tile: array<vec4<f32>, BLOCK_KEYS * TILE_STRIDE>; // BLOCK_KEYS keys, then their values
// p by key, then thread; 0 by its bits if masked
var<workgroup> weight_tile: array<vec4<f32>, BLOCK_KEYS * WEIGHT_STRIDE>;
var<workgroup> row_tile: array<Row, BLOCK_ROWS>; // positions of the rows, and their intervals of keys
var<workgroup> non_finite: atomic<u32>; // bits: 1 = a value, 2 = a query or key was infinite or NaN

// ROWS, as the bound of a loop whose body is long: rolled, unless it has one turn.
fn rolled_rows() -> u32 {
    if (ROWS == 1u) {
        return 1u;
    }
    return ROWS + params.zero;
}

// Index in `weight_tile` of a thread's pair i: key i % KEYS of row i / KEYS, in component i / KEYS % 4 of the vec4.
fn weight_at(thread_row: u32, thread_col: u32, i: u32) -> u32 {
    return (thread_col + i % KEYS * COLS) * WEIGHT_STRIDE + thread_row * ROW_VECS + i / KEYS / 4u;
}

// Key or value, and vec4 of it, that a thread moves to `tile` in round n.
fn turn(n: u32, thread: u32, vecs: u32) -> vec2<u32> {
    if (THREADS % vecs == 0u) {
        return vec2<u32>(n * (THREADS / vecs) + thread / vecs, thread % vecs);
    }
    let i = n * THREADS + thread;
    return vec2<u32>(i / vecs, i % vecs);
}

fn turns(vecs: u32) -> u32 {
    return (BLOCK_KEYS * vecs + THREADS - 1u) / THREADS;
}

// Fetches round n of the tile's keys. It has no branch at the end, so that loads overlap; repeated keys are masked.
fn fetch_keys(n: u32, item: Item, kv_head: u32, first: u32, end: u32, thread: u32) -> fetched_key {
    let at = turn(n, thread, head_vecs());
    return fetch_key(key_row(item, kv_head, min(first + at.x, end - 1u)), at.y * 4u);
}

fn fetch_values(n: u32, item: Item, kv_head: u32, first: u32, end: u32, thread: u32) -> fetched_value {
    let at = turn(n, thread, value_vecs());
    return fetch_value(value_row(item, kv_head, min(first + at.x, end - 1u)), at.y * 4u);
}

// Stores fetched keys in `tile`. Returns the bits of their largest magnitude.
fn store_keys(n: u32, words: fetched_key, thread: u32) -> u32 {
    let at = turn(n, thread, head_vecs());
    let k = widen_key(words, at.y * 4u);
    if ((!IS_GENERIC && BLOCK_KEYS * HEAD_VECS % THREADS == 0u) || at.x < BLOCK_KEYS) {
        tile[at.x * TILE_STRIDE + at.y] = k;
    }
    return magnitude(k);
}

fn store_values(n: u32, words: fetched_value, thread: u32) -> u32 {
    let at = turn(n, thread, value_vecs());
    let v = widen_value(words, at.y * 4u);
    if ((!IS_GENERIC && BLOCK_KEYS * VALUE_VECS % THREADS == 0u) || at.x < BLOCK_KEYS) {
        tile[at.x * TILE_STRIDE + at.y] = v;
    }
    return magnitude(v);
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, at: Invocation) {
    let work = fused_work(workgroup);
    if (!work.exists) {
        return;
    }
    let block = work.block;
    let item = work.item;
    let kv_head = block.first_head / params.group;
    let thread = thread_of(at);
    let by_subgroup = subgroups_hold(COLS);
    let thread_row = thread / COLS;
    let thread_col = thread % COLS;

    if (thread == 0u) {
        atomicStore(&non_finite, 0u);
    }
    for (var local = thread; local < BLOCK_ROWS; local += THREADS) {
        row_tile[local] = row_of(item, block, local);
    }
    workgroupBarrier(); // between row_tile written and read
    var largest_score_part = 0u;
    for (var i = thread; i < BLOCK_ROWS * head_vecs(); i += THREADS) {
        let row = row_tile[i / head_vecs()];
        var q = vec4<f32>(0.0);
        if (row.row < item.rows) {
            q = load_query(query_row(item, row.head, row.row), (i % head_vecs()) * 4u) * params.scale;
        }
        query_tile[i / head_vecs() * QUERY_STRIDE + i % head_vecs()] = q;
        largest_score_part = max(largest_score_part, magnitude(q));
    }

    var m: array<f32, ROWS>; // running max
    var l: array<f32, ROWS>; // running sum over this thread's keys
    var nan_rows = 0u; // one bit per row: it sees a score of NaN or +inf
    var acc: array<vec4<f32>, ROWS * VALUE_PER>;
    for (var r = 0u; r < ROWS; r++) {
        m[r] = LOWEST;
        l[r] = 0.0;
    }
    for (var i = 0u; i < ROWS * VALUE_PER; i++) {
        acc[i] = vec4<f32>(0.0);
    }

    let range = key_range(item, block);
    var next_keys: array<fetched_key, select(1u, KEY_TURNS, KEYS_AHEAD)>;
    var values: array<fetched_value, select(1u, VALUE_TURNS, VALUES_AHEAD)>;
    if (KEYS_AHEAD && range.start < range.end) {
        for (var n = 0u; n < KEY_TURNS; n++) {
            next_keys[n] = fetch_keys(n, item, kv_head, range.start, range.end, thread);
        }
    }
    for (var first = range.start; ; first += BLOCK_KEYS) {
        first = next_shown(item, block, first, range.end, thread);
        if (first >= range.end) {
            break;
        }
        workgroupBarrier(); // between the last tile's values and weights being read and this tile being written
        if (KEYS_AHEAD) {
            for (var n = 0u; n < KEY_TURNS; n++) {
                largest_score_part = max(largest_score_part, store_keys(n, next_keys[n], thread));
            }
        } else {
            for (var n = 0u; n < turns(head_vecs()); n++) {
                largest_score_part =
                    max(largest_score_part,
                        store_keys(n, fetch_keys(n, item, kv_head, first, range.end, thread), thread));
            }
        }
        if (largest_score_part >= INFINITE) {
            atomicOr(&non_finite, 2u);
        }
        workgroupBarrier(); // between keys written and read
        if (VALUES_AHEAD) {
            for (var n = 0u; n < VALUE_TURNS; n++) {
                values[n] = fetch_values(n, item, kv_head, first, range.end, thread);
            }
        }

        var score: array<f32, ROWS * KEYS>;
        for (var i = 0u; i < ROWS * KEYS; i++) {
            score[i] = 0.0;
        }
        let head_step = steps_at_once(HEAD_VECS, MOST_STEPS);
        for (var d = 0u; d < head_vecs() + params.zero; d += head_step) {
            for (var step = 0u; step < head_step; step++) {
                var k: array<vec4<f32>, KEYS>;
                for (var c = 0u; c < KEYS; c++) {
                    k[c] = tile[(thread_col + c * COLS) * TILE_STRIDE + d + step];
                }
                for (var r = 0u; r < ROWS; r++) {
                    let q = query_tile[(thread_row + r * THREAD_ROWS) * QUERY_STRIDE + d + step];
                    for (var c = 0u; c < KEYS; c++) {
                        score[r * KEYS + c] = dot_add(score[r * KEYS + c], q, k[c]);
                    }
                }
            }
        }

        // A sum that overflows shows at the end of the row; earlier NaN and infinity must be searched for pair by pair.
        let all_finite = (atomicLoad(&non_finite) & 2u) == 0u;
        var largest_bits = 0u; // of the scores; none are larger than those of -inf, which masks
        for (var i = 0u; i < ROWS * KEYS; i++) {
            largest_bits = max(largest_bits, bitcast<u32>(score[i]));
        }
        let is_clear = first >= range.clear_start && first + BLOCK_KEYS <= min(range.clear_end, range.end);
        let all_seen = is_clear && !tests_pairs() && all_finite && largest_bits < NEGATIVE_INFINITY;
        var hidden = 0u; // one bit per pair
        if (!all_seen) {
            // Scores pass through this thread's weight tile to keep the loop over rows rolled: its body can be long.
            for (var i = 0u; i < ROWS * KEYS; i++) {
                weight_tile[weight_at(thread_row, thread_col, i)][i / KEYS % 4u] = score[i];
            }
            for (var r = 0u; r < rolled_rows(); r++) {
                let row = row_tile[thread_row + r * THREAD_ROWS];
                for (var c = 0u; c < KEYS; c++) {
                    let key = first + thread_col + c * COLS;
                    let inside = key >= row.keys.start && key < min(row.keys.end, range.end);
                    let scaled = weight_tile[weight_at(thread_row, thread_col, r * KEYS + c)][r % 4u];
                    let scored = score_pair(scaled, pair_of(item, row.head, row.row, key), inside);
                    if (!scored.visible) {
                        hidden |= 1u << (r * KEYS + c);
                    }
                    if (is_nan_score(scored)) {
                        nan_rows |= 1u << r;
                    }
                    let is_number = scored.visible && !is_nan_score(scored);
                    weight_tile[weight_at(thread_row, thread_col, r * KEYS + c)][r % 4u] =
                        select(LOWEST, scored.score, is_number);
                }
            }
            for (var i = 0u; i < ROWS * KEYS; i++) {
                score[i] = weight_tile[weight_at(thread_row, thread_col, i)][i / KEYS % 4u];
            }
        }
        var old_m: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            old_m[r] = m[r]; // not the array as a whole: GL of Mesa 25.0 goes on with what becomes of `m`
            for (var c = 0u; c < KEYS; c++) {
                m[r] = max(m[r], score[r * KEYS + c]);
            }
        }
        row_max(&m, thread_row, thread_col, by_subgroup); // also a barrier: all threads are done with the keys

        for (var r = 0u; r < ROWS; r++) {
            for (var c = 0u; c < KEYS; c++) {
                score[r * KEYS + c] = exp(score[r * KEYS + c] - m[r]); // weights from here on
            }
        }
        if (!all_seen) {
            for (var i = 0u; i < ROWS * KEYS; i++) {
                score[i] = select(score[i], 0.0, ((hidden >> i) & 1u) != 0u);
            }
        }
        for (var r = 0u; r < ROWS; r++) {
            let shrink = exp(old_m[r] - m[r]);
            l[r] *= shrink;
            for (var c = 0u; c < KEYS; c++) {
                l[r] += score[r * KEYS + c];
            }
            for (var e = 0u; e < VALUE_PER; e++) {
                acc[r * VALUE_PER + e] *= shrink;
            }
        }
        if (is_dropping()) {
            for (var r = 0u; r < ROWS; r++) {
                let row = row_tile[thread_row + r * THREAD_ROWS];
                for (var c = 0u; c < KEYS; c++) {
                    if (((hidden >> (r * KEYS + c)) & 1u) == 0u) {
                        let key = first + thread_col + c * COLS;
                        let factor = dropout_scale(pair_of(item, row.head, row.row, key));
                        score[r * KEYS + c] = dropped_out(score[r * KEYS + c], factor);
                    }
                }
            }
        }
        for (var c = 0u; c < KEYS; c++) {
            for (var i = 0u; i < ROW_VECS; i++) {
                var p = vec4<f32>(0.0);
                for (var n = 0u; n < VEC_ROWS; n++) {
                    let at = (i * 4u + n) * KEYS + c;
                    p[n] = visible_weight(score[at], ((hidden >> at) & 1u) == 0u);
                }
                weight_tile[(thread_col + c * COLS) * WEIGHT_STRIDE + thread_row * ROW_VECS + i] = p;
            }
        }
        var largest = 0u;
        if (VALUES_AHEAD) {
            for (var n = 0u; n < VALUE_TURNS; n++) {
                largest = max(largest, store_values(n, values[n], thread));
            }
        } else {
            for (var n = 0u; n < turns(value_vecs()); n++) {
                largest = max(largest,
                    store_values(n, fetch_values(n, item, kv_head, first, range.end, thread), thread));
            }
        }
        if (largest >= INFINITE) {
            atomicOr(&non_finite, 1u);
        }
        workgroupBarrier(); // between values and weights written and read
        if (KEYS_AHEAD) {
            for (var n = 0u; n < KEY_TURNS; n++) {
                next_keys[n] = fetch_keys(n, item, kv_head, first + BLOCK_KEYS, range.end, thread);
            }
        }

        if ((atomicLoad(&non_finite) & 1u) != 0u) {
            for (var j = 0u; j < BLOCK_KEYS + params.zero; j++) { // rolled: slow path for non-finite values
                for (var r = 0u; r < ROWS; r++) {
                    let p = weight_tile[j * WEIGHT_STRIDE + thread_row * ROW_VECS + r / 4u][r % 4u];
                    if (bitcast<u32>(p) == 0u) {
                        continue; // 0 * NaN must not reach a row that masks the key
                    }
                    let weight = exact_weight(p);
                    for (var e = 0u; e < VALUE_PER; e++) {
                        acc[r * VALUE_PER + e] =
                            fma(vec4<f32>(weight), tile[j * TILE_STRIDE + thread_col + e * COLS], acc[r * VALUE_PER + e]);
                    }
                }
            }
        } else {
            var value_at = thread_col;
            var weight_at = thread_row * ROW_VECS;
            for (var j = 0u; j < BLOCK_KEYS + params.zero; j += KEY_STEP) {
                for (var step = 0u; step < KEY_STEP; step++) {
                    var v: array<vec4<f32>, VALUE_PER>;
                    for (var e = 0u; e < VALUE_PER; e++) {
                        v[e] = tile[value_at + step * TILE_STRIDE + e * COLS];
                    }
                    for (var i = 0u; i < ROW_VECS; i++) {
                        let p = weight_tile[weight_at + step * WEIGHT_STRIDE + i];
                        for (var n = 0u; n < VEC_ROWS; n++) {
                            for (var e = 0u; e < VALUE_PER; e++) {
                                let at = (i * 4u + n) * VALUE_PER + e;
                                acc[at] = fma(vec4<f32>(p[n]), v[e], acc[at]);
                            }
                        }
                    }
                }
                value_at += KEY_STEP * TILE_STRIDE;
                weight_at += KEY_STEP * WEIGHT_STRIDE;
            }
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        l[r] = select(l[r], NAN_SUM, ((nan_rows >> r) & 1u) != 0u);
    }
    row_sum(&l, thread_row, thread_col, by_subgroup);
    for (var r = 0u; r < ROWS; r++) {
        let row = row_tile[thread_row + r * THREAD_ROWS];
        if (row.row < item.rows) {
            let result = finish_row(item, block, row, m[r], l[r], thread_col == 0u);
            for (var e = 0u; e < VALUE_PER; e++) {
                if (thread_col + e * COLS < value_vecs()) {
                    store_part(item, block, row, result, (thread_col + e * COLS) * 4u, acc[r * VALUE_PER + e]);
                }
            }
        }
    }
}
