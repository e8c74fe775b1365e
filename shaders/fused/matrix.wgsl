// Defines: main: flash attention forward by cooperative matrices: f16 queries, keys and values, sums in f32.
// Expects: lib/*, load_query, load_key, load_value, store_output; types MatrixA, MatrixB, MatrixC of SIZE x SIZE;
//          THREADS, TILES, COLS, KEYS, BLOCK_*, HEAD_DIM, VALUE_DIM; full subgroups of at most SIZE * COLS threads.
// See: src/oracle/forward.rs has the formulas.
//
// The plain algorithm: see fused/tiles.wgsl; all variants are specialised. Each of the first TILES subgroups owns SIZE
// rows, whose queries and output stay in its matrices. A matrix's rows are inaccessible, so scores pass through
// workgroup memory, where COLS threads take each row, KEYS keys each, and weights return as matrices. Therefore:
// - The output is multiplied by exp(m - m') only when a max grows by more than LAZY (Shah et al., FlashAttention-4,
//   2025); until then weights are relative to an old max, at most e^LAZY times as large.
// - f16 has 11 bits: a weight is the sum of two, as exact as in f32 (22 bits), and e^LIFT times as large, at most 2^15,
//   so that small ones are not subnormal.
// - Values are stored transposed: a matrix instruction takes the keys of one column, which are neighbours there.

// Numbers of matrices, and strides of lines in elements; the surplus spreads lines over the banks of workgroup memory.
const HEAD_TILES: u32 = (HEAD_DIM + SIZE - 1u) / SIZE;
const VALUE_TILES: u32 = (VALUE_DIM + SIZE - 1u) / SIZE;
const KEY_TILES: u32 = BLOCK_KEYS / SIZE;
const CHUNKS: u32 = (VALUE_TILES + KEY_TILES - 1u) / KEY_TILES; // chunks of BLOCK_KEYS columns of the output
const QUERY_STRIDE: u32 = SIZE + 8u;
const KEY_STRIDE: u32 = HEAD_TILES * SIZE + 8u;
const VALUE_STRIDE: u32 = BLOCK_KEYS + 8u;
const SCORE_STRIDE: u32 = BLOCK_KEYS + 4u;
const WEIGHT_STRIDE: u32 = BLOCK_KEYS + 8u;

// Vec4s of a tile of keys; pairs of vec4s (of two keys) in a tile of values, and pairs per thread.
const KEY_VECS: u32 = BLOCK_KEYS * HEAD_TILES * SIZE / 4u;
const VALUE_PAIRS: u32 = BLOCK_KEYS / 2u * VALUE_TILES * SIZE / 4u;
const VALUE_PER: u32 = (VALUE_PAIRS + THREADS - 1u) / THREADS;

// True if values are prefetched while queries and keys are multiplied. Wide heads need their registers: with heads of
// 256 NVIDIA would spill 37, with every option 45 (lab, nv172, Mesa 26.2).
const VALUES_EARLY: bool = HEAD_TILES + VALUE_TILES <= 16u;

const LAZY: f32 = 5.545177; // ln 2^8
const LIFT: f32 = 4.8520303; // ln 2^7

const_assert BLOCK_ROWS == TILES * SIZE && THREADS == BLOCK_ROWS * COLS && BLOCK_KEYS == COLS * KEYS;
const_assert BLOCK_KEYS % SIZE == 0u && KEYS % 4u == 0u && KEYS <= 32u;

// BLOCK_KEYS keys; earlier SIZE query columns
var<workgroup> key_tile: array<f16, max(BLOCK_KEYS * KEY_STRIDE, BLOCK_ROWS * QUERY_STRIDE)>;
var<workgroup> value_tile: array<f16, VALUE_TILES * SIZE * VALUE_STRIDE>; // their values, one line per column
var<workgroup> score_tile: array<f32, BLOCK_ROWS * SCORE_STRIDE>; // scores; or BLOCK_KEYS columns of the output
var<workgroup> weight_tile: array<f16, BLOCK_ROWS * WEIGHT_STRIDE>; // high bits of p, one line per row
var<workgroup> weight_rest: array<f16, BLOCK_ROWS * WEIGHT_STRIDE>; // low bits of p
var<workgroup> moved: atomic<u32>; // the last turn that had to rescale the output
var<workgroup> non_finite: atomic<u32>; // 1 if any value so far was infinite or NaN

