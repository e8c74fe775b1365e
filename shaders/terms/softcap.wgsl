// Defines: softcap_score: softcap * tanh(x / softcap); softcap_slope: its derivative.
// Expects: Pair, lib/numbers.wgsl, softcap_values: softcap as bits.
// See: src/terms/softcap.rs.

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
