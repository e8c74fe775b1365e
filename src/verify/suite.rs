//! Runs generated cases on candidates: forward passes and gradients, each held against the oracle.

use std::fmt;

use crate::cpu;
use crate::custom::Term;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::numbers::DType;
use crate::plan::DeviceClass;
use crate::problem::{AttentionFn, BackwardInputs, Inputs, Operand, Problem, Returns, WantGradients};
use crate::progress::Progress;
use crate::verify::case::Case;
use crate::verify::compare::{gradient_errors, output_errors};
use crate::verify::derivative::check_derivatives;
use crate::verify::expect::{Expected, unsure_rows};
use crate::verify::expect_backward::{AttendBackward, ExpectedGradients};
use crate::verify::generate::{minimise, random};
use crate::verify::table::table;

/// Implementation under test.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    /// Name in reports.
    pub name: &'a str,
    /// Function that computes attention.
    pub attend: &'a AttentionFn<'a>,
    /// Engine behind `attend`, if there is one: it also runs gradients and whole layers.
    pub engine: Option<&'a Engine>,
}

impl fmt::Debug for Candidate<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Result of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Correct.
    Passed,
    /// Wrong answer or error, with the report.
    Failed(String),
    /// Not run, with the reason.
    Skipped(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => write!(f, "passed"),
            Self::Failed(report) => write!(f, "FAILED: {report}"),
            Self::Skipped(reason) => write!(f, "skipped: {reason}"),
        }
    }
}

