// Defines: RowResult, finish_row: normalisation, sink, (m, l) or lse of a finished row; store_part: its output.
// Expects: lib/*, Block, Row, lse_words, prior_output, store_output; const PARTIAL.
// See: src/plan/fused.rs (splits and ranges of keys), fused/merge.wgsl.

// Factors: output = prior * (output of earlier parts) + own * (sum of this kernel); NaN by its bits where is_nan.
struct RowResult {
    prior: f32,
    own: f32,
    is_nan: bool,
}

// Takes a row's running max m and running sum l = sum of exp(score - m). The thread that `writes` stores (m, l) of a
// part, merged with earlier parts, or else (m, l) or lse of the whole row, with its sink.
fn finish_row(item: Item, block: Block, row: Row, maximum: f32, sum: f32, writes: bool) -> RowResult {
    let at = lse_at(item, row.head, row.row);
    var is_nan = magnitude_bits(sum) >= LARGEST_SUM;
    let own_sum = select(sum, 0.0, is_nan);
    var old_m = LOWEST;
    var old_sum = 0.0;
    if (PARTIAL) {
        if (has_flag(FLAG_ADDS)) {
            let old = 2u * (params.stats_from + block.split * params.lse_split_stride + at);
            old_m = bitcast<f32>(lse_words[old]);
            is_nan = is_nan || (lse_words[old + 1u] & 0x7fffffffu) >= INFINITE;
            old_sum = select(bitcast<f32>(lse_words[old + 1u]), 0.0, is_nan);
        }
    } else if (has_flag(FLAG_SINKS)) {
        old_m = bitcast<f32>(table(params.table_sinks + row.head));
        old_sum = 1.0;
    }
    let m = max(maximum, old_m);
    let old_part = old_sum * exp(old_m - m);
    let own_factor = exp(maximum - m);
    let total = old_part + own_sum * own_factor;
    if (writes) {
        if (PARTIAL || has_flag(FLAG_STATS)) {
            let to = params.stats_to + block.split * params.lse_split_stride + at;
            lse_words[2u * to] = bitcast<u32>(m);
            lse_words[2u * to + 1u] = select(bitcast<u32>(total), NOT_A_NUMBER, is_nan);
        } else {
            lse_words[at] = lse_bits(m, total, is_nan);
        }
    }
    return RowResult(select(old_part / total, 0.0, old_part == 0.0), select(own_factor / total, 0.0, own_sum == 0.0),
        is_nan);
}

// Writes four elements of a finished row's output; `sum` is this kernel's part.
fn store_part(item: Item, block: Block, row: Row, result: RowResult, dim: u32, sum: vec4<f32>) {
    let at = block.split * params.output_split_stride + output_row(item, row.head, row.row);
    var numbers = sum * result.own;
    if (PARTIAL && result.prior != 0.0) {
        numbers += prior_output(at, dim) * result.prior;
    }
    store_output(at, dim, select(bitcast<vec4<u32>>(numbers), vec4<u32>(NOT_A_NUMBER), result.is_nan));
}