fn put_key(at: u32, numbers: vec4<f32>) {
    let halves = vec4<f16>(numbers);
    key_tile[at] = halves.x;
    key_tile[at + 1u] = halves.y;
    key_tile[at + 2u] = halves.z;
    key_tile[at + 3u] = halves.w;
}

// Four columns of the values of two neighbouring keys.
struct ValuePair {
    even: vec4<f32>,
    odd: vec4<f32>,
}

fn load_pair(i: u32, item: Item, kv_head: u32, first: u32, end: u32) -> ValuePair {
    let key = first + i % (BLOCK_KEYS / 2u) * 2u;
    let dim = min(i / (BLOCK_KEYS / 2u) * 4u, VALUE_DIM - 4u);
    let even = load_value(value_row(item, kv_head, min(key, end - 1u)), dim);
    return ValuePair(even, load_value(value_row(item, kv_head, min(key + 1u, end - 1u)), dim));
}

// Stores the finite elements of a pair in the tile, 0 for the others and past the last column.
fn put_pair(i: u32, pair: ValuePair) {
    if (VALUE_PAIRS % THREADS != 0u && i >= VALUE_PAIRS) {
        return;
    }
    var even = pair.even;
    var odd = pair.odd;
    let dim = i / (BLOCK_KEYS / 2u) * 4u;
    let total = abs(even) + abs(odd);
    if (!is_finite(vec4<f32>(total.x + total.y + total.z + total.w))) { // finite f16 cannot overflow a sum in f32
        atomicStore(&non_finite, 1u);
        even = finite_part(even);
        odd = finite_part(odd);
    }
    for (var c = 0u; c < 4u; c++) {
        let at = (dim + c) * VALUE_STRIDE + i % (BLOCK_KEYS / 2u) * 2u;
        let inside = VALUE_DIM % SIZE == 0u || dim < VALUE_DIM;
        value_tile[at] = f16(select(0.0, even[c], inside));
        value_tile[at + 1u] = f16(select(0.0, odd[c], inside));
    }
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
    let subgroup = thread / at.lanes;
    let thread_row = thread / COLS;
    let thread_col = thread % COLS;
    let owns = subgroup < TILES; // smaller subgroups outnumber the tiles
    let own_row = subgroup * SIZE;

    if (thread == 0u) {
        atomicStore(&moved, 0u);
        atomicStore(&non_finite, 0u);
    }
    // A few columns of all rows at a time, to load outside branches: compilers rebuild matrices where branches meet.
    var query: array<MatrixA, HEAD_TILES>;
    for (var d = 0u; d < HEAD_TILES; d++) {
        for (var i = thread; i < BLOCK_ROWS * SIZE / 4u; i += THREADS) {
            let own = row_of(item, block, i / (SIZE / 4u));
            let dim = i % (SIZE / 4u) * 4u;
            var q = vec4<f32>(0.0);
            if (own.row < item.rows && d * SIZE + dim < HEAD_DIM) {
                q = load_query(query_row(item, own.head, own.row), d * SIZE + dim);
            }
            put_key(i / (SIZE / 4u) * QUERY_STRIDE + dim, q);
        }
        workgroupBarrier(); // between queries written and read
        query[d] = coopLoadT<MatrixA>(&key_tile[min(own_row, BLOCK_ROWS - SIZE) * QUERY_STRIDE], QUERY_STRIDE);
        workgroupBarrier(); // between queries read and the next ones, or keys, written
    }

    let row = row_of(item, block, thread_row);
    let exists = row.row < item.rows;
    var m = LOWEST; // reference of the weights: LIFT below a recent max
    var l = 0.0; // running sum over this thread's keys
    var is_nan = false; // true if the row sees a score of NaN or +inf
    var acc: array<MatrixC, VALUE_TILES>;
    for (var e = 0u; e < VALUE_TILES; e++) {
        acc[e] = MatrixC();
    }

    var turn = 0u;
    let range = key_range(item, block);
    for (
        var first = next_shown(item, block, range.start, range.end, thread);
        first < range.end;
        first = next_shown(item, block, first + BLOCK_KEYS, range.end, thread)
    ) {
        turn++;
        for (var n = 0u; n < (KEY_VECS + THREADS - 1u) / THREADS; n++) {
            let i = n * THREADS + thread;
            if (KEY_VECS % THREADS != 0u && i >= KEY_VECS) {
                break;
            }
            let line = i / (HEAD_TILES * SIZE / 4u);
            let dim = i % (HEAD_TILES * SIZE / 4u) * 4u;
            // No branches, so that loads overlap; repeated keys are masked.
            let k = load_key(key_row(item, kv_head, min(first + line, range.end - 1u)), min(dim, HEAD_DIM - 4u));
            put_key(line * KEY_STRIDE + dim, select(vec4<f32>(0.0), k, HEAD_DIM % SIZE == 0u || dim < HEAD_DIM));
        }
        workgroupBarrier(); // between keys written and read; also: all are done with the last values and weights

        var pairs: array<ValuePair, VALUE_PER>;
        for (var n = 0u; n < VALUE_PER && VALUES_EARLY; n++) {
            pairs[n] = load_pair(n * THREADS + thread, item, kv_head, first, range.end);
        }
        if (owns) {
            var score: array<MatrixC, KEY_TILES>;
            for (var n = 0u; n < KEY_TILES; n++) {
                score[n] = MatrixC();
            }
            for (var d = 0u; d < HEAD_TILES; d++) {
                for (var n = 0u; n < KEY_TILES; n++) {
                    let k = coopLoad<MatrixB>(&key_tile[n * SIZE * KEY_STRIDE + d * SIZE], KEY_STRIDE);
                    score[n] = coopMultiplyAdd(query[d], k, score[n]);
                }
            }
            for (var n = 0u; n < KEY_TILES; n++) {
                coopStoreT(score[n], &score_tile[own_row * SCORE_STRIDE + n * SIZE], SCORE_STRIDE);
            }
        }
        for (var n = 0u; n < VALUE_PER; n++) {
            if (!VALUES_EARLY) {
                pairs[n] = load_pair(n * THREADS + thread, item, kv_head, first, range.end);
            }
            put_pair(n * THREADS + thread, pairs[n]);
        }
        workgroupBarrier(); // between scores written and read

        let clear = first >= range.clear_start && first + BLOCK_KEYS <= min(range.clear_end, range.end);
        var score: array<f32, KEYS>;
        var visible = 0u; // one bit per key
        var peak = LOWEST;
        for (var c = 0u; c < KEYS; c++) {
            score[c] = score_tile[thread_row * SCORE_STRIDE + thread_col * KEYS + c] * params.scale;
            let key = first + thread_col * KEYS + c;
            var inside = exists;
            if (!clear) {
                inside = key >= row.keys.start && key < min(row.keys.end, range.end);
            }
            let scored = score_pair(score[c], pair_of(item, row.head, row.row, key), inside);
            is_nan = is_nan || is_nan_score(scored);
            score[c] = select(LOWEST, scored.score, scored.visible && !is_nan_score(scored));
            visible |= select(0u, 1u << c, scored.visible);
            peak = max(peak, score[c]);
        }
        for (var step = 1u; step < COLS; step <<= 1u) {
            peak = max(peak, subgroupShuffleXor(peak, step));
        }
        var shrink = 1.0;
        if (peak > m + (LIFT + LAZY)) {
            shrink = exp(m - (peak - LIFT));
            if (m > LOWEST) {
                atomicMax(&moved, turn);
            }
            m = peak - LIFT;
        }
        l *= shrink;
        for (var c = 0u; c < KEYS; c++) {
            let sees = (visible & (1u << c)) != 0u;
            var p = select(0.0, exp(score[c] - m), sees);
            l += p;
            if (is_dropping()) {
                let at = pair_of(item, row.head, row.row, first + thread_col * KEYS + c);
                if (sees && dropout_scale(at) == 0.0) {
                    p = 0.0;
                }
            }
            // the bits that f16 holds; compilers fold f32(f16(p)) to p
            let half = bitcast<f32>(bitcast<u32>(p) & 0xffffe000u);
            let at = thread_row * WEIGHT_STRIDE + thread_col * KEYS + c;
            weight_tile[at] = f16(half);
            weight_rest[at] = f16(p - half);
        }
        workgroupBarrier(); // between weights written and read

        if (atomicLoad(&moved) == turn) {
            for (var chunk = 0u; chunk < CHUNKS + params.zero; chunk++) { // rolled: rarely run
                if (owns) {
                    for (var e = 0u; e < VALUE_TILES; e++) { // an index that depends on chunk would put acc in memory
                        if (e / KEY_TILES == chunk) {
                            coopStoreT(acc[e], &score_tile[own_row * SCORE_STRIDE + e % KEY_TILES * SIZE],
                                SCORE_STRIDE);
                        }
                    }
                }
                workgroupBarrier(); // between columns written and read
                for (var c = 0u; c < KEYS; c++) {
                    score_tile[thread_row * SCORE_STRIDE + thread_col * KEYS + c] *= shrink;
                }
                workgroupBarrier(); // between columns written and read
                if (owns) {
                    for (var e = 0u; e < VALUE_TILES; e++) {
                        if (e / KEY_TILES == chunk) {
                            acc[e] = coopLoadT<MatrixC>(&score_tile[own_row * SCORE_STRIDE + e % KEY_TILES * SIZE],
                                SCORE_STRIDE);
                        }
                    }
                }
                workgroupBarrier(); // between columns read and the next ones written
            }
        }
        if (owns) {
            for (var n = 0u; n < KEY_TILES; n++) {
                let p = coopLoadT<MatrixA>(&weight_tile[own_row * WEIGHT_STRIDE + n * SIZE], WEIGHT_STRIDE);
                let rest = coopLoadT<MatrixA>(&weight_rest[own_row * WEIGHT_STRIDE + n * SIZE], WEIGHT_STRIDE);
                for (var e = 0u; e < VALUE_TILES; e++) {
                    let v = coopLoad<MatrixB>(&value_tile[e * SIZE * VALUE_STRIDE + n * SIZE], VALUE_STRIDE);
                    acc[e] = coopMultiplyAdd(rest, v, coopMultiplyAdd(p, v, acc[e]));
                }
            }
        }
    }

    l = select(l, NAN_SUM, is_nan);
    for (var step = 1u; step < COLS; step <<= 1u) {
        l += subgroupShuffleXor(l, step);
    }
    var result = RowResult(0.0, 0.0, false);
    if (exists) {
        result = finish_row(item, block, row, m, l, thread_col == 0u);
        if (is_dropping()) {
            result.own *= params.dropout_factor;
        }
    }
    for (var chunk = 0u; chunk < CHUNKS + params.zero; chunk++) {
        workgroupBarrier(); // between scores or columns read and the next columns written
        if (owns) {
            for (var e = 0u; e < VALUE_TILES; e++) {
                if (e / KEY_TILES == chunk) {
                    coopStoreT(acc[e], &score_tile[own_row * SCORE_STRIDE + e % KEY_TILES * SIZE], SCORE_STRIDE);
                }
            }
        }
        workgroupBarrier(); // between columns written and read
        if (exists) {
            for (var e = thread_col * 4u; e < BLOCK_KEYS; e += COLS * 4u) {
                let at = thread_row * SCORE_STRIDE + e;
                let dim = chunk * BLOCK_KEYS + e;
                if (dim < VALUE_DIM) {
                    var o = vec4<f32>(score_tile[at], score_tile[at + 1u], score_tile[at + 2u], score_tile[at + 3u]);
                    if (atomicLoad(&non_finite) != 0u) {
                        o += special_values(item, kv_head, row, range, dim);
                    }
                    store_part(item, block, row, result, dim, o);
                }
            }
        }
    }
}

// Output from infinite and NaN values that a row sees, for four elements: the sums left them out. Slow, rarely called.
fn special_values(item: Item, kv_head: u32, row: Row, keys: KeyRange, dim: u32) -> vec4<f32> {
    var sum = vec4<f32>(0.0);
    for (var key = max(keys.start, row.keys.start); key < min(keys.end, row.keys.end); key++) {
        let v = load_value(value_row(item, kv_head, key), dim);
        if (is_finite(v)) {
            continue;
        }
        var scaled = 0.0; // visibility may depend on the score
        for (var d = 0u; d < HEAD_DIM; d += 4u) {
            let q = load_query(query_row(item, row.head, row.row), d) * params.scale;
            scaled = dot_add(scaled, q, load_key(key_row(item, kv_head, key), d));
        }
        if (!score_pair(scaled, pair_of(item, row.head, row.row, key), true).visible) {
            continue;
        }
        sum += special_part(v) * dropout_scale(pair_of(item, row.head, row.row, key));
    }
    return sum;
}
