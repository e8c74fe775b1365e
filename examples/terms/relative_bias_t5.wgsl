// T5's relative bias, of an encoder: one learned number per head and bucket of distances. Small distances have buckets
// of their own, larger ones share them in steps of sqrt(2), up to 128 and beyond. T5, UL2, MPNet.
// Tables: bias array<f32> [heads * 32], the transpose of T5's relative_attention_bias.weight.

const BUCKETS: i32 = 32;

fn bucket(distance: i32) -> i32 {
    // log2 of the square is 2 * log2(n); with 16 buckets a side, the first 8 exact, buckets from 8 on are
    // 8 + floor(8 * log(n / 8) / log(128 / 8)).
    let n = min(abs(distance), 128);
    let far = min(2 + firstLeadingBit(n * n), 15);
    return select(0, 16, distance > 0) + select(far, n, n < 8);
}

fn score(x: f32, at: Pair) -> f32 {
    return x + bias[at.head * BUCKETS + bucket(at.key - at.position)];
}