impl Verdict {
    /// Judges an answer by its errors. An unsupported request is a skip; any other error is a failure.
    pub(super) fn of<T>(answer: Result<T>, errors: impl FnOnce(T) -> Vec<String>) -> Self {
        match answer.map(errors) {
            Ok(errors) if errors.is_empty() => Self::Passed,
            Ok(errors) => Self::Failed(errors.join("; ")),
            Err(error @ Error::Unsupported { .. }) => Self::Skipped(error.to_string()),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// Result of one case on one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Origin: `table`, `random`, `terms`, `gradients`, `derivatives`, the suite that its file names, or `unreadable`.
    pub suite: String,
    /// Name of the case.
    pub case: String,
    /// Name of the candidate.
    pub backend: String,
    /// Result.
    pub verdict: Verdict,
    /// Remarks, as on what was not compared, and why; empty if there are none.
    pub note: String,
}

impl Row {
    pub(super) fn new(suite: &str, case: &str, candidate: &Candidate<'_>, verdict: Verdict) -> Self {
        Self { suite: suite.into(), case: case.into(), backend: candidate.name.into(), verdict, note: String::new() }
    }
}

/// Counts the rows that passed, failed and were skipped.
pub fn count<'a>(rows: impl IntoIterator<Item = &'a Row>) -> [usize; 3] {
    let mut counts = [0; 3];
    for row in rows {
        counts[match row.verdict {
            Verdict::Passed => 0,
            Verdict::Failed(_) => 1,
            Verdict::Skipped(_) => 2,
        }] += 1;
    }
    counts
}

/// Runs `case` on `attend` and compares all outputs with the oracle's.
///
/// [`Error::Unsupported`] is a skip with its reason; any other error is a failure.
pub fn check(case: &Case, attend: &AttentionFn<'_>) -> Verdict {
    judged(Expected::of(&case.problem, &case.data.inputs()), |expected| check_against(case, &expected, attend))
}

/// Runs `case` on `attend` and compares all outputs with `expected`, which several candidates can share. A
/// `status` of a user's term that contradicts its `visible` is a failure.
pub fn check_against(case: &Case, expected: &Expected, attend: &AttentionFn<'_>) -> Verdict {
    if let Err(error) = cpu::check_status(&case.problem, &case.data.inputs()) {
        return Verdict::Failed(error.to_string());
    }
    Verdict::of(attend(&case.problem, &case.data.inputs()), |outputs| output_errors(&case.problem, expected, &outputs))
}

/// Computes all gradients of `case` with `backward` and compares them with the oracle's.
///
/// [`Error::Unsupported`] is a skip with its reason, and so is a user's mask that rounding may turn; any other error is a
/// failure.
pub fn check_backward(case: &Case, backward: &AttendBackward<'_>) -> Verdict {
    judged(ExpectedGradients::of(case), |expected| check_backward_against(case, &expected, backward))
}

/// Computes all gradients of `case` and compares them with `expected`, which several candidates can share.
pub fn check_backward_against(case: &Case, expected: &ExpectedGradients, backward: &AttendBackward<'_>) -> Verdict {
    if unsure_rows(&case.problem, &case.data.inputs()).contains(&1.0) {
        return Verdict::Skipped("rounding may turn what a user's term shows, and with it gradients of any key".into());
    }
    let want = WantGradients { through_lse: expected.d_lse.is_some(), ..WantGradients::all(&case.problem) };
    let gradients = backward(&case.problem, &case.data.inputs(), &expected.inputs(), &want);
    Verdict::of(gradients, |gradients| gradient_errors(&case.problem, expected, &gradients))
}

fn judged<T>(expected: Result<T>, check: impl FnOnce(T) -> Verdict) -> Verdict {
    expected.map_or_else(|error| Verdict::Failed(format!("the oracle refused the case: {error}")), check)
}

/// Runs the forward pass of one case on every candidate.
pub fn run_case(suite: &str, case: &Case, candidates: &[Candidate<'_>]) -> Result<Vec<Row>> {
    let expected = Expected::of(&case.problem, &case.data.inputs())?;
    let note = match expected.unsure_rows {
        0 => String::new(),
        rows => format!("not compared: {rows} rows, because rounding may turn what a user's term shows them"),
    };
    let run = |candidate: &Candidate<'_>| {
        let verdict = check_against(case, &expected, candidate.attend);
        Row { note: note.clone(), ..Row::new(suite, &case.name, candidate, verdict) }
    };
    Ok(candidates.iter().map(run).collect())
}

/// Software adapters run one in this many of the gradients that need kernels of their own.
const OTHERS: u64 = 20;

/// Checks the gradients of one case on every candidate with an engine, as rows of the suite `gradients`.
///
/// A software adapter compiles a kernel in half a second, and gradients need up to eight kernels for each combination
/// of storage types. Therefore it runs only f32 problems with narrow heads, which share kernels, and one in twenty of
/// the rest; the others are skipped with that reason.
pub fn run_backward_case(case: &Case, candidates: &[Candidate<'_>]) -> Result<Vec<Row>> {
    let engines: Vec<_> = candidates.iter().filter_map(|candidate| Some((candidate, candidate.engine?))).collect();
    if engines.is_empty() {
        return Ok(Vec::new());
    }
    let p = &case.problem;
    let is_cheap = Operand::ALL.iter().all(|&operand| p.spec(operand).dtype == DType::F32) && p.dims.head_dim.max(p.dims.head_dim_v) <= 64;
    let is_chosen = is_cheap || case.fill.seed.is_multiple_of(OTHERS);
    let expected = ExpectedGradients::of(case)?;
    let verdict = |engine: &Engine| {
        if !is_chosen && engine.gpu().is_some_and(|gpu| gpu.caps().class == DeviceClass::Software) {
            let why = "gradients of other storage or wide heads on a software adapter, which compiles kernels for each";
            return Verdict::Skipped(why.into());
        }
        check_backward_against(case, &expected, &|problem, inputs, backward, want| {
            let stats = if case.fill.seed.is_multiple_of(2) { own_stats(engine, problem, inputs)? } else { None };
            engine.backward(problem, inputs, &BackwardInputs { stats: stats.as_deref(), ..*backward }, want)
        })
    };
    Ok(engines.into_iter().map(|(candidate, engine)| Row::new("gradients", &case.name, candidate, verdict(engine))).collect())
}

/// Holds the derivatives of a case's users' terms against differences, as one row of the suite `derivatives`; no row if
/// none has a score. The note counts the points.
pub fn run_derivatives(case: &Case) -> Result<Vec<Row>> {
    if !case.problem.user_terms.iter().any(Term::has_score) {
        return Ok(Vec::new());
    }
    let (verdict, note) = match check_derivatives(case) {
        Err(error @ Error::Unsupported { .. }) => (Verdict::Skipped(error.to_string()), String::new()),
        Err(error) => return Err(error),
        Ok(all) => {
            let (held, skipped) = all.iter().flatten().fold((0, 0), |(held, skipped), of| (held + of.held, skipped + of.skipped));
            let note = if skipped == 0 { String::new() } else { format!("{skipped} points near a branch left out") };
            match all.into_iter().flatten().find_map(|of| of.wrong) {
                Some(wrong) => (Verdict::Failed(wrong.to_string()), note),
                None if held == 0 => (Verdict::Skipped("no point has a score that is smooth around it".into()), note),
                None => (Verdict::Passed, note),
            }
        }
    };
    Ok(vec![Row { suite: "derivatives".into(), case: case.name.clone(), backend: "differences in f64".into(), verdict, note }])
}

/// Statistics of the engine's own forward pass, if it supports them.
fn own_stats(engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<Option<Vec<[f32; 2]>>> {
    let problem = Problem { want: Returns { stats: true, ..Returns::default() }, ..problem.clone() };
    match engine.attention(&problem, inputs) {
        Err(Error::Unsupported { .. }) => Ok(None),
        outputs => outputs.map(|outputs| outputs.stats),
    }
}

/// Number of failing random cases that are reduced to small ones, each in up to a few hundred runs.
const REDUCED: usize = 3;

/// Runs the fixed table and `random_cases` random cases from `seed` on, on every candidate. Gradients run on every
/// candidate with an engine (see [`run_backward_case`]), derivatives of users' terms on none (see [`run_derivatives`]).
/// Only cases whose name contains `filter` run. The first random cases that fail are reported as the smallest case that still fails.
pub fn run_generated(
    candidates: &[Candidate<'_>],
    seed: u64,
    random_cases: u64,
    filter: &str,
    control: &mut Progress<'_>,
) -> Result<Vec<Row>> {
    let fixed = table()?;
    let total = fixed.len() as u64 + random_cases;
    let fixed = fixed.into_iter().map(|case| ("table", Ok(case)));
    let drawn = (0..random_cases).map(|at| ("random", random(seed.wrapping_add(at))));
    let mut rows = Vec::new();
    let mut reduced = 0;
    for (at, (suite, case)) in fixed.chain(drawn).enumerate() {
        let case = case?;
        if case.name.contains(filter) {
            for (candidate, mut row) in candidates.iter().zip(run_case(suite, &case, candidates)?) {
                if suite == "random" && reduced < REDUCED && matches!(row.verdict, Verdict::Failed(_)) {
                    reduced += 1;
                    row.verdict = Verdict::Failed(minimal_report(case.clone(), candidate.attend));
                }
                rows.push(row);
            }
            rows.extend(run_backward_case(&case, candidates)?);
            rows.extend(run_derivatives(&case)?);
        }
        control.report((at + 1) as f64 / total as f64)?;
    }
    Ok(rows)
}

/// Reduces a failing case and describes the result.
fn minimal_report(case: Case, attend: &AttentionFn<'_>) -> String {
    let smallest = minimise(case, |case| matches!(check(case, attend), Verdict::Failed(_)));
    format!("{}, minimal: {:?} {:?}", check(&smallest, attend), smallest.problem, smallest.fill)
}
