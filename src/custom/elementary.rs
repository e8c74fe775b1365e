//! Functions of f32 without branches or tables, so that a loop over lanes becomes vectors of any instruction set, with
//! the same bits in all of them. Errors are far below the bounds of the WGSL specification.

use std::f32::consts::{LN_2, LOG2_E, SQRT_2};

/// Adding it to a number of less than 2^22 rounds that to an integer, which the low bits of the sum are.
const ROUND: f32 = 12_582_912.0;

/// e^x, with relative error at most 2^-22 where the result is a normal number.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by the polynomial of Cephes.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = between(x, -104.0, 89.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    power(shifted, r)
}

/// 2^x, with relative error at most 2^-22 where the result is a normal number.
#[inline(always)]
pub(super) fn exp2(x: f32) -> f32 {
    let x = between(x, -151.0, 129.0);
    let shifted = x + ROUND;
    power(shifted, (x - (shifted - ROUND)) * LN_2)
}

/// `x` from `low` to `high`; NaN stays NaN.
#[inline(always)]
fn between(x: f32, low: f32, high: f32) -> f32 {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// 2^n e^r, where n is the integer in `shifted`, from -151 to 129.
#[inline(always)]
fn power(shifted: f32, r: f32) -> f32 {
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        sum = sum * r + coefficient;
    }
    let power = sum * (r * r) + r + 1.0;
    // In two factors, because 2^n need not be a normal number where the result is one, or is subnormal.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let factor = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    power * factor(half) * factor(n.wrapping_sub(half))
}

/// Natural logarithm, with absolute error at most 2^-22, or relative error at most 2^-22 beyond e.
#[inline(always)]
pub(super) fn ln(x: f32) -> f32 {
    let (n, ln, sure) = split(x);
    // ln 2 in two parts, of which the first has few bits.
    let near = n * -2.121_944_4e-4 + ln + n * 0.693_359_4;
    if sure { near } else { limit(x) }
}

/// Logarithm to base 2, with errors like those of [`ln`]; exact for powers of 2.
#[inline(always)]
pub(super) fn log2(x: f32) -> f32 {
    let (n, ln, sure) = split(x);
    if sure { n + ln * LOG2_E } else { limit(x) }
}

/// Integer n and ln(y) with x = 2^n y and y between sqrt(1/2) and sqrt(2); false unless x is positive and finite.
#[inline(always)]
fn split(x: f32) -> (f32, f32, bool) {
    const SMALL: f32 = 8_388_608.0;
    let is_subnormal = x < f32::MIN_POSITIVE;
    let bits = if is_subnormal { x * SMALL } else { x }.to_bits();
    // Counted from sqrt(1/2), so that the exponent's bits say how many times that fits.
    const LEAST: u32 = (SQRT_2 / 2.0).to_bits();
    let n = (bits.wrapping_sub(LEAST) as i32) >> 23;
    let y = f32::from_bits(bits.wrapping_sub((n << 23) as u32));
    let n = n as f32 - if is_subnormal { 23.0 } else { 0.0 };
    let t = y - 1.0;
    let mut sum = 7.037_683_6e-2;
    for coefficient in
        [-1.151_461e-1, 1.167_699_9e-1, -1.242_014_1e-1, 1.424_932_3e-1, -1.666_805_8e-1, 2.000_071_4e-1, -2.499_999_4e-1, 3.333_333e-1]
    {
        sum = sum * t + coefficient;
    }
    let square = t * t;
    (n, sum * t * square - 0.5 * square + t, x > 0.0 && x < f32::INFINITY)
}

/// Logarithm of a number that is not positive, or not finite.
#[inline(always)]
fn limit(x: f32) -> f32 {
    let rest = if x == 0.0 { f32::NEG_INFINITY } else { f32::NAN };
    if x == f32::INFINITY { x } else { rest }
}

