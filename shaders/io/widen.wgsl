// Defines: widen_f16, widen_bf16 (four numbers), widen_f16_at, widen_bf16_at (one of two); narrow_f16, narrow_bf16 (two numbers into a word).
// Expects: nothing.
// Twin: the `half` crate, which the CPU path uses.

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

fn narrow_f16(pair: vec2<f32>) -> u32 {
    return pack2x16float(pair);
}

// Round to nearest even; a NaN stays a NaN.
fn narrow_bf16(pair: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(pair);
    let rounded = (bits + vec2<u32>(0x7fffu) + ((bits >> vec2<u32>(16u)) & vec2<u32>(1u))) >> vec2<u32>(16u);
    let quiet = (bits >> vec2<u32>(16u)) | vec2<u32>(0x40u);
    let halves = select(rounded, quiet, (bits & vec2<u32>(0x7fffffffu)) > vec2<u32>(0x7f800000u));
    return halves.x | (halves.y << 16u);
}
