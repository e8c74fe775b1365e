// Defines: row_stats_of: the statistics of a row; pair_gradient: weight and gradients of a pair.
// Expects: lib/*, row_stats.wgsl, row_stats; const OF_TABLE.
// See: src/oracle/backward.rs has the formulas.

fn row_stats_of(item: Item, head: u32, row: u32) -> RowStats {
    let at = ROW_STATS * lse_at(item, head, row);
    return RowStats(bitcast<f32>(row_stats[at]), bitcast<f32>(row_stats[at + 1u]), bitcast<f32>(row_stats[at + 2u]));
}

// Takes scaled = scale * dot(query, key), product = dot(d_output, value); `inside`: the key is in the row's interval.
fn pair_gradient(scaled: f32, product: f32, end: RowStats, at: Pair, inside: bool) -> PairGradient {
    let scored = score_pair(scaled, at, inside);
    if (!scored.visible) {
        return PairGradient(0.0, 0.0, 0.0);
    }
    // A NaN share makes all three NaN: products keep it. A test of each pair took a third of the time on lavapipe.
    let weight = exp(scored.score - end.m) * end.share;
    let factor = dropout_scale(at);
    let d_biased = weight * (factor * product - end.delta);
    let slopes = slopes_of(scaled, at);
    let dropped = visible_weight(dropped_out(weight, factor), true);
    // Some pairs do not read the element on the branch that they take.
    let d_table = next_slope(d_biased, slopes.biased);
    return PairGradient(dropped, select(d_biased * slopes.biased, d_table, OF_TABLE), d_biased * slopes.scaled);
}
