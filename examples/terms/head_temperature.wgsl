// Temperature: a learned factor on each head's scores. Swin v2 (logit_scale), XCiT, models that normalise queries and
// keys.
// Tables: temperatures array<f32> [heads].

fn score(x: f32, at: Pair) -> f32 {
    return x * temperatures[at.head];
}
