// Sliding window: a row sees the last WINDOW keys, its own included. Mistral 7B, Gemma 2 and 3; the same as
// Problem::causal with Problem::window(WINDOW - 1, 0).
// Tables: none.

const WINDOW: i32 = 64;

fn visible(at: Pair) -> bool {
    return at.key <= at.position && at.position - at.key < WINDOW;
}
