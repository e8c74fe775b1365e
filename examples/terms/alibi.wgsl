// ALiBi: a bias that falls with the distance, at each head's own slope. BLOOM, MPT; the same as Alibi::Symmetric.
// Tables: slopes array<f32> [heads]; 2^(-8 * (head + 1) / heads) in the paper.

fn score(x: f32, at: Pair) -> f32 {
    return x - slopes[at.head] * f32(abs(at.position - at.key));
}
