//! Runs generated cases on candidates: forward passes and gradients, each held against the oracle.

use std::fmt;
use std::pin::Pin;

use crate::cpu;
use crate::custom::Term;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::gpu::{Asked, Waiting, block_on};
use crate::numbers::DType;
use crate::plan::DeviceClass;
use crate::problem::{AttentionFn, BackwardInputs, Gradients, Inputs, Operand, Outputs, Problem, Returns, WantGradients};
use crate::progress::Progress;
use crate::verify::case::Case;
use crate::verify::compare::{gradient_errors, output_errors};
use crate::verify::derivative::check_derivatives;
use crate::verify::expect::{Expected, unsure_rows};
use crate::verify::expect_backward::{AttendBackward, ExpectedGradients};
use crate::verify::generate::{random, reduce};
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

/// Answer of a [`Subject`] that is awaited.
pub type Awaited<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// Implementation under test whose answers are awaited: an engine, another host of plans, or a [`Candidate`].
pub trait Subject {
    /// Name in reports.
    fn name(&self) -> &str;

    /// Computes attention.
    fn attention<'a>(&'a self, problem: &'a Problem, inputs: &'a Inputs<'a>) -> Awaited<'a, Outputs>;

    /// Computes gradients.
    fn backward<'a>(
        &'a self,
        problem: &'a Problem,
        inputs: &'a Inputs<'a>,
        backward: &'a BackwardInputs<'a>,
        want: &'a WantGradients,
    ) -> Awaited<'a, Gradients>;

    /// True if it computes gradients.
    fn has_gradients(&self) -> bool;

    /// True if it compiles its kernels for a software adapter, which takes half a second for each.
    fn compiles_slowly(&self) -> bool;
}

impl Subject for Engine {
    fn name(&self) -> &str {
        self.chosen()
    }

    fn attention<'a>(&'a self, problem: &'a Problem, inputs: &'a Inputs<'a>) -> Awaited<'a, Outputs> {
        Box::pin(async { self.run(problem, inputs, Waiting::Async, &mut Progress::default()).await })
    }

    fn backward<'a>(
        &'a self,
        problem: &'a Problem,
        inputs: &'a Inputs<'a>,
        backward: &'a BackwardInputs<'a>,
        want: &'a WantGradients,
    ) -> Awaited<'a, Gradients> {
        let asked = Asked { problem, inputs, backward, want };
        Box::pin(async move { self.run_backward(asked, Waiting::Async, &mut Progress::default()).await })
    }

    fn has_gradients(&self) -> bool {
        true
    }

    fn compiles_slowly(&self) -> bool {
        self.gpu().is_some_and(|gpu| gpu.caps().class == DeviceClass::Software)
    }
}

impl Subject for Candidate<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn attention<'a>(&'a self, problem: &'a Problem, inputs: &'a Inputs<'a>) -> Awaited<'a, Outputs> {
        Box::pin(async { (self.attend)(problem, inputs) })
    }

    fn backward<'a>(
        &'a self,
        problem: &'a Problem,
        inputs: &'a Inputs<'a>,
        backward: &'a BackwardInputs<'a>,
        want: &'a WantGradients,
    ) -> Awaited<'a, Gradients> {
        let asked = Asked { problem, inputs, backward, want };
        Box::pin(async move {
            let engine = self.engine.ok_or_else(|| Error::unsupported("gradients of a function", "give its engine"))?;
            engine.run_backward(asked, Waiting::Blocking, &mut Progress::default()).await
        })
    }

    fn has_gradients(&self) -> bool {
        self.engine.is_some()
    }

    fn compiles_slowly(&self) -> bool {
        self.engine.is_some_and(Engine::compiles_slowly)
    }
}

