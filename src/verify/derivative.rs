//! Derivatives of users' score functions, held against central differences of the score in f64.
//!
//! The oracle's walk of the text gives the score at x and at steps to both sides of it. The derivative that kernels and
//! the CPU path compute, and the oracle's own, must be the central difference:
//!
//! ```text
//! difference = (score(x + h) - score(x - h)) / 2h            error: h^2 score'''(x) / 6, a third of the change from h to 2h
//! ```
//!
//! A point is skipped where a branch, a step or a kink is within 2h: there the differences to both sides disagree, or the
//! sides of a comparison do not differ by more than h makes of them. Skipped points are counted.

use std::fmt;

use crate::custom::{Functions, Term};
use crate::error::Result;
use crate::numbers::Random;
use crate::oracle::{self, walk};
use crate::verify::case::Case;
use crate::verify::rounding;

/// Pairs of a case at which derivatives are held, at the score that they have and at a random one.
const PAIRS: usize = 32;
/// Steps, relative to a score above 1. The second is for scores that bend within the first.
const STEPS: [f64; 2] = [1e-5, 1e-7];

/// Result of holding the derivative of a user's term against differences.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Derivative {
    /// Number of points at which the derivative is the difference.
    pub held: usize,
    /// Number of points near a branch, a step or a kink, or where the score is not finite.
    pub skipped: usize,
    /// First point at which it is not.
    pub wrong: Option<WrongDerivative>,
}

/// Point at which a derivative is not the difference of the score.
#[derive(Clone, Debug, PartialEq)]
pub struct WrongDerivative {
    /// Text of the term.
    pub text: String,
    /// Owner of the derivative: the program that kernels have, or the oracle.
    pub of: &'static str,
    /// Score before the term.
    pub x: f64,
    /// Pair: batch, head, kv_head, row, key, position, key_position, len_q, len_kv.
    pub pair: [i32; 9],
    /// Scores after the term at x - h, x and x + h.
    pub scores: [f64; 3],
    /// Step h.
    pub step: f64,
    /// Derivative at x.
    pub slope: f64,
    /// Central difference.
    pub difference: f64,
    /// Allowed error.
    pub allowed: f64,
}

impl fmt::Display for WrongDerivative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, of, x, pair, scores: [below, middle, above], step, slope, difference, allowed } = self;
        let [batch, head, kv_head, row, key, position, key_position, len_q, len_kv] = pair;
        write!(
            f,
            "{of} has the slope {slope:e} at x = {x:e}, where differences of the score give {difference:e} (+-{allowed:.1e}): it is \
             {below:e} at x - {step:.1e}, {middle:e} at x, {above:e} at x + {step:.1e}; batch {batch}, head {head}, kv_head {kv_head}, \
             row {row}, key {key}, position {position}, key_position {key_position}, len_q {len_q}, len_kv {len_kv}; text:\n{text}"
        )
    }
}

impl Derivative {
    fn add(&mut self, held: Option<std::result::Result<(), Box<WrongDerivative>>>) {
        match held {
            None => self.skipped += 1,
            Some(Ok(())) => self.held += 1,
            Some(Err(wrong)) => {
                self.wrong.get_or_insert(*wrong);
            }
        }
    }
}

/// Holds the derivative of each user's term of a case, in their order, at scores that its pairs have and at random ones.
/// `None` for terms without a score. Errors: a score that has no derivative.
pub fn check_derivatives(case: &Case) -> Result<Vec<Option<Derivative>>> {
    let terms = &case.problem.user_terms;
    terms.iter().try_for_each(Term::check_slope)?;
    let (inputs, mut random) = (case.data.inputs(), Random::new(case.fill.seed ^ 0x5107e));
    let answer = oracle::attention(&case.problem, &inputs)?;
    let pairs: Vec<_> = oracle::pairs_of(&case.problem, &inputs).collect();
    let mut all: Vec<Option<Derivative>> = terms.iter().map(|term| term.has_score().then(Derivative::default)).collect();
    for &(at, pair) in pairs.iter().step_by(pairs.len().div_ceil(PAIRS).max(1)) {
        // Masked pairs need not have a score.
        let mut x = Some(answer.before_terms[at]).filter(|x| x.is_finite()).unwrap_or_else(|| f64::from(random.normal()));
        for (index, (term, derivative)) in terms.iter().zip(&mut all).enumerate() {
            let (functions, tables) = (term.functions(), case.problem.tables_of(index, &case.data.term_tables));
            if let Some(derivative) = derivative {
                derivative.add(hold(functions, &tables, x, pair));
                derivative.add(hold(functions, &tables, 4.0 * f64::from(random.normal()), pair));
            }
            x = walk::score(functions, &tables, x, pair).0;
        }
    }
    Ok(all)
}

/// Holds a derivative at one point; `None` if differences say nothing there.
pub(crate) fn hold(
    functions: &Functions,
    tables: &[&[u32]],
    x: f64,
    pair: [i32; 9],
) -> Option<std::result::Result<(), Box<WrongDerivative>>> {
    let (y, own) = walk::score(functions, tables, x, pair);
    let (step, scores, difference, allowed) = STEPS.into_iter().find_map(|step| differences(functions, tables, (x, y), step, pair))?;
    let slope = match functions.slope() {
        Some(program) => rounding::of_program(program, [(x, 0.0), (y, 0.0)], pair, tables)?.0,
        None => 1.0,
    };
    let wrong = |of, slope| {
        let text = functions.text.clone();
        Box::new(WrongDerivative { text, of, x, pair, scores, step, slope, difference, allowed })
    };
    let is_wrong = |&(_, slope): &(&str, f64)| (slope - difference).abs() > allowed || slope.is_nan();
    Some([("the kernel", slope), ("the oracle", own)].into_iter().find(is_wrong).map_or(Ok(()), |(of, slope)| Err(wrong(of, slope))))
}

/// Step, scores at its ends and at x, central difference and its error; `None` near a branch or a kink.
fn differences(
    functions: &Functions,
    tables: &[&[u32]],
    (x, y): (f64, f64),
    step: f64,
    pair: [i32; 9],
) -> Option<(f64, [f64; 3], f64, f64)> {
    let step = step * x.abs().max(1.0);
    if let Some(program) = &functions.score {
        rounding::of_program(program, [(x, 2.0 * step), (0.0, 0.0)], pair, tables)?;
    }
    let at = |x: f64| walk::score(functions, tables, x, pair).0;
    let [below, above] = [at(x - step), at(x + step)];
    let central = (above - below) / (2.0 * step);
    let wider = (at(x + 2.0 * step) - at(x - 2.0 * step)) / (4.0 * step);
    let (scale, change) = (1.0 + central.abs(), (central - wider).abs());
    let lost = 8.0 * f64::EPSILON * (y.abs() + below.abs() + above.abs()) / step;
    let bend = ((above - y) / step - (y - below) / step).abs();
    let is_smooth = bend <= 1e-3 * scale && change <= 1e-4 * scale && lost <= 1e-4 * scale;
    is_smooth.then_some((step, [below, y, above], central, 1e-6 * scale + 2.0 * change + lost))
}
