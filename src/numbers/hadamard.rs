//! Normalised Hadamard rotations, which spread an element of large magnitude over its block.
//!
//! ```text
//! H[a][b] = (-1)^(number of ones in a & b) / sqrt(n)      a, b in 0..n, n a power of two
//! ```
//!
//! H is symmetric and its own inverse, so that dot(H q, H k) = dot(q, k) and H (H v) = v. A row is rotated in blocks. A
//! block that contains NaN or infinity becomes NaN as a whole.
//!
//! Shaders produce the same bits (shaders/cache/hadamard.wgsl): factors are powers of two until the sum is done, so that
//! fused multiply-adds round as plain ones do.

use super::dtype::BLOCK;
use crate::error::{Error, Result};

/// Widest block.
const WIDEST: usize = 256;

/// Hadamard rotation of rows in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hadamard {
    block: usize,
}

impl Hadamard {
    /// Rotation of rows of `width` elements. Its blocks are as wide as the largest power of two that divides `width`, from
    /// 32 to 256; `None` if that is less.
    pub const fn of(width: usize) -> Option<Self> {
        let largest = width & width.wrapping_neg();
        let block = if largest > WIDEST { WIDEST } else { largest };
        if block >= BLOCK { Some(Self { block }) } else { None }
    }

    /// Refuses to rotate rows of a width that has no blocks.
    pub(crate) fn check(argument: &'static str, rotates: bool, width: usize) -> Result<()> {
        if rotates && Self::of(width).is_none() {
            let why = format!("is {width}, no multiple of {BLOCK}: a Hadamard rotation has blocks of 32 to 256; store these rows without");
            return Err(Error::invalid(argument, why));
        }
        Ok(())
    }

    /// Number of elements in a block.
    pub const fn block(self) -> usize {
        self.block
    }

    /// Factors whose product is `1 / sqrt(block)`: a power of two for every element, then 1 or sqrt(2) for every sum.
    pub(crate) fn factors(self) -> [f32; 2] {
        let bits = self.block.trailing_zeros();
        [0.5f32.powi(bits.div_ceil(2) as i32), if bits.is_multiple_of(2) { 1.0 } else { std::f32::consts::SQRT_2 }]
    }

    /// Rotates rows of whole blocks in place. Rotating them again restores them up to rounding.
    ///
    /// Panics if `rows` are not whole blocks.
    pub fn rotate(self, rows: &mut [f32]) {
        assert!(rows.len().is_multiple_of(self.block), "{} elements are no whole blocks of {}", rows.len(), self.block);
        let [scale, root] = self.factors();
        let mut from = [0.0; WIDEST];
        for block in rows.chunks_exact_mut(self.block) {
            if block.iter().any(|x| !x.is_finite()) {
                block.fill(f32::NAN);
                continue;
            }
            let from = &mut from[..self.block];
            from.iter_mut().zip(&*block).for_each(|(to, x)| *to = scale * x);
            for (own, to) in block.chunks_exact_mut(BLOCK).enumerate() {
                to.fill(0.0);
                for (other, from) in from.chunks_exact(BLOCK).enumerate() {
                    let sign = if (own & other).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    to.iter_mut().zip(from).for_each(|(to, x)| *to += sign * x);
                }
                rotate_part(to, root);
            }
        }
    }
}

/// Multiplies 32 elements by the unnormalised matrix and by `root`.
fn rotate_part(part: &mut [f32], root: f32) {
    let mut step = 1;
    while step < BLOCK {
        for pair in part.chunks_exact_mut(2 * step) {
            let (first, second) = pair.split_at_mut(step);
            first.iter_mut().zip(second).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        step *= 2;
    }
    part.iter_mut().for_each(|x| *x *= root);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares a rotation with its definition, and a second one with the row.
    #[test]
    fn rotations_are_as_defined_and_their_own_inverses() {
        let mut rng = fastrand::Rng::with_seed(5);
        for width in [32, 64, 96, 128, 192, 256, 512, 576] {
            let hadamard = Hadamard::of(width).expect("it has blocks");
            let block = hadamard.block();
            assert!(width.is_multiple_of(block) && (block == 256 || !width.is_multiple_of(2 * block)));
            let row: Vec<f32> = (0..width).map(|_| rng.f32() * 2.0 - 1.0).collect();
            let mut rotated = row.clone();
            hadamard.rotate(&mut rotated);
            for (at, &got) in rotated.iter().enumerate() {
                let first = at / block * block;
                let sign = |other: usize| if ((at % block) & other).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let sum: f64 = (0..block).map(|other| sign(other) * f64::from(row[first + other])).sum();
                assert!((f64::from(got) - sum / (block as f64).sqrt()).abs() < 1e-6, "{width}: element {at}");
            }
            hadamard.rotate(&mut rotated);
            assert!(rotated.iter().zip(&row).all(|(x, y)| (x - y).abs() < 1e-6), "{width}");
        }
        assert!([0, 1, 16, 33, 48, 80, 120].into_iter().all(|width| Hadamard::of(width).is_none()));
    }

    #[test]
    fn a_block_with_nan_or_infinity_is_nan() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = [1.0; 192];
            row[70] = bad;
            Hadamard::of(192).expect("blocks of 64").rotate(&mut row);
            assert!(row[64..128].iter().all(|x| x.is_nan()) && row[..64].iter().chain(&row[128..]).all(|x| x.is_finite()));
            assert_eq!(row[..64], [&[8.0][..], &[0.0; 63]].concat());
        }
    }
}