fn subjects<'a>(candidates: &'a [Candidate<'a>]) -> Vec<&'a dyn Subject> {
    candidates.iter().map(|candidate| candidate as &dyn Subject).collect()
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
    pub(super) fn new(suite: &str, case: &str, backend: &str, verdict: Verdict) -> Self {
        Self { suite: suite.into(), case: case.into(), backend: backend.into(), verdict, note: String::new() }
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
    judge(case, expected, attend(&case.problem, &case.data.inputs()))
}

fn judge(case: &Case, expected: &Expected, answer: Result<Outputs>) -> Verdict {
    if let Err(error) = cpu::check_status(&case.problem, &case.data.inputs()) {
        return Verdict::Failed(error.to_string());
    }
    Verdict::of(answer, |outputs| output_errors(&case.problem, expected, &outputs))
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
    judge_backward(case, expected, backward(&case.problem, &case.data.inputs(), &expected.inputs(), &wanted(case, expected)))
}

fn judge_backward(case: &Case, expected: &ExpectedGradients, answer: Result<Gradients>) -> Verdict {
    if unsure_rows(&case.problem, &case.data.inputs()).contains(&1.0) {
        return Verdict::Skipped("rounding may turn what a user's term shows, and with it gradients of any key".into());
    }
    Verdict::of(answer, |gradients| gradient_errors(&case.problem, expected, &gradients))
}

/// Gradients that are compared: all.
fn wanted(case: &Case, expected: &ExpectedGradients) -> WantGradients {
    WantGradients { through_lse: expected.d_lse.is_some(), ..WantGradients::all(&case.problem) }
}

fn judged<T>(expected: Result<T>, check: impl FnOnce(T) -> Verdict) -> Verdict {
    expected.map_or_else(|error| Verdict::Failed(format!("the oracle refused the case: {error}")), check)
}

/// Runs the forward pass of one case on every candidate.
pub fn run_case(suite: &str, case: &Case, candidates: &[Candidate<'_>]) -> Result<Vec<Row>> {
    block_on(forward_rows(suite, case, &subjects(candidates)), "verify::run_generated_async")
}

async fn forward_rows(suite: &str, case: &Case, subjects: &[&dyn Subject]) -> Result<Vec<Row>> {
    let expected = Expected::of(&case.problem, &case.data.inputs())?;
    let note = match expected.unsure_rows {
        0 => String::new(),
        rows => format!("not compared: {rows} rows, because rounding may turn what a user's term shows them"),
    };
    let mut rows = Vec::new();
    for subject in subjects {
        let answer = subject.attention(&case.problem, &case.data.inputs()).await;
        rows.push(Row { note: note.clone(), ..Row::new(suite, &case.name, subject.name(), judge(case, &expected, answer)) });
    }
    Ok(rows)
}

/// Software adapters run one in this many of the gradients that need kernels of their own.
const OTHERS: u64 = 20;

/// Checks the gradients of one case on every candidate with an engine, as rows of the suite `gradients`.
///
/// A software adapter compiles a kernel in half a second, and gradients need up to eight kernels for each combination
/// of storage types. Therefore it runs only f32 problems with narrow heads, which share kernels, and one in twenty of
/// the rest; the others are skipped with that reason.
pub fn run_backward_case(case: &Case, candidates: &[Candidate<'_>]) -> Result<Vec<Row>> {
    block_on(backward_rows(case, &subjects(candidates)), "verify::run_generated_async")
}

async fn backward_rows(case: &Case, subjects: &[&dyn Subject]) -> Result<Vec<Row>> {
    let subjects: Vec<_> = subjects.iter().filter(|subject| subject.has_gradients()).collect();
    if subjects.is_empty() {
        return Ok(Vec::new());
    }
    let p = &case.problem;
    let is_cheap = Operand::ALL.iter().all(|&operand| p.spec(operand).dtype == DType::F32) && p.dims.head_dim.max(p.dims.head_dim_v) <= 64;
    let is_chosen = is_cheap || case.fill.seed.is_multiple_of(OTHERS);
    let expected = ExpectedGradients::of(case)?;
    let mut rows = Vec::new();
    for subject in subjects {
        let verdict = if !is_chosen && subject.compiles_slowly() {
            let why = "gradients of other storage or wide heads on a software adapter, which compiles kernels for each";
            Verdict::Skipped(why.into())
        } else {
            judge_backward(case, &expected, gradients(*subject, case, &expected).await)
        };
        rows.push(Row::new("gradients", &case.name, subject.name(), verdict));
    }
    Ok(rows)
}

/// All gradients of a case, half of the cases from the statistics of the subject's own forward pass.
async fn gradients(subject: &dyn Subject, case: &Case, expected: &ExpectedGradients) -> Result<Gradients> {
    let (problem, inputs, want) = (&case.problem, &case.data.inputs(), &wanted(case, expected));
    let stats = if case.fill.seed.is_multiple_of(2) { own_stats(subject, problem, inputs).await? } else { None };
    let backward = &BackwardInputs { stats: stats.as_deref(), ..expected.inputs() };
    subject.backward(problem, inputs, backward, want).await
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

/// Statistics of the subject's own forward pass, if it supports them.
async fn own_stats(subject: &dyn Subject, problem: &Problem, inputs: &Inputs<'_>) -> Result<Option<Vec<[f32; 2]>>> {
    let problem = Problem { want: Returns { stats: true, ..Returns::default() }, ..problem.clone() };
    match subject.attention(&problem, inputs).await {
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
    block_on(run_generated_async(&subjects(candidates), seed, random_cases, filter, control), "verify::run_generated_async")
}

/// [`run_generated`] on subjects whose answers are awaited: in a page it yields wherever a device computes.
pub async fn run_generated_async(
    subjects: &[&dyn Subject],
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
            for (&subject, mut row) in subjects.iter().zip(forward_rows(suite, &case, subjects).await?) {
                if suite == "random" && reduced < REDUCED && matches!(row.verdict, Verdict::Failed(_)) {
                    reduced += 1;
                    row.verdict = Verdict::Failed(minimal_report(case.clone(), subject).await);
                }
                rows.push(row);
            }
            rows.extend(backward_rows(&case, subjects).await?);
            rows.extend(run_derivatives(&case)?);
        }
        control.report((at + 1) as f64 / total as f64)?;
    }
    Ok(rows)
}

/// Reduces a failing case and describes the result.
async fn minimal_report(case: Case, subject: &dyn Subject) -> String {
    let verdict = async |case: &Case| {
        let answer = subject.attention(&case.problem, &case.data.inputs()).await;
        judged(Expected::of(&case.problem, &case.data.inputs()), |expected| judge(case, &expected, answer))
    };
    let smallest = reduce(case, async |case| matches!(verdict(case).await, Verdict::Failed(_))).await;
    format!("{}, minimal: {:?} {:?}", verdict(&smallest).await, smallest.problem, smallest.fill)
}
