// ReLU on scores: keys that point away from the query weigh as much as those that are orthogonal to it. For
// ablations; what papers call ReLU attention has no softmax and is another thing.
// Tables: none.

fn score(x: f32, at: Pair) -> f32 {
    return max(x, 0.0);
}