/// tanh(x), with absolute error at most 2^-21, and relative error at most 2^-20.
///
/// Quotient of an odd polynomial of degree 13 and an even one of degree 6, Eigen's.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    /// From here on, the result is 1.
    const MOST: f32 = 7.998_811_7;
    let y = between(x, -MOST, MOST);
    let square = y * y;
    let mut over = -2.760_768_5e-16;
    for coefficient in [2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619_3e-4, 4.893_524_6e-3] {
        over = over * square + coefficient;
    }
    let mut under = 1.198_258_4e-6;
    for coefficient in [1.185_347_1e-4, 2.268_434_6e-3, 4.893_525_3e-3] {
        under = under * square + coefficient;
    }
    let quotient = y * over / under;
    let near = if x.abs() < 4e-4 { x } else { quotient };
    if y.abs() < MOST { near } else { y * (1.0 / MOST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest error of a function among floats from all of its domain, by `size` of the exact result.
    fn worst(f: fn(f32) -> f32, exact: fn(f64) -> f64, size: fn(f64) -> f64, from: f32, to: f32) -> f64 {
        let linear = (0..=1 << 18).map(|i| from + (to - from) * (i as f32 / (1 << 18) as f32));
        let all_sizes = (0..1u32 << 18).map(|i| f32::from_bits(i << 14)).filter(|x| (from..=to).contains(x));
        let error = |x: f32| {
            let y = exact(x.into());
            let error = (f64::from(f(x)) - y).abs() / size(y);
            assert!(!error.is_nan(), "{x} becomes {}, not {y}", f(x));
            error
        };
        linear.chain(all_sizes).map(error).fold(0.0, f64::max)
    }

    fn is_at_most(worst: f64, bits: i32) {
        assert!(worst <= 2f64.powi(-bits), "{worst:e}, 2^{}", worst.log2());
    }

    #[test]
    fn powers_are_right() {
        let normal = |y: f64| y.max(f32::MIN_POSITIVE.into());
        is_at_most(worst(exp, f64::exp, normal, -110.0, 88.72), 22);
        is_at_most(worst(exp2, f64::exp2, normal, -160.0, 127.99), 22);
        for f in [exp, exp2] {
            assert_eq!(
                [0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, 1e30, -1e30].map(f),
                [1.0, 1.0, 0.0, f32::INFINITY, f32::INFINITY, 0.0]
            );
            assert!(f(f32::NAN).is_nan());
        }
        assert_eq!([-149.0, -1.0, 3.0, 127.0, 128.0].map(exp2), [1e-45, 0.5, 8.0, 1.701_411_8e38, f32::INFINITY]);
    }

    #[test]
    fn logarithms_are_right() {
        let size = |y: f64| y.abs().max(1.0);
        is_at_most(worst(ln, f64::ln, size, 1e-45, f32::MAX), 22);
        is_at_most(worst(ln, f64::ln, size, 0.5, 2.0), 22);
        is_at_most(worst(log2, f64::log2, size, 1e-45, f32::MAX), 22);
        is_at_most(worst(log2, f64::log2, size, 0.5, 2.0), 22);
        for f in [ln, log2] {
            assert_eq!([0.0, -0.0, 1.0, f32::INFINITY].map(f), [f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0, f32::INFINITY]);
            assert!([-1.0, f32::NEG_INFINITY, f32::NAN, -1e-45].iter().all(|&x| f(x).is_nan()));
        }
        assert_eq!([1e-45, 0.25, 8.0, 1.701_411_8e38].map(log2), [-149.0, -2.0, 3.0, 127.0]);
    }

    #[test]
    fn tanh_is_right() {
        is_at_most(worst(tanh, f64::tanh, |_| 1.0, -20.0, 20.0), 21);
        is_at_most(worst(tanh, f64::tanh, |y| y.abs().max(f32::MIN_POSITIVE.into()), -2.0, 2.0), 20);
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 1e-30];
        assert_eq!(special.map(tanh), [0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 1e-30]);
        assert!(tanh(f32::NAN).is_nan());
        assert!((0..1 << 20).all(|i| tanh(i as f32 * 1e-5).abs() <= 1.0));
    }
}
