//! Case files on candidates: one function per operation, and the comparison of its results with the file.

mod attention;
mod case_file;
mod layers;
mod operators;
mod runner;

use std::path::Path;

pub use case_file::CaseFile;
use case_file::Given;
use runner::Runner;

use crate::error::Result;
use crate::problem::{AttentionFn, BackwardInputs, Inputs, Problem, WantGradients};
use crate::progress::Progress;
use crate::verify::expect_backward::AttendBackward;
use crate::verify::suite::{Candidate, Row, Verdict};

/// Runs the operation of a file.
type Op = fn(&CaseFile, &Runner<'_>) -> Result<Vec<Given>>;

const OPS: [(&str, Op); 13] = [
    ("sdpa", attention::attention),
    ("flex", attention::attention),
    ("varlen", attention::attention),
    ("paged", attention::attention),
    ("sdpa_layers", attention::sdpa_layers),
    ("merge_states", attention::merge_states),
    ("bert_attention", layers::bert_attention),
    ("mha", layers::mha),
    ("Attention", operators::attention),
    ("RotaryEmbedding", operators::rotary_embedding),
    ("FlexAttention", operators::flex_attention),
    ("ms.MultiHeadAttention", operators::multi_head_attention),
    ("ms.GroupQueryAttention", operators::group_query_attention),
];

/// Runs every case file under `dir` whose path contains `filter`, in path order, on every candidate.
///
/// An unreadable file is a failure of every candidate; only an unreadable directory, or one without cases, is an error.
pub fn run_dir(dir: &Path, candidates: &[Candidate<'_>], filter: &str, control: &mut Progress<'_>) -> Result<Vec<Row>> {
    let mut paths = CaseFile::find(dir)?;
    paths.retain(|path| path.display().to_string().contains(filter));
    let mut rows = Vec::new();
    for (at, path) in paths.iter().enumerate() {
        let file = CaseFile::read(path);
        rows.extend(candidates.iter().map(|candidate| match &file {
            Ok(file) => {
                let (verdict, note) = check_on(file, candidate);
                Row { note, ..Row::new(file.suite(), file.name(), candidate.name, verdict) }
            }
            Err(error) => Row::new("unreadable", &path.display().to_string(), candidate.name, Verdict::Failed(error.to_string())),
        }));
        control.report((at + 1) as f64 / paths.len() as f64)?;
    }
    Ok(rows)
}

/// Runs a case file on `attend`, without gradients. Also returns a note on what was not compared and why.
pub fn check_file(file: &CaseFile, attend: &AttentionFn<'_>) -> (Verdict, String) {
    check_with(file, &Runner { attend, engine: None, backward: None })
}

/// Runs a case file on `attend`, and its gradients, if it is an attention that has some, on `backward`.
pub fn check_file_backward(file: &CaseFile, attend: &AttentionFn<'_>, backward: &AttendBackward<'_>) -> (Verdict, String) {
    check_with(file, &Runner { attend, engine: None, backward: Some(backward) })
}

/// Runs a case file on a candidate. With an engine, gradients are compared too, and layers are its own.
fn check_on(file: &CaseFile, candidate: &Candidate<'_>) -> (Verdict, String) {
    let Some(engine) = candidate.engine else { return check_file(file, candidate.attend) };
    let backward = |problem: &Problem, inputs: &Inputs<'_>, given: &BackwardInputs<'_>, want: &WantGradients| {
        engine.backward(problem, inputs, given, want)
    };
    check_with(file, &Runner { attend: candidate.attend, engine: Some(engine), backward: Some(&backward) })
}

fn check_with(file: &CaseFile, runner: &Runner<'_>) -> (Verdict, String) {
    let Some((_, op)) = OPS.iter().find(|(name, _)| *name == file.op()) else {
        return (Verdict::Skipped(format!("op `{}` is not covered", file.op())), String::new());
    };
    let mut left_out = Vec::new();
    let verdict = Verdict::of(op(file, runner), |given| {
        let (mut errors, mut is_compared) = (Vec::new(), false);
        for name in file.outputs() {
            if let Some(why) = not_compared(file, name, runner) {
                left_out.push(format!("{name} ({why})"));
            } else {
                is_compared = true;
                errors.extend(error(file, name, &given));
            }
        }
        if is_compared { errors } else { vec!["nothing to compare".into()] }
    });
    let mut note = if left_out.is_empty() { String::new() } else { format!("not compared: {}", left_out.join(", ")) };
    if file.op() == "merge_states" {
        note.push_str("merged on the host, whatever the backend");
    }
    (verdict, note)
}

/// Returns the reason why an expected output is not compared, if it is not.
fn not_compared(file: &CaseFile, output: &str, runner: &Runner<'_>) -> Option<&'static str> {
    match output.strip_prefix('d') {
        _ if output == "sentence_embedding" => Some("needs the whole model"),
        // Gradients are named d<input>.
        Some(input) if runner.engine.is_none() && runner.backward.is_none() && file.has(input) => Some("needs an engine"),
        _ => None,
    }
}

/// Describes the error of the result `name`, if it has one.
fn error(file: &CaseFile, name: &str, given: &[Given]) -> Option<String> {
    let Some(got) = given.iter().find(|given| given.name == name) else { return Some(format!("{name} was not given")) };
    match file.expected(name) {
        Ok(expected) if expected.shape != got.shape => Some(format!("{name} has shape {:?} instead of {:?}", got.shape, expected.shape)),
        Ok(expected) => expected.error(name, &got.values),
        Err(error) => Some(error.to_string()),
    }
}
