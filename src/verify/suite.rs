//! Runs cases on candidates and reports the results.

use std::fmt;
use std::path::Path;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::problem::{AttentionFn, Operand, Outputs, Problem, gather};
use crate::progress::Progress;
use crate::verify::case::Case;
use crate::verify::case_file::CaseFile;
use crate::verify::cases;
use crate::verify::compare::{Mismatch, compare};
use crate::verify::expect::{Expected, ExpectedTensor, output_places};
use crate::verify::generate::{minimise, random};
use crate::verify::suite_backward::run_backward_case;
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

impl std::fmt::Debug for Candidate<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

/// Result of one case on one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Origin: `table`, `random`, `gradients`, the suite that its file names, or `unreadable`.
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

/// Runs `case` on `attend` and compares all outputs with the oracle's.
///
/// [`Error::Unsupported`] is a skip with its reason; any other error is a failure.
pub fn check(case: &Case, attend: &AttentionFn<'_>) -> Verdict {
    match Expected::of(&case.problem, &case.data.inputs()) {
        Ok(expected) => check_against(case, &expected, attend),
        Err(error) => Verdict::Failed(format!("the oracle refused the case: {error}")),
    }
}

/// Runs `case` on `attend` and compares all outputs with `expected`, which several candidates can share.
pub fn check_against(case: &Case, expected: &Expected, attend: &AttentionFn<'_>) -> Verdict {
    match attend(&case.problem, &case.data.inputs()) {
        Ok(outputs) => match differences(&case.problem, expected, &outputs) {
            reports if reports.is_empty() => Verdict::Passed,
            reports => Verdict::Failed(reports.join("; ")),
        },
        Err(error) => verdict_of(&error),
    }
}

/// Converts an error to a verdict.
pub(crate) fn verdict_of(error: &Error) -> Verdict {
    match error {
        Error::Unsupported { .. } => Verdict::Skipped(error.to_string()),
        _ => Verdict::Failed(error.to_string()),
    }
}

/// Describes all errors of an answer.
fn differences(problem: &Problem, expected: &Expected, outputs: &Outputs) -> Vec<String> {
    let mut reports = Vec::new();
    let mut report = |name: &str, result: Result<f64, Mismatch>| {
        if let Err(mismatch) = result {
            reports.push(format!("{name} {mismatch}"));
        }
    };
    let output = outputs.output.as_slice();
    if output.dtype() != problem.output.dtype {
        return vec![format!("output is {} instead of {}", output.dtype(), problem.output.dtype)];
    }
    if output.len() != problem.output_len() {
        report("output", Err(Mismatch::Shape { got: vec![output.len()], expected: vec![problem.output_len()] }));
        return reports;
    }
    let shape = problem.shape(Operand::Output);
    let dense = gather(output, &problem.output, shape);
    report("output", compare(&shape, &dense, &expected.output.shape, &expected.output.values, &expected.output.tolerance));
    let mut gap = vec![true; output.len()];
    output_places(problem).for_each(|place| gap[place] = false);
    if let Some(place) = (0..output.len()).find(|&place| gap[place] && output.get(place) != 0.0) {
        reports.push(format!("output holds {} at {place}, between its elements, instead of 0", output.get(place)));
    }
    let mut optional = |name: &str, got: &Option<Vec<f32>>, expected: &Option<ExpectedTensor>| match (got, expected) {
        (Some(got), Some(expected)) => {
            let result = compare(&expected.shape, got, &expected.shape, &expected.values, &expected.tolerance);
            if let Err(mismatch) = result {
                reports.push(format!("{name} {mismatch}"));
            }
        }
        (None, None) => {}
        (None, Some(_)) => reports.push(format!("{name} was asked for and is not there")),
        (Some(_), None) => reports.push(format!("{name} is there and was not asked for")),
    };
    optional("lse", &outputs.lse, &expected.lse);
    let stats = outputs.stats.as_ref().map(|stats| comparable_stats(stats, expected.stats.as_ref()));
    optional("stats", &stats, &expected.stats);
    optional("scores", &outputs.scores, &expected.scores);
    optional("weights", &outputs.weights, &expected.weights);
    reports
}

/// Flattens statistics for comparison: where the expected l is NaN, m may be anything.
fn comparable_stats(stats: &[[f32; 2]], expected: Option<&ExpectedTensor>) -> Vec<f32> {
    let mut numbers = stats.as_flattened().to_vec();
    for (got, right) in numbers.chunks_exact_mut(2).zip(expected.iter().flat_map(|expected| expected.values.chunks_exact(2))) {
        if right[1].is_nan() {
            got[0] = right[0] as f32;
        }
    }
    numbers
}

/// Number of failing random cases that are reduced to small ones, each in up to a few hundred runs.
const REDUCED: usize = 3;

/// Runs the fixed table and `random_cases` random cases from `seed` on, on every candidate. Gradients run on every
/// candidate with an engine (see [`run_backward_case`]). Only cases whose name contains `filter` run. The first random
/// cases that fail are reported as the smallest case that still fails.
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
        }
        control.report((at + 1) as f64 / total as f64)?;
    }
    Ok(rows)
}

/// Runs one case on every candidate.
pub fn run_case(suite: &str, case: &Case, candidates: &[Candidate<'_>]) -> Result<Vec<Row>> {
    let expected = Expected::of(&case.problem, &case.data.inputs())?;
    let run = |candidate: &Candidate<'_>| Row {
        suite: suite.into(),
        case: case.name.clone(),
        backend: candidate.name.into(),
        verdict: check_against(case, &expected, candidate.attend),
        note: String::new(),
    };
    Ok(candidates.iter().map(run).collect())
}

/// Reduces a failing case and describes the result.
fn minimal_report(case: Case, attend: &AttentionFn<'_>) -> String {
    let smallest = minimise(case, |case| matches!(check(case, attend), Verdict::Failed(_)));
    format!("{}, minimal: {:?} {:?}", check(&smallest, attend), smallest.problem, smallest.fill)
}

/// Runs every case file under `dir` whose path contains `filter`, in path order, on every candidate.
///
/// An unreadable file is a failure of every candidate; only an unreadable directory, or one without cases, is an error.
pub fn run_dir(dir: &Path, candidates: &[Candidate<'_>], filter: &str, control: &mut Progress<'_>) -> Result<Vec<Row>> {
    let mut paths = CaseFile::find(dir)?;
    paths.retain(|path| path.display().to_string().contains(filter));
    let mut rows = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        match CaseFile::read(path) {
            Ok(file) => {
                for candidate in candidates {
                    let (verdict, note) = cases::check_on(&file, candidate);
                    rows.push(Row { suite: file.suite().into(), case: file.name().into(), backend: candidate.name.into(), verdict, note });
                }
            }
            Err(error) => rows.extend(candidates.iter().map(|candidate| Row {
                suite: "unreadable".into(),
                case: path.display().to_string(),
                backend: candidate.name.into(),
                verdict: Verdict::Failed(error.to_string()),
                note: String::new(),
            })),
        }
        control.report((at + 1) as f64 / paths.len() as f64)?;
    }
    Ok(rows)
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
