// Defines: main: turns rows of the score matrix into softmax weights in place; lse and (m, l) of the rows. The weight
//          of a masked key is 0, of a visible key at least the smallest subnormal.
// Expects: lib/*, scores (read_write), store_lse, store_stats.
// See: src/oracle/forward.rs has the formulas.
//
// A workgroup takes one row: its max m, the sum of exp(score - m), the division. A sink joins max and sum only.

const THREADS: u32 = 64u;

var<workgroup> partial: array<f32, THREADS>; // one element per thread during a reduction

fn workgroup_max(value: f32, thread: u32) -> f32 {
    workgroupBarrier(); // between the last reduction being read and this one being written
    partial[thread] = value;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier(); // between one round and the next
        if (thread < step) {
            partial[thread] = max(partial[thread], partial[thread + step]);
        }
    }
    workgroupBarrier(); // between the result written and read
    return partial[0];
}

fn workgroup_sum(value: f32, thread: u32) -> f32 {
    workgroupBarrier(); // between the last reduction being read and this one being written
    partial[thread] = value;
    for (var step = THREADS / 2u; step > 0u; step >>= 1u) {
        workgroupBarrier(); // between one round and the next
        if (thread < step) {
            partial[thread] += partial[thread + step];
        }
    }
    workgroupBarrier(); // between the result written and read
    return partial[0];
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let index = workgroup_index(id);
    if (index == NO_WORK) {
        return;
    }
    let pair = params.first_pair + index / params.row_count;
    let head = pair % params.num_heads;
    let item = item_of(pair / params.num_heads);
    let row = params.first_row + index % params.row_count;
    let line = index * params.seq_len_kv;

    // A score of -inf is masked; any other non-finite score makes the row NaN.
    var m = LOWEST;
    var sum_or_nan = 0.0;
    for (var key = thread; key < params.seq_len_kv; key += THREADS) {
        let score = scores[line + key];
        let is_finite = (score & 0x7fffffffu) < INFINITE;
        m = max(m, select(LOWEST, bitcast<f32>(score), is_finite));
        sum_or_nan = select(sum_or_nan, NAN_SUM, !is_finite && score != NEGATIVE_INFINITY);
    }
    let has_sink = has_flag(FLAG_SINKS);
    var sink = 0.0;
    if (has_sink) {
        sink = bitcast<f32>(table(params.table_sinks + head));
        m = max(m, sink);
    }
    m = workgroup_max(m, thread);
    for (var key = thread; key < params.seq_len_kv; key += THREADS) {
        let score = scores[line + key];
        if ((score & 0x7fffffffu) < INFINITE) {
            sum_or_nan += exp(bitcast<f32>(score) - m);
        }
    }
    sum_or_nan = workgroup_sum(sum_or_nan, thread);
    let is_nan = magnitude_bits(sum_or_nan) >= LARGEST_SUM;
    var l = select(sum_or_nan, 0.0, is_nan);
    if (has_sink) {
        l += exp(sink - m);
    }
    for (var key = thread; key < params.seq_len_kv; key += THREADS) {
        let score = scores[line + key];
        let is_finite = (score & 0x7fffffffu) < INFINITE;
        let weight = visible_weight(exp(select(m, bitcast<f32>(score), is_finite) - m) / l, score != NEGATIVE_INFINITY);
        scores[line + key] = select(bitcast<u32>(weight), NOT_A_NUMBER, is_nan && score != NEGATIVE_INFINITY);
    }
    if (thread == 0u && row < item.rows) {
        let at = lse_at(item, head, row);
        store_lse(at, lse_bits(m, l, is_nan));
        store_stats(at, vec2<u32>(bitcast<u32>(m), select(bitcast<u32>(l), NOT_A_NUMBER, is_nan)));
    }
}
