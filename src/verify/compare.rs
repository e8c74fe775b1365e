//! Compares an answer with the expected one: shapes first, then NaN and infinity, then the error allowed at each element.

use std::fmt;

use crate::numbers::HostVec;
use crate::problem::{Gradients, Operand, Outputs, Problem, gather};
use crate::verify::case::places;
use crate::verify::expect::{Expected, ExpectedTensor};
use crate::verify::expect_backward::ExpectedGradients;

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
    /// NaN or infinity in place of a finite element, or the other way round. Errors were not checked.
    NotFinite(Element),
    /// Error larger than allowed.
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
        let (at, error) = match self {
            Self::Shape { got, expected } => return write!(f, "has shape {got:?} instead of {expected:?}"),
            Self::NotFinite(at) => (at, String::new()),
            Self::Value(at) => (at, format!(", off by {:.2e} where {:.2e} is allowed", (at.got - at.expected).abs(), at.allowed)),
        };
        write!(f, "at {:?} is {:e} instead of {:e}{error}", at.index, at.got, at.expected)?;
        write!(f, " (worst of {} wrong elements of {})", at.wrong, at.of)
    }
}

impl ExpectedTensor {
    /// Compares a contiguous answer. Returns the largest share of its allowed error that an element used, up to 1.
    pub fn compare(&self, got: &[f32]) -> Result<f64, Mismatch> {
        if got.len() != self.values.len() {
            return Err(Mismatch::Shape { got: vec![got.len()], expected: self.shape.clone() });
        }
        let shares: Vec<Option<f64>> = got.iter().enumerate().map(|(at, &got)| self.share(at, got.into())).collect();
        let element = |at: usize, is_wrong: &dyn Fn(&Option<f64>) -> bool| Element {
            index: unravel(at, &self.shape),
            got: got[at].into(),
            expected: self.values[at],
            allowed: self.allowed[at],
            wrong: shares.iter().filter(|share| is_wrong(share)).count(),
            of: shares.len(),
        };
        if let Some(first) = shares.iter().position(Option::is_none) {
            return Err(Mismatch::NotFinite(element(first, &Option::is_none)));
        }
        let most = shares.iter().flatten().copied().fold(0.0, f64::max);
        match shares.iter().position(|&share| share == Some(most)) {
            Some(worst) if most > 1.0 => Err(Mismatch::Value(element(worst, &|share| share.is_some_and(|share| share > 1.0)))),
            _ => Ok(most),
        }
    }

    /// Share of its allowed error that an element uses. `None` if it is NaN or infinite where it must not be, or is not
    /// where it must be.
    fn share(&self, at: usize, got: f64) -> Option<f64> {
        if self.exempt.get(at) == Some(&true) {
            return Some(0.0);
        }
        let (expected, allowed) = (self.values[at], self.allowed[at]);
        let is_alike = match expected {
            _ if expected.is_nan() => got.is_nan(),
            f64::INFINITY => got == expected,
            f64::NEG_INFINITY => got <= self.minus_infinity,
            _ => got.is_finite() || got.is_infinite() && expected.abs() + allowed >= self.largest,
        };
        let is_exempt = !expected.is_finite() || !got.is_finite() || got == expected || allowed == f64::INFINITY;
        is_alike.then(|| if is_exempt { 0.0 } else { (got - expected).abs() / allowed })
    }

    /// Describes the error of an answer, if it has one.
    pub(super) fn error(&self, name: &str, got: &[f32]) -> Option<String> {
        self.compare(got).err().map(|mismatch| format!("{name} {mismatch}"))
    }
}

/// Index along each axis of the element at `flat`.
fn unravel(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = shape.to_vec();
    for extent in index.iter_mut().rev() {
        (flat, *extent) = (flat / *extent, flat % *extent);
    }
    index
}

/// Describes the errors of outputs, at most one per tensor.
pub(super) fn output_errors(problem: &Problem, expected: &Expected, got: &Outputs) -> Vec<String> {
    // Where the expected l is NaN, m may be anything.
    let m = |[m, l]: [f32; 2], expected: &[f64]| if expected[1].is_nan() { [expected[0] as f32, l] } else { [m, l] };
    let stats = got.stats.as_ref().map(|stats| {
        let expected = expected.stats.iter().flat_map(|expected| expected.values.chunks_exact(2)).chain(std::iter::repeat(&[0.0; 2][..]));
        stats.iter().zip(expected).flat_map(|(&row, expected)| m(row, expected)).collect::<Vec<f32>>()
    });
    let errors = [
        stored("output", problem, Operand::Output, Some(&got.output), &expected.output),
        optional("lse", got.lse.as_deref(), expected.lse.as_ref()),
        optional("stats", stats.as_deref(), expected.stats.as_ref()),
        optional("scores", got.scores.as_deref(), expected.scores.as_ref()),
        optional("weights", got.weights.as_deref(), expected.weights.as_ref()),
        optional("key sums", got.key_sums.as_deref(), expected.key_sums.as_ref()),
    ];
    errors.into_iter().flatten().collect()
}

/// Describes the errors of gradients, at most one per tensor.
pub(super) fn gradient_errors(problem: &Problem, expected: &ExpectedGradients, got: &Gradients) -> Vec<String> {
    let errors = [
        stored("dquery", problem, Operand::Query, got.query.as_ref(), &expected.query),
        stored("dkey", problem, Operand::Key, got.key.as_ref(), &expected.key),
        stored("dvalue", problem, Operand::Value, got.value.as_ref(), &expected.value),
        optional("dbias", got.bias.as_deref(), expected.bias.as_ref()),
        optional("drelative_bias", got.relative_bias.as_deref(), expected.relative_bias.as_ref()),
        optional("dsinks", got.sinks.as_deref(), expected.sinks.as_ref()),
        optional("dterm_tables", got.term_tables.as_deref(), expected.term_tables.as_ref()),
    ];
    errors.into_iter().flatten().collect()
}

/// Describes an error in a tensor that must be stored like `operand`, with 0 between its elements.
fn stored(name: &str, problem: &Problem, operand: Operand, got: Option<&HostVec>, expected: &ExpectedTensor) -> Option<String> {
    let Some(got) = got else { return Some(format!("{name} was asked for and is not there")) };
    let (got, spec, shape, len) = (got.as_slice(), problem.spec(operand), problem.shape(operand), problem.operand_len(operand));
    if got.dtype() != spec.dtype || got.len() != len {
        return Some(format!("{name} has {} elements of {} instead of {len} of {}", got.len(), got.dtype(), spec.dtype));
    }
    let mut is_gap = vec![true; len];
    places(spec, shape).for_each(|place| is_gap[place] = false);
    if let Some(place) = (0..len).find(|&place| is_gap[place] && got.get(place) != 0.0) {
        return Some(format!("{name} holds {} at {place}, between its elements, instead of 0", got.get(place)));
    }
    expected.error(name, &gather(got, spec, shape))
}

/// Describes an error in a contiguous tensor that must be there if it is expected.
fn optional(name: &str, got: Option<&[f32]>, expected: Option<&ExpectedTensor>) -> Option<String> {
    match (got, expected) {
        (Some(got), Some(expected)) => expected.error(name, got),
        (None, None) => None,
        (None, Some(_)) => Some(format!("{name} was asked for and is not there")),
        (Some(_), None) => Some(format!("{name} is there and was not asked for")),
    }
}
