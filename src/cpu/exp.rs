//! Elementary functions of vectors.

use super::simd::Simd;

/// e^x for x <= 0, with relative error at most 2^-22 (1 + |x| / 2) and absolute error at most 2^-22. NaN stays NaN.
///
/// x / ln 2 = n + r with |r| <= 1/2; 2^r by a minimax polynomial of degree 5 (relative error 9e-8). Subnormals may be
/// flushed to 0. Reducing x by ln 2 in two parts is a quarter slower and more accurate only where e^x is negligible.
#[inline(always)]
pub(super) unsafe fn exp<V: Simd>(x: V) -> V {
    // SAFETY: passed on from the caller.
    unsafe { exp2::<V, 5>(x.mul(V::splat(std::f32::consts::LOG2_E))) }
}

/// 2^x by a minimax polynomial of a degree: relative error 2^-13 for 3, 2^-18 for 4, 9e-8 for 5. Subnormals may be flushed
/// to 0. NaN stays NaN.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "a minimax coefficient near ln 2, not ln 2")]
pub(super) unsafe fn exp2<V: Simd, const DEGREE: usize>(x: V) -> V {
    let coefficients: &[f32] = match DEGREE {
        3 => &[0.055_171_67, 0.242_611_13, 0.693_260_97, 0.999_928_06],
        4 => &[0.009_570_102, 0.055_917_86, 0.240_247_44, 0.693_121_8, 0.999_999_3],
        _ => &[0.001_326_472_7, 0.009_671_513, 0.055_507_336, 0.240_222_42, 0.693_147, 1.0],
    };
    // SAFETY: passed on from the caller.
    unsafe {
        let (r, n) = x.split_exponent();
        let mut power = V::splat(coefficients[0]);
        for &coefficient in &coefficients[1..] {
            power = power.mul_add(r, V::splat(coefficient));
        }
        power.times_power(n)
    }
}

/// tanh(x), with absolute error at most 2e-7: the odd polynomial of Cephes near 0, else (1 - e^-2|x|) / (1 + e^-2|x|).
#[inline(always)]
pub(super) unsafe fn tanh<V: Simd>(x: V) -> V {
    // SAFETY: passed on from the caller.
    unsafe {
        let zero = V::splat(0.0);
        let one = V::splat(1.0);
        let size = x.max(zero.sub(x));
        let e = exp(size.mul(V::splat(-2.0)));
        let far = one.sub(e).div(one.add(e));
        let square = size.mul(size);
        let mut near = V::splat(-5.704_988_7e-3);
        for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            near = near.mul_add(square, V::splat(coefficient));
        }
        let near = near.mul(square).mul_add(size, size);
        let result = size.select_less(V::splat(0.625), near, far);
        x.select_less(zero, zero.sub(result), result)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::{Isa, SimdKernel};
    use super::*;

    /// Applies exp (true) or tanh to whole vectors.
    struct Map<'a>(&'a mut [f32], bool);

    impl SimdKernel for Map<'_> {
        #[inline(always)]
        unsafe fn run<V: Simd>(self) {
            for chunk in self.0.chunks_exact_mut(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; the chunk is a vector long.
                unsafe {
                    let x = V::load(chunk.as_ptr());
                    if self.1 { exp(x) } else { tanh(x) }.store(chunk.as_mut_ptr());
                }
            }
        }
    }

    /// Largest error of exp or tanh, for numbers x and results y.
    fn worst(isa: Isa, is_exp: bool, x: &[f32], error: fn(f64, f64) -> f64) -> f64 {
        let mut y = x.to_vec();
        isa.run(Map(&mut y, is_exp));
        x.iter().zip(&y).map(|(&x, &y)| error(x.into(), y.into())).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_right() {
        let x: Vec<f32> = (0..1 << 20).map(|i| -87.3 * (i as f32 / (1 << 20) as f32)).collect();
        for isa in Isa::available() {
            let relative = worst(isa, true, &x, |x, y| (y / x.exp() - 1.0).abs() / (1.0 - x / 2.0));
            let absolute = worst(isa, true, &x, |x, y| (y - x.exp()).abs());
            assert!(relative.max(absolute) <= 2.0 * f64::from(f32::EPSILON), "{isa:?}: {relative:e}, {absolute:e}");
            let mut special = [0.0, -88.5, -1e30, f32::NEG_INFINITY, f32::NAN, -0.0, f32::MIN, -500.0].repeat(2);
            isa.run(Map(&mut special, true));
            assert_eq!([special[0], special[2], special[3]], [1.0, 0.0, 0.0], "{isa:?}");
            let subnormal = f64::from(special[1]) / (-88.5f64).exp();
            assert!(special[1] == 0.0 || (subnormal - 1.0).abs() < 1e-5, "{isa:?}: {subnormal}");
            assert!(special[4].is_nan() && special[5..8] == [1.0, 0.0, 0.0], "{isa:?}: {special:?}");
        }
    }

    #[test]
    fn tanh_is_right() {
        let x: Vec<f32> = (0..1 << 18).map(|i| (i as f32 / (1 << 18) as f32 - 0.5) * 40.0).collect();
        for isa in Isa::available() {
            let worst = worst(isa, false, &x, |x, y| (y - x.tanh()).abs());
            assert!(worst <= 2e-7, "{isa:?}: {worst:e}");
            let mut special = [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, 1e-30, 0.0].repeat(2);
            isa.run(Map(&mut special, false));
            assert_eq!(special[..3], [0.0, 1.0, -1.0], "{isa:?}");
            assert!(special[3].is_nan() && special[4..8] == [1.0, -1.0, 1e-30, 0.0], "{isa:?}: {special:?}");
        }
    }
}
