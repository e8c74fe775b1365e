// Defines: widen_f16, widen_bf16 (four elements), widen_f16_at, widen_bf16_at (one of two), widen_q8, widen_q4 (four of
//          a word, without their scale); narrow_f16, narrow_bf16 (two elements into a word).
// Expects: nothing.
// See: the `half` crate, which the CPU path uses; src/numbers/blocks.rs.

fn widen_f16(words: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn widen_bf16(words: vec2<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(words.x << 16u, words.x & 0xffff0000u, words.y << 16u, words.y & 0xffff0000u));
}

fn widen_f16_at(word: u32, index: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, (index & 1u) == 1u);
}

fn widen_bf16_at(word: u32, index: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (index & 1u) == 1u));
}

// Signed bytes, the lowest first.
fn widen_q8(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(vec4<u32>(word << 24u, word << 16u, word << 8u, word)) >> vec4<u32>(24u));
}

// Four of eight signed 4-bit elements: from the lowest, or from the fifth where index / 4 is odd.
fn widen_q4(word: u32, index: u32) -> vec4<f32> {
    let half = word >> ((index & 4u) * 4u);
    return vec4<f32>(vec4<i32>(vec4<u32>(half << 28u, half << 24u, half << 20u, half << 16u)) >> vec4<u32>(28u));
}

// Rounds to nearest even. Large values become infinite, NaN stays NaN: pack2x16float promises neither.
fn narrow_f16(pair: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(pair);
    let magnitude = bits & vec2<u32>(0x7fffffffu);
    let is_large = magnitude >= vec2<u32>(0x477ff000u); // 65520 and more, and NaN
    let halves = pack2x16float(bitcast<vec2<f32>>(select(bits, vec2<u32>(0u), is_large)));
    let infinite = select(vec2<u32>(0x7c00u), vec2<u32>(0x7e00u), magnitude > vec2<u32>(0x7f800000u));
    let large = select(vec2<u32>(0u), infinite | ((bits >> vec2<u32>(16u)) & vec2<u32>(0x8000u)), is_large);
    return halves | large.x | (large.y << 16u);
}

// Rounds to nearest even; NaN stays NaN.
fn narrow_bf16(pair: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(pair);
    let rounded = (bits + vec2<u32>(0x7fffu) + ((bits >> vec2<u32>(16u)) & vec2<u32>(1u))) >> vec2<u32>(16u);
    let quiet = (bits >> vec2<u32>(16u)) | vec2<u32>(0x40u);
    let halves = select(rounded, quiet, (bits & vec2<u32>(0x7fffffffu)) > vec2<u32>(0x7f800000u));
    return halves.x | (halves.y << 16u);
}
