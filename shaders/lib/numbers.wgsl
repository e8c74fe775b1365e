// Defines: LOWEST, INFINITE, NEGATIVE_INFINITY, NOT_A_NUMBER; magnitude_bits, is_negative_infinity, is_finite,
//          magnitude (all by bits); finite_part, special_part: finite elements, and the others; dot_add; lse_bits.
// Expects: nothing.
// See: docs/architecture.md, "Numerics": compilers may assume finite floats, so nothing is tested by a comparison.

const LOWEST: f32 = -3.4028234e38;

const INFINITE: u32 = 0x7f800000u; // bits of +inf; a larger magnitude is NaN
const NEGATIVE_INFINITY: u32 = 0xff800000u;
const NOT_A_NUMBER: u32 = 0x7fc00000u;

fn magnitude_bits(x: f32) -> u32 {
    return bitcast<u32>(x) & 0x7fffffffu;
}

fn is_negative_infinity(x: f32) -> bool {
    return bitcast<u32>(x) == NEGATIVE_INFINITY;
}

fn is_finite(x: vec4<f32>) -> bool {
    return magnitude(x) < INFINITE;
}

// Bits of the largest magnitude; below INFINITE if all elements are finite.
fn magnitude(x: vec4<f32>) -> u32 {
    let bits = bitcast<vec4<u32>>(x) & vec4<u32>(0x7fffffffu);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// Finite elements of v, 0 for the others.
fn finite_part(v: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(v);
    return bitcast<vec4<f32>>(select(bits, vec4<u32>(0u), (bits & vec4<u32>(INFINITE)) == vec4<u32>(INFINITE)));
}

// Infinite and NaN elements of v, 0 for the others.
fn special_part(v: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(v);
    return bitcast<vec4<f32>>(select(vec4<u32>(0u), bits, (bits & vec4<u32>(INFINITE)) == vec4<u32>(INFINITE)));
}

// Returns sum + dot(x, y), in one order for all kernels: a backward pass must recompute the scores of the forward pass.
fn dot_add(sum: f32, x: vec4<f32>, y: vec4<f32>) -> f32 {
    return fma(x.w, y.w, fma(x.z, y.z, fma(x.y, y.y, fma(x.x, y.x, sum))));
}

// Bits of m + ln(l); -inf where no key is visible.
fn lse_bits(top: f32, sum: f32, is_nan: bool) -> u32 {
    return select(select(bitcast<u32>(top + log(sum)), NEGATIVE_INFINITY, sum == 0.0), NOT_A_NUMBER, is_nan);
}

// tanh without overflow for any argument and without cancellation near 0.
fn tanh_exact(x: f32) -> f32 {
    let t = exp(-2.0 * abs(x));
    let far = (1.0 - t) / (1.0 + t);
    let square = x * x;
    let near = x + x * square * (-0.33333334 + square * (0.13333334 + square * (-0.053968254 + square * 0.021869488)));
    return select(select(far, -far, x < 0.0), near, abs(x) < 0.3);
}
