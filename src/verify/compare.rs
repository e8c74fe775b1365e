//! Holds an answer against the right one: lengths first, then NaN and infinity, then the tolerance.

use std::fmt;

/// How far an answer may be from the right one:
/// `|got - expected| <= absolute + relative * |expected|`, element by element.
///
/// NaN must meet NaN and +inf must meet +inf; where -inf is expected, anything up to `minus_infinity` passes.
#[derive(Clone, Debug, PartialEq)]
pub struct Tolerance {
    /// One number for all elements, or one for each.
    pub absolute: Vec<f64>,
    /// The same for all.
    pub relative: f64,
    /// -inf: only -inf passes for -inf. Case files allow -1e30.
    pub minus_infinity: f64,
    /// The largest number of the storage: what may be larger may be infinite.
    pub largest: f64,
}

impl Tolerance {
    /// The same for every element; only -inf passes for -inf.
    pub fn uniform(absolute: f64, relative: f64) -> Self {
        Self { absolute: vec![absolute], relative, minus_infinity: f64::NEG_INFINITY, largest: f32::MAX.into() }
    }

    /// The error allowed at an element. Never NaN: where nothing is known anything is allowed.
    pub fn allowed(&self, index: usize, expected: f64) -> f64 {
        let absolute = if self.absolute.len() == 1 { self.absolute[0] } else { self.absolute.get(index).copied().unwrap_or(0.0) };
        let allowed = absolute + self.relative * expected.abs();
        if allowed.is_nan() { f64::INFINITY } else { allowed.max(0.0) }
    }
}

/// How an answer is wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Mismatch {
    /// It has another shape. Nothing else was looked at.
    Shape {
        /// Its shape.
        got: Vec<usize>,
        /// The right one.
        expected: Vec<usize>,
    },
    /// NaN or infinity where there should be none, or the other way round. The tolerance was not looked at.
    NotFinite(Element),
    /// Further off than the tolerance allows.
    Value(Element),
}

/// The worst element of a wrong answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Element {
    /// Where it is, one number an axis.
    pub index: Vec<usize>,
    /// What it is.
    pub got: f64,
    /// What it should be.
    pub expected: f64,
    /// The error allowed there.
    pub allowed: f64,
    /// How many elements are wrong in the same way.
    pub wrong: usize,
    /// Of how many.
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

/// Compares `got` with `expected`, both contiguous. Gives the largest share of its tolerance that any element used, at most 1.
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
            shape = vec![got.len()]; // the data contradicts its own shape
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

/// The index along each axis of the element at `flat`.
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
