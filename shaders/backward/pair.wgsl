// Defines: RowEnd, row_end: lse and delta of a row; PairGradient, pair_gradient: the weight of one query row and key, and the gradients of its score.
// Expects: lib/*, row_words.
// Twin: src/cpu/naive_backward.rs has the formulas.

struct RowEnd {
    lse: f32,
    delta: f32,
}

// -0 all three where the pair is hidden.
struct PairGradient {
    weight: f32, // after dropout
    d_bias: f32, // of whatever is added to the score
    d_score: f32, // of scale * dot(query, key)
}

fn row_end(item: Item, head: u32, row: u32) -> RowEnd {
    let at = 2u * lse_at(item, head, row);
    return RowEnd(bitcast<f32>(row_words[at]), bitcast<f32>(row_words[at + 1u]));
}

// Of scaled = scale * dot(query, key) and product = dot(d_output, value). `inside`: the key is in the row's interval.
fn pair_gradient(scaled: f32, product: f32, end: RowEnd, item: Item, head: u32, row: u32, key: u32, inside: bool) -> PairGradient {
    let hidden = bitcast<f32>(HIDDEN_BITS);
    var scored = Scored(scaled, inside);
    if (is_modified()) {
        if (inside) {
            scored = score_of(scaled, item, head, row, key);
        }
    }
    if (!scored.visible) {
        return PairGradient(hidden, hidden, hidden);
    }
    let weight = exp(scored.score - end.lse);
    var factor = 1.0;
    if (is_dropping()) {
        factor = kept(item, head, row, key);
    }
    let d_biased = weight * (factor * product - end.delta);
    var result = PairGradient(weight * factor, d_biased, d_biased);
    if (softcap_first()) {
        let t = tanh_exact(scaled / params.softcap);
        result.d_score = d_biased * (1.0 - t * t);
    }
    if (softcap_last()) {
        let t = scored.score / params.softcap;
        result.d_score = d_biased * (1.0 - t * t);
        result.d_bias = result.d_score;
    }
    return result;
}
