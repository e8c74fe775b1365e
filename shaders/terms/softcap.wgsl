// Defines: softcap_score: softcap * tanh(x / softcap); softcap_slope: its derivative.
// Expects: Pair, lib/numbers.wgsl, softcap_values: softcap as bits.
// See: src/terms/softcap.rs.

// tanh without overflow for any argument and without cancellation near 0.
fn tanh_exact(x: f32) -> f32 {
    let t = exp(-2.0 * abs(x));
    let far = (1.0 - t) / (1.0 + t);
    let square = x * x;
    let near = x + x * square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488)));
    return select(select(far, -far, x < 0.0), near, abs(x) < 0.3);
}

// Infinity is capped; NaN is passed on by its bits, not by arithmetic.
fn softcap_score(x: f32, at: Pair) -> f32 {
    let softcap = bitcast<f32>(softcap_values().x);
    let capped = softcap * tanh_exact(x / softcap);
    return bitcast<f32>(select(bitcast<u32>(capped), bitcast<u32>(x), magnitude_bits(x) > INFINITE));
}

fn softcap_slope(x: f32, y: f32, at: Pair) -> f32 {
    let t = y / bitcast<f32>(softcap_values().x);
    return 1.0 - t * t;
}
