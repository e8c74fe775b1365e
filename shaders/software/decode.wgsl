// Defines: main: flash attention forward for few query rows, bound by reading keys and values from memory.
// Expects: lib/*, load_query, load_key, load_value, store_output; consts THREADS, LANES, ROWS, KEYS, BLOCK_*, *_VECS.
// See: src/oracle/forward.rs has the formulas.
//
// A workgroup is one subgroup of LANES threads and takes ROWS query rows. Lane l holds vec4s l, l + LANES, ... of
// queries, output, keys and values; keys and values are read once, by neighbouring lanes. For LANES keys at a time,
// lane l finds the address of key l (by divisions if paged), each lane sums its part of every dot product, a butterfly
// of shuffles leaves the score of key l in lane l for softmax, and every weight is broadcast across the subgroup.

const_assert THREADS == LANES;
const_assert BLOCK_ROWS == ROWS;
const_assert BLOCK_KEYS == KEYS;
const_assert KEYS % LANES == 0u;

const HEAD_SLICES: u32 = (HEAD_VECS + LANES - 1u) / LANES;
const VALUE_SLICES: u32 = (VALUE_VECS + LANES - 1u) / LANES;
const LANE_BITS: u32 = firstTrailingBit(LANES);

// Output from infinite and NaN values, as in lanes.wgsl.
var<private> special: array<vec4<f32>, ROWS * VALUE_SLICES>;

// Vec4 of a row that a lane holds in slice i; past the end the last one, which is dropped.
fn column_of(i: u32, lane: u32, width: u32) -> u32 {
    return min(i * LANES + lane, width - 1u);
}

