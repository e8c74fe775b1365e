// Tree of drafts: the rows are tokens that a draft model guessed, the last keys are theirs. A row sees the text before
// and its ancestors in the tree, itself included. Speculative decoding: SpecInfer, Medusa, EAGLE.
// Tables: ancestors array<u32> [rows * ceil(rows / 32)], a bit per ancestor, the lowest of each word first.

fn visible(at: Pair) -> bool {
    let token = at.key - (at.len_kv - at.len_q);
    let word = ancestors[at.row * ((at.len_q + 31) / 32) + token / 32];
    return token < 0 || ((word >> u32(token % 32)) & 1u) != 0u;
}
