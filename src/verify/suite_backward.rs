//! Comparison of candidates' gradients with the oracle's.

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::numbers::{DType, HostVec};
use crate::plan::DeviceClass;
use crate::problem::{BackwardInputs, Gradients, Inputs, Operand, Problem, Returns, TensorSpec, WantGradients, gather};
use crate::verify::case::Case;
use crate::verify::compare::compare;
use crate::verify::expect::ExpectedTensor;
use crate::verify::expect_backward::{AttendBackward, ExpectedGradients};
use crate::verify::suite::{Candidate, Row, Verdict, verdict_of};

/// Software adapters run one in this many of the cases that need kernels of their own.
const OTHERS: u64 = 20;

/// Computes all gradients of `case` with `backward` and compares them with the oracle's.
///
/// [`crate::Error::Unsupported`] is a skip with its reason; any other error is a failure.
pub fn check_backward(case: &Case, backward: &AttendBackward<'_>) -> Verdict {
    match ExpectedGradients::of(case) {
        Ok(expected) => check_backward_against(case, &expected, backward),
        Err(error) => Verdict::Failed(format!("the oracle refused the case: {error}")),
    }
}

/// Computes all gradients of `case` and compares them with `expected`, which several candidates can share.
pub fn check_backward_against(case: &Case, expected: &ExpectedGradients, backward: &AttendBackward<'_>) -> Verdict {
    let want = WantGradients::all(&case.problem);
    match backward(&case.problem, &case.data.inputs(), &expected.inputs(), &want) {
        Ok(gradients) => match differences(&case.problem, expected, &gradients) {
            reports if reports.is_empty() => Verdict::Passed,
            reports => Verdict::Failed(reports.join("; ")),
        },
        Err(error) => verdict_of(&error),
    }
}

/// Checks the gradients of one case on every candidate with an engine, as rows of the suite `gradients`.
///
/// A software adapter compiles a kernel in half a second, and gradients need up to eight kernels for each combination
/// of storage types. Therefore it runs only f32 problems with narrow heads, which share kernels, and one in twenty of
/// the rest; the others are skipped with that reason.
pub fn run_backward_case(case: &Case, candidates: &[Candidate<'_>]) -> Result<Vec<Row>> {
    let engines: Vec<_> = candidates.iter().filter_map(|candidate| Some((candidate.name, candidate.engine?))).collect();
    if engines.is_empty() {
        return Ok(Vec::new());
    }
    let p = &case.problem;
    let is_cheap = Operand::ALL.iter().all(|&operand| p.spec(operand).dtype == DType::F32) && p.dims.head_dim.max(p.dims.head_dim_v) <= 64;
    let is_chosen = is_cheap || case.fill.seed.is_multiple_of(OTHERS);
    let expected = ExpectedGradients::of(case)?;
    let run = |(name, engine): (&str, &Engine)| {
        let is_slow = engine.gpu().is_some_and(|gpu| gpu.caps().class == DeviceClass::Software);
        let verdict = if is_slow && !is_chosen {
            Verdict::Skipped("gradients of other storage or wide heads on a software adapter, which compiles kernels for each".into())
        } else {
            let backward: &AttendBackward<'_> = &|problem, inputs, backward, want| {
                let stats = if case.fill.seed.is_multiple_of(2) { own_stats(engine, problem, inputs)? } else { None };
                engine.backward(problem, inputs, &BackwardInputs { stats: stats.as_deref(), ..*backward }, want)
            };
            check_backward_against(case, &expected, backward)
        };
        Row { suite: "gradients".into(), case: case.name.clone(), backend: name.into(), verdict, note: String::new() }
    };
    Ok(engines.into_iter().map(run).collect())
}

/// Statistics of the engine's own forward pass, if it supports them.
fn own_stats(engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<Option<Vec<[f32; 2]>>> {
    let problem = Problem { want: Returns { stats: true, ..Returns::default() }, ..*problem };
    match engine.attention(&problem, inputs) {
        Err(Error::Unsupported { .. }) => Ok(None),
        outputs => outputs.map(|outputs| outputs.stats),
    }
}

/// Describes all errors of gradients, at most one per tensor.
fn differences(problem: &Problem, expected: &ExpectedGradients, got: &Gradients) -> Vec<String> {
    let mut reports = Vec::new();
    for (name, operand, got, expected) in [
        ("dquery", Operand::Query, &got.query, &expected.query),
        ("dkey", Operand::Key, &got.key, &expected.key),
        ("dvalue", Operand::Value, &got.value, &expected.value),
    ] {
        reports.extend(stored(name, problem.spec(operand), problem.shape(operand), got.as_ref(), expected));
    }
    for (name, got, expected) in [
        ("dbias", &got.bias, &expected.bias),
        ("drelative_bias", &got.relative_bias, &expected.relative_bias),
        ("dsinks", &got.sinks, &expected.sinks),
    ] {
        match (got, expected) {
            (Some(got), Some(expected)) => reports.extend(different(name, got, expected)),
            (None, None) => {}
            (None, Some(_)) => reports.push(format!("{name} was asked for and is not there")),
            (Some(_), None) => reports.push(format!("{name} is there and was not asked for")),
        }
    }
    reports
}

/// Describes an error in the gradient of an operand, which must be stored like the operand.
fn stored(name: &str, spec: &TensorSpec, shape: [usize; 4], got: Option<&HostVec>, expected: &ExpectedTensor) -> Option<String> {
    let Some(got) = got else { return Some(format!("{name} was asked for and is not there")) };
    let got = got.as_slice();
    let len = spec.required_len(shape).unwrap_or(usize::MAX);
    if got.dtype() != spec.dtype || got.len() != len {
        return Some(format!("{name} is {} numbers of {} instead of {len} of {}", got.len(), got.dtype(), spec.dtype));
    }
    let mut gap = vec![true; len];
    let places = gather((&(0..len).map(|at| at as f32).collect::<Vec<_>>()).into(), spec, shape);
    places.into_iter().for_each(|place| gap[place as usize] = false);
    if let Some(place) = (0..len).find(|&place| gap[place] && got.get(place) != 0.0) {
        return Some(format!("{name} holds {} at {place}, between its elements, instead of 0", got.get(place)));
    }
    different(name, &gather(got, spec, shape), expected)
}

fn different(name: &str, got: &[f32], expected: &ExpectedTensor) -> Option<String> {
    let result = compare(&expected.shape, got, &expected.shape, &expected.values, &expected.tolerance);
    result.err().map(|mismatch| format!("{name} {mismatch}"))
}
