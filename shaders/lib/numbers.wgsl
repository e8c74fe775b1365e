// Defines: what is special among numbers: LOWEST, HIDDEN_BITS, INFINITE; negative_infinity, is_negative_infinity, is_finite, magnitude;
//          finite_part, special_part: a vec4's finite numbers, and its others.
// Expects: nothing.
// Twin: f32's own constants and methods.

const LOWEST: f32 = -3.4028234e38;

// The weight of a hidden pair, -0: nothing in a sum, and told apart from a visible weight that is 0.
const HIDDEN_BITS: u32 = 0x80000000u;

// A constant infinity is an error in WGSL; a variable's bits are not.
var<private> negative_infinity_bits: u32 = 0xff800000u;

fn negative_infinity() -> f32 {
    return bitcast<f32>(negative_infinity_bits);
}

// By bits: compilers may assume that floats are finite.
fn is_negative_infinity(x: f32) -> bool {
    return bitcast<u32>(x) == 0xff800000u;
}

fn is_finite(x: vec4<f32>) -> bool {
    return all((bitcast<vec4<u32>>(x) & vec4<u32>(0x7f800000u)) != vec4<u32>(0x7f800000u));
}

// The bits of the largest magnitude: below INFINITE where all are finite.
fn magnitude(x: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

const INFINITE: u32 = 0x7f800000u;

// The numbers of v that are finite, 0 for the others.
fn finite_part(v: vec4<f32>) -> vec4<f32> {
    return select(v, vec4<f32>(0.0), (bitcast<vec4<u32>>(v) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
}

// The numbers of v that are infinite or NaN, 0 for the others.
fn special_part(v: vec4<f32>) -> vec4<f32> {
    return select(vec4<f32>(0.0), v, (bitcast<vec4<u32>>(v) & vec4<u32>(0x7f800000u)) == vec4<u32>(0x7f800000u));
}
