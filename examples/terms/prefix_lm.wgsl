// Prefix LM: keys of the item's prefix are visible to all rows, the others are causal. T5, PaliGemma, GLM; the same as
// Problem::causal with Problem::prefix_lengths.
// Tables: prefix array<i32> [batch], the lengths of the prefixes.

fn visible(at: Pair) -> bool {
    return at.key <= at.position || at.key < prefix[at.batch];
}
