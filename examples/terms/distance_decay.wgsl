// Decay by distance: weights times rate^distance before they are normalised, causal, each head at its own rate. The
// decay of RetNet, under a softmax.
// Tables: log_rates array<f32> [heads], ln(rate); ln(1 - 2^(-5 - head)) in RetNet.

fn visible(at: Pair) -> bool {
    return at.key <= at.position;
}

fn score(x: f32, at: Pair) -> f32 {
    return x + log_rates[at.head] * f32(at.position - at.key);
}
