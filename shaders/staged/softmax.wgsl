// Defines: main: turns rows of the score matrix into softmax weights in place; lse and (m, l) of the rows. The weight
//          of a masked key is 0, of a visible key at least the smallest subnormal.
// Expects: lib/*, scores (read_write), store_lse, store_stats; const ROW_THREADS, a power of two.
// See: src/oracle/forward.rs has the formulas.
//
// ROW_THREADS threads take one row: its max m, the sum of exp(score - m), the division. A sink joins max and sum only.
// Threads of a row read neighbouring scores, as GPUs like it; where lanes are elements of a vector, a thread takes a row.

const THREADS: u32 = 64u;
const ROWS: u32 = THREADS / ROW_THREADS;
const AT_ONCE: u32 = 4u; // scores of a thread

var<workgroup> partial: array<f32, THREADS>; // one element per thread during a reduction

fn row_max(value: f32, thread: u32) -> f32 {
    if (ROW_THREADS == 1u) {
        return value;
    }
    workgroupBarrier(); // between the last reduction being read and this one being written
    partial[thread] = value;
    for (var step = ROW_THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier(); // between one round and the next
        if (thread % ROW_THREADS < step) {
            partial[thread] = max(partial[thread], partial[thread + step]);
        }
    }
    workgroupBarrier(); // between the result written and read
    return partial[thread / ROW_THREADS * ROW_THREADS];
}

fn row_sum(value: f32, thread: u32) -> f32 {
    if (ROW_THREADS == 1u) {
        return value;
    }
    workgroupBarrier(); // between the last reduction being read and this one being written
    partial[thread] = value;
    for (var step = ROW_THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier(); // between one round and the next
        if (thread % ROW_THREADS < step) {
            partial[thread] += partial[thread + step];
        }
    }
    workgroupBarrier(); // between the result written and read
    return partial[thread / ROW_THREADS * ROW_THREADS];
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let row_tiles = (params.row_count + ROWS - 1u) / ROWS;
    let pair = index / row_tiles;
    let head = (params.first_pair + pair) % params.num_heads;
    let item = item_of((params.first_pair + pair) / params.num_heads);
    let local = index % row_tiles * ROWS + thread / ROW_THREADS;
    let row = params.first_row + local;
    let line = (pair * params.row_count + local) * params.seq_len_kv;
    let column = thread % ROW_THREADS;
    let keys = select(0u, params.seq_len_kv, local < params.row_count);

    // A score of -inf is masked; any other non-finite score makes the row NaN.
    var m = LOWEST;
    var sum = 0.0;
    var nan = 0.0;
    for (var first = column; first < keys; first += AT_ONCE * ROW_THREADS) {
        var score: array<f32, AT_ONCE>;
        var is_finite: array<bool, AT_ONCE>;
        let old_m = m;
        for (var i = 0u; i < AT_ONCE; i++) {
            let key = first + i * ROW_THREADS;
            let stored = scores[line + select(first, key, key < keys)]; // none of another thread's
            let bits = select(NEGATIVE_INFINITY, stored, key < keys);
            is_finite[i] = (bits & 0x7fffffffu) < INFINITE;
            score[i] = select(LOWEST, bitcast<f32>(bits), is_finite[i]);
            nan = select(nan, NAN_SUM, !is_finite[i] && bits != NEGATIVE_INFINITY);
            m = max(m, score[i]);
        }
        sum *= exp(old_m - m);
        for (var i = 0u; i < AT_ONCE; i++) {
            sum += select(0.0, exp(score[i] - m), is_finite[i]);
        }
    }
    let own_m = m;
    let has_sink = has_flag(FLAG_SINKS);
    var sink = 0.0;
    if (has_sink) {
        sink = bitcast<f32>(table(params.table_sinks + head));
        m = max(m, sink);
    }
    m = row_max(m, thread);
    let sum_or_nan = row_sum(sum * exp(own_m - m) + nan, thread);
    let is_nan = magnitude_bits(sum_or_nan) >= LARGEST_SUM;
    var l = select(sum_or_nan, 0.0, is_nan);
    if (has_sink) {
        l += exp(sink - m);
    }
    for (var key = column; key < keys; key += ROW_THREADS) {
        let score = scores[line + key];
        let is_finite = (score & 0x7fffffffu) < INFINITE;
        let weight = visible_weight(exp(select(m, bitcast<f32>(score), is_finite) - m) / l, score != NEGATIVE_INFINITY);
        scores[line + key] = select(bitcast<u32>(weight), NOT_A_NUMBER, is_nan && score != NEGATIVE_INFINITY);
    }
    if (column == 0u && local < params.row_count && row < item.rows) {
        let at = lse_at(item, head, row);
        store_lse(at, lse_bits(m, l, is_nan));
        store_stats(at, vec2<u32>(bitcast<u32>(m), select(bitcast<u32>(l), NOT_A_NUMBER, is_nan)));
    }
}
