// Defines: main: each row of the score matrix turned into softmax weights in place, and the row's lse. A hidden key's weight is -0.
// Expects: lib/*, scores (read_write), store_lse.
// Twin: src/cpu/naive.rs has the formulas.
//
// A workgroup takes one row: the maximum, the sum of exp(score - maximum), the division. A sink joins the sum only.

const THREADS: u32 = 64u;

var<workgroup> partial: array<f32, THREADS>; // one number a thread, on its way through a reduction

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

    var top = LOWEST;
    for (var key = thread; key < params.seq_len_kv; key += THREADS) {
        top = max(top, scores[line + key]);
    }
    var has_sink = has_flag(FLAG_SINKS);
    var sink = 0.0;
    if (has_sink) {
        sink = bitcast<f32>(table(params.table_sinks + head));
        top = max(top, sink);
    }
    top = workgroup_max(top, thread);
    var sum = 0.0;
    for (var key = thread; key < params.seq_len_kv; key += THREADS) {
        if (!is_negative_infinity(scores[line + key])) {
            sum += exp(scores[line + key] - top);
        }
    }
    sum = workgroup_sum(sum, thread);
    if (has_sink) {
        sum += exp(sink - top);
    }
    for (var key = thread; key < params.seq_len_kv; key += THREADS) {
        let score = scores[line + key];
        scores[line + key] = select(exp(score - top) / sum, bitcast<f32>(HIDDEN_BITS), is_negative_infinity(score));
    }
    if (thread == 0u && row < item.rows) {
        store_lse(lse_at(item, head, row), select(top + log(sum), negative_infinity(), sum == 0.0));
    }
}
