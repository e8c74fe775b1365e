// Defines: main: merge of partial results over disjoint keys:
//          m = max m_s, l = sum l_s exp(m_s - m), output = sum (l_s exp(m_s - m) / l) output_s.
// Expects: lib/*, lib/output_vec.wgsl; partial_output, partial_stats (read), lse_words, stats_words, store_output,
//          rotated_back; value_vecs; const PARTS_OF_LSE.
// See: src/oracle/forward.rs has the formulas.
//
// A thread takes one vec4 of one row. Each part is normalised by its own sum, so the result is a convex combination and
// overflows only where a part did. A part that sees no key has l = 0 and weight 0. A sink joins the denominator here, not
// in the parts. An app's parts have lse instead: m = lse, l = 1, weights as exact as lse, |lse| * 2^-24.

const THREADS: u32 = 64u;

struct Partial {
    m: f32,
    l: f32,
    is_nan: bool,
}

fn part_of(at: u32) -> Partial {
    if (PARTS_OF_LSE) {
        let lse = partial_stats[at];
        let is_number = (lse & 0x7fffffffu) < INFINITE;
        return Partial(select(LOWEST, bitcast<f32>(lse), is_number), select(0.0, 1.0, is_number), !is_number
            && lse != NEGATIVE_INFINITY);
    }
    let l = partial_stats[2u * (params.stats_from + at) + 1u];
    let is_nan = (l & 0x7fffffffu) >= INFINITE;
    return Partial(bitcast<f32>(partial_stats[2u * (params.stats_from + at)]), select(bitcast<f32>(l), 0.0, is_nan),
        is_nan);
}

@compute @workgroup_size(THREADS, 1, 1)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let workgroup = workgroup_index(id);
    if (workgroup == NO_WORK) {
        return;
    }
    let own = output_vec_of(workgroup * THREADS + thread);
    // Parts are stored as [split, lse_at] rows of whole vec4s.
    let at = lse_at(own.item, own.head, own.row);
    var m = LOWEST;
    var is_nan = false;
    for (var s = 0u; s < params.splits; s++) {
        let part = part_of(s * params.lse_split_stride + at);
        m = max(m, part.m);
        is_nan = is_nan || part.is_nan;
    }
    var total = 0.0;
    if (has_flag(FLAG_SINKS)) {
        let sink = bitcast<f32>(table(params.table_sinks + own.head));
        m = max(m, sink);
        total = exp(sink - m);
    }
    for (var s = 0u; s < params.splits; s++) {
        let part = part_of(s * params.lse_split_stride + at);
        total += part.l * exp(part.m - m);
    }
    var numbers = vec4<f32>(0.0);
    for (var s = 0u; s < params.splits; s++) {
        let part = part_of(s * params.lse_split_stride + at);
        if (part.l > 0.0) {
            let weight = part.l * exp(part.m - m) / total;
            numbers = fma(vec4<f32>(weight),
                partial_output[(s * params.lse_split_stride + at) * value_vecs() + own.column], numbers);
        }
    }
    let output = rotated_back(numbers, thread);
    if (!own.exists) {
        return;
    }
    if (own.column == 0u) {
        store_lse(at, lse_bits(m, total, is_nan));
        store_stats(at, vec2<u32>(bitcast<u32>(m), select(bitcast<u32>(total), NOT_A_NUMBER, is_nan)));
    }
    store_output(output_row(own.item, own.head, own.row), own.column * 4u,
        select(bitcast<vec4<u32>>(output), vec4<u32>(NOT_A_NUMBER), is_nan));
}
