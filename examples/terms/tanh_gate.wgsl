// Gate: scores times tanh of a learned number per head. Gates that start at 0 start as a plain mean of the values, in
// the manner of the gates of Flamingo.
// Tables: gates array<f32> [heads].

fn score(x: f32, at: Pair) -> f32 {
    return x * tanh(gates[at.head]);
}
