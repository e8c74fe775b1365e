// Defines: score_bits: the score of a pair at the stage that is wanted, by its bits; -inf if masked.
// Expects: params, Pair, Interval, Scored, score_pair, score_before_biases.
// See: ScoreStage in src/problem/sizes.rs.

// `is_there`: the row and the key exist. `keys`: the row's interval, which only the last stage masks by.
fn score_bits(product: f32, at: Pair, is_there: bool, keys: Interval) -> u32 {
    var scored = Scored(product, is_there);
    if (is_there && params.score_stage == 1u) {
        scored.score = score_before_biases(product, at);
    }
    if (params.score_stage == 2u) {
        scored = score_pair(product, at, is_there && u32(at.key) >= keys.start && u32(at.key) < keys.end);
    }
    return select(NEGATIVE_INFINITY, bitcast<u32>(scored.score), scored.visible);
}
