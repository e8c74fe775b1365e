// Causal: a row sees the keys up to its own position. Every decoder; the same as Problem::causal.
// Tables: none.

fn visible(at: Pair) -> bool {
    return at.key <= at.position;
}
