//! Comparison of a kernel's answer with another computation's.

use crate::numbers::{DType, HostVec};

/// True if two outputs are equal up to the rounding of their storage and of sums in another order.
pub(crate) fn agrees(got: &HostVec, expected: &HostVec) -> bool {
    agrees_at(0.0, DType::F32, got, expected)
}

/// [`agrees`] for sums whose terms have a size of at least `least` and may cancel, computed from elements of `from`.
pub(crate) fn agrees_at(least: f32, from: DType, got: &HostVec, expected: &HostVec) -> bool {
    let rounding = [from, expected.as_slice().dtype()].into_iter().fold(1e-4, |most: f32, dtype| match dtype {
        DType::F16 => most.max(2e-3),
        DType::BF16 => most.max(2e-2),
        _ => most,
    });
    let (got, expected) = (got.to_f32(), expected.to_f32());
    let size = expected.iter().filter(|x| x.is_finite()).fold(least, |size, x| size.max(x.abs()));
    got.len() == expected.len()
        && got.iter().zip(&expected).all(|(a, b)| a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= rounding * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_answers_do_not_agree() {
        let of = |x: &[f32]| HostVec::F32(x.to_vec());
        let right = of(&[1.0, -2.0, f32::NAN, 0.5]);
        assert!(agrees(&right, &right));
        assert!(agrees(&of(&[1.000_05, -2.0, f32::NAN, 0.5]), &right));
        for wrong in [&[1.001, -2.0, f32::NAN, 0.5][..], &[1.0, f32::NAN, f32::NAN, 0.5], &[1.0, -2.0, 0.0, 0.5], &[1.0, -2.0, f32::NAN]] {
            assert!(!agrees(&of(wrong), &right), "{wrong:?}");
        }
    }
}