// Sum of parts[lane] over all lanes.
fn sum_of_own(parts: array<f32, LANES>, lane: u32) -> f32 {
    var left = parts;
    for (var s = 1u; s <= LANE_BITS; s++) {
        let half = LANES >> s;
        let upper = (lane & half) != 0u;
        for (var n = 0u; n < LANES / 2u; n++) {
            if (n < half) {
                let own = select(left[n], left[n + half], upper);
                let other = select(left[n + half], left[n], upper);
                left[n] = own + subgroupShuffleXor(other, half);
            }
        }
    }
    return left[0];
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(subgroup_invocation_id) lane: u32) {
    let work = fused_work(id);
    if (!work.exists) {
        return;
    }
    let block = work.block;
    let item = work.item;
    let kv_head = block.first_head / params.group;

    var query: array<array<vec4<f32>, HEAD_SLICES>, ROWS>;
    var acc: array<array<vec4<f32>, VALUE_SLICES>, ROWS>;
    var rows: array<Row, ROWS>;
    var m: array<f32, ROWS>; // running max, equal in all lanes
    var l: array<f32, ROWS>; // running sum over this lane's keys
    var nan_rows = 0u; // one bit per row: it sees a score of NaN or +inf
    for (var r = 0u; r < ROWS; r++) {
        rows[r] = row_of(item, block, r);
        m[r] = LOWEST;
        l[r] = 0.0;
        let at = query_row(item, rows[r].head, min(rows[r].row, item.rows - 1u));
        for (var i = 0u; i < HEAD_SLICES; i++) {
            let scale = select(0.0, params.scale, i * LANES + lane < HEAD_VECS);
            query[r][i] = load_query(at, column_of(i, lane, HEAD_VECS) * 4u) * scale;
        }
        for (var i = 0u; i < VALUE_SLICES; i++) {
            acc[r][i] = vec4<f32>(0.0);
        }
    }

    let range = key_range(item, block);
    var first = next_shown(item, block, range.start, range.end, lane);
    while (first < range.end) {
        let key = first + lane;
        let own_key_row = key_row(item, kv_head, min(key, range.end - 1u)); // repeated keys are masked
        let own_value_row = value_row(item, kv_head, min(key, range.end - 1u));
        var parts: array<array<f32, LANES>, ROWS>;
        for (var c = 0u; c < LANES; c++) {
            let at = subgroupShuffle(own_key_row, c);
            for (var r = 0u; r < ROWS; r++) {
                parts[r][c] = 0.0;
            }
            for (var i = 0u; i < HEAD_SLICES; i++) {
                let k = load_key(at, column_of(i, lane, HEAD_VECS) * 4u);
                for (var r = 0u; r < ROWS; r++) {
                    let q = query[r][i];
                    parts[r][c] = dot_add(parts[r][c], q, k);
                }
            }
        }

        var weight: array<f32, ROWS>; // for this lane's key
        var shrink: array<f32, ROWS>;
        for (var r = 0u; r < ROWS; r++) {
            let inside = key >= rows[r].keys.start && key < min(rows[r].keys.end, range.end);
            let scored = score_pair(sum_of_own(parts[r], lane), pair_of(item, rows[r].head, rows[r].row, key), inside);
            nan_rows |= select(0u, 1u << r, is_nan_score(scored));
            let score = select(LOWEST, scored.score, scored.visible && !is_nan_score(scored));
            var new_m = max(m[r], score);
            for (var step = 1u; step < LANES; step <<= 1u) {
                new_m = max(new_m, subgroupShuffleXor(new_m, step));
            }
            shrink[r] = exp(m[r] - new_m);
            m[r] = new_m;
            weight[r] = visible_weight(exp(score - new_m), scored.visible);
            l[r] = fma(l[r], shrink[r], weight[r]);
            if (is_dropping()) {
                let factor = dropout_scale(pair_of(item, rows[r].head, rows[r].row, key));
                weight[r] = visible_weight(dropped_out(weight[r], factor), scored.visible);
            }
            for (var i = 0u; i < VALUE_SLICES; i++) {
                acc[r][i] *= shrink[r];
            }
        }

        var infinite = false;
        for (var c = 0u; c < LANES; c++) {
            let at = subgroupShuffle(own_value_row, c);
            var p: array<f32, ROWS>;
            for (var r = 0u; r < ROWS; r++) {
                p[r] = subgroupShuffle(weight[r], c);
            }
            for (var i = 0u; i < VALUE_SLICES; i++) {
                let loaded = load_value(at, column_of(i, lane, VALUE_VECS) * 4u);
                infinite = infinite || !is_finite(loaded);
                let v = finite_part(loaded);
                for (var r = 0u; r < ROWS; r++) {
                    acc[r][i] = fma(vec4<f32>(p[r]), v, acc[r][i]);
                }
            }
        }
        if (any_thread(infinite, lane)) {
            for (var c = 0u; c < LANES + params.zero; c++) { // rolled: slow path for non-finite values
                let at = subgroupShuffle(own_value_row, c);
                for (var r = 0u; r < ROWS; r++) {
                    let p = subgroupShuffle(weight[r], c);
                    if (bitcast<u32>(p) != 0u) {
                        for (var i = 0u; i < VALUE_SLICES + params.zero; i++) {
                            special[r * VALUE_SLICES + i] += exact_weight(p)
                                * special_part(load_value(at, column_of(i, lane, VALUE_VECS) * 4u));
                        }
                    }
                }
            }
        }
        first += LANES;
        if (has_visible_terms() && (first - range.start) % KEYS == 0u) {
            first = next_shown(item, block, first, range.end, lane);
        }
    }

    for (var r = 0u; r < ROWS; r++) {
        var total = select(l[r], NAN_SUM, ((nan_rows >> r) & 1u) != 0u);
        for (var step = 1u; step < LANES; step <<= 1u) {
            total += subgroupShuffleXor(total, step);
        }
        if (rows[r].row < item.rows) {
            let result = finish_row(item, block, rows[r], m[r], total, lane == 0u);
            for (var i = 0u; i < VALUE_SLICES; i++) {
                if (i * LANES + lane < VALUE_VECS) {
                    store_part(item, block, rows[r], result, (i * LANES + lane) * 4u,
                        acc[r][i] + special[r * VALUE_SLICES + i]);
                }
            }
        }
    }
}
