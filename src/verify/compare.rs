//! Compares an answer with the expected one: shapes first, then NaN and infinity, then the tolerance.

use std::fmt;

/// Allowed difference between an answer and the expected one:
/// `|got - expected| <= absolute + relative * |expected|`, element by element.
///
/// NaN must meet NaN and +inf must meet +inf; where -inf is expected, anything up to `minus_infinity` passes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// Absolute error: one for all elements, or one per element.
    pub absolute: Vec<f64>,
    /// Relative error of all elements.
    pub relative: f64,
    /// Largest answer that passes for -inf: -inf itself, or -1e30 in case files.
    pub minus_infinity: f64,
    /// Largest finite value of the storage type. An answer that may exceed it may be infinite.
    pub largest: f64,
}

impl Tolerance {
    /// Uniform tolerance for all elements; only -inf passes for -inf.
    pub fn uniform(absolute: f64, relative: f64) -> Self {
        Self { absolute: vec![absolute], relative, minus_infinity: f64::NEG_INFINITY, largest: f32::MAX.into() }
    }

    /// Error allowed at an element. Never NaN: where the bound is unknown, any error is allowed.
    pub fn allowed(&self, index: usize, expected: f64) -> f64 {
        let absolute = if self.absolute.len() == 1 { self.absolute[0] } else { self.absolute.get(index).copied().unwrap_or(0.0) };
        let allowed = absolute + self.relative * expected.abs();
        if allowed.is_nan() { f64::INFINITY } else { allowed.max(0.0) }
    }
}

/// Kind of error in an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// Wrong shape. Nothing else was compared.
    Shape {
        /// Shape of the answer.
        got: Vec<usize>,
        /// Expected shape.
        expected: Vec<usize>,
    },
    /// NaN or infinity in place of a finite element, or the other way round. The tolerance was not checked.
    NotFinite(Element),
    /// Error larger than the tolerance.
    Value(Element),
}

/// Worst element of a wrong answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Index along each axis.
    pub index: Vec<usize>,
    /// Actual value.
    pub got: f64,
    /// Expected value.
    pub expected: f64,
    /// Allowed error.
    pub allowed: f64,
    /// Number of elements with this kind of error.
    pub wrong: usize,
    /// Number of elements in all.
    pub of: usize,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::NotFinite(at) | Self::Value(at)) = self else {
            let Self::Shape { got, expected } = self else { return Ok(()) };
            return write!(f, "has shape {got:?} instead of {expected:?}");
        };
        write!(f, "at {:?} is {:e} instead of {:e}", at.index, at.got, at.expected)?;
        if matches!(self, Self::Value(_)) {
            write!(f, ", off by {:.2e} where {:.2e} is allowed", (at.got - at.expected).abs(), at.allowed)?;
        }
        write!(f, " (worst of {} wrong elements of {})", at.wrong, at.of)
    }
}

/// Compares contiguous `got` and `expected`. Returns the largest share of its tolerance that an element used, up to 1.
pub fn compare(
    got_shape: &[usize],
    got: &[f32],
    expected_shape: &[usize],
    expected: &[f64],
    tolerance: &Tolerance,
) -> Result<f64, Mismatch> {
    if got_shape != expected_shape || got.len() != expected.len() {
        let mut shape = got_shape.to_vec();
        if got_shape == expected_shape {
            shape = vec![got.len()]; // the data contradicts its shape
        }
        return Err(Mismatch::Shape { got: shape, expected: expected_shape.to_vec() });
    }
    let pairs = || got.iter().map(|&x| f64::from(x)).zip(expected.iter().copied()).enumerate();
    let report = |wrong: &dyn Fn(usize, f64, f64) -> Option<f64>| {
        let mut worst: Option<(f64, usize)> = None;
        let mut count = 0;
        for (index, (got, expected)) in pairs() {
            let Some(badness) = wrong(index, got, expected) else { continue };
            count += 1;
            if worst.is_none_or(|(most, _)| badness > most) {
                worst = Some((badness, index));
            }
        }
        worst.map(|(_, index)| Element {
            index: unravel(index, expected_shape),
            got: f64::from(got[index]),
            expected: expected[index],
            allowed: tolerance.allowed(index, expected[index]),
            wrong: count,
            of: expected.len(),
        })
    };
    let kind_differs = |index: usize, got: f64, expected: f64| {
        let same = if expected.is_nan() {
            got.is_nan()
        } else if expected == f64::INFINITY {
            got == expected
        } else if expected == f64::NEG_INFINITY {
            got <= tolerance.minus_infinity
        } else {
            got.is_finite() || got.is_infinite() && expected.abs() + tolerance.allowed(index, expected) >= tolerance.largest
        };
        (!same).then_some(0.0)
    };
    if let Some(element) = report(&kind_differs) {
        return Err(Mismatch::NotFinite(element));
    }
    let share = |index: usize, got: f64, expected: f64| {
        if !expected.is_finite() || !got.is_finite() || got == expected {
            return 0.0;
        }
        let allowed = tolerance.allowed(index, expected);
        if allowed == f64::INFINITY { 0.0 } else { (got - expected).abs() / allowed }
    };
    let too_far = |index: usize, got: f64, expected: f64| Some(share(index, got, expected)).filter(|&share| share > 1.0);
    if let Some(element) = report(&too_far) {
        return Err(Mismatch::Value(element));
    }
    Ok(pairs().map(|(index, (got, expected))| share(index, got, expected)).fold(0.0, f64::max))
}

/// Index along each axis of the element at `flat`.
fn unravel(flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut rest = flat;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&extent| {
            let at = rest % extent;
            rest /= extent;
            at
        })
        .collect();
    index.reverse();
    index
}
