//! Case files on candidates: one function per operation, and the comparison of its results with the file.

mod attention;
mod case_file;
mod layers;
mod operators;

use std::path::Path;

pub use case_file::CaseFile;
use case_file::{FileData, FileTensor};

use crate::verify::compare::compare;
use crate::verify::suite::{Candidate, Row, Verdict};
use crate::{AttentionFn, Progress, Result};

/// Tensor that an operation returned.
struct Given {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

fn given(name: &str, shape: &[usize], values: Vec<f32>) -> Given {
    Given { name: name.into(), shape: shape.to_vec(), values }
}

/// Runs the operation of a file.
type Op = fn(&CaseFile, &Candidate<'_>) -> Result<Vec<Given>>;

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
                Row { note, ..Row::new(file.suite(), file.name(), candidate, verdict) }
            }
            Err(error) => Row::new("unreadable", &path.display().to_string(), candidate, Verdict::Failed(error.to_string())),
        }));
        control.report((at + 1) as f64 / paths.len() as f64)?;
    }
    Ok(rows)
}

/// Runs a case file on `attend`, without gradients. Also returns a note on what was not compared and why.
pub fn check_file(file: &CaseFile, attend: &AttentionFn<'_>) -> (Verdict, String) {
    check_on(file, &Candidate { name: "", attend, engine: None })
}

/// Runs a case file on a candidate. With an engine, gradients are compared too, and layers are its own.
fn check_on(file: &CaseFile, candidate: &Candidate<'_>) -> (Verdict, String) {
    let Some((_, op)) = OPS.iter().find(|(name, _)| *name == file.op()) else {
        return (Verdict::Skipped(format!("op `{}` is not covered", file.op())), String::new());
    };
    let given = op(file, candidate);
    if given.is_err() {
        return (Verdict::of(given, |_| Vec::new()), String::new());
    }
    let left_out = |name: &str| not_compared(file, name, candidate).map(|why| format!("{name} ({why})"));
    let left_out: Vec<String> = file.outputs().filter_map(|(name, _)| left_out(name)).collect();
    let mut note = if left_out.is_empty() { String::new() } else { format!("not compared: {}", left_out.join(", ")) };
    if file.op() == "merge_states" {
        note.push_str("merged on the host, whatever the backend");
    }
    (Verdict::of(given, |given| errors(file, candidate, &given)), note)
}

/// Returns the reason why an expected output is not compared, if it is not.
fn not_compared(file: &CaseFile, output: &str, candidate: &Candidate<'_>) -> Option<&'static str> {
    match output.strip_prefix('d') {
        _ if output == "sentence_embedding" => Some("needs the whole model"),
        // Gradients are named d<input>.
        Some(input) if candidate.engine.is_none() && file.has(input) => Some("needs an engine"),
        _ => None,
    }
}

/// Compares the results of an operation with the file, and describes all errors.
fn errors(file: &CaseFile, candidate: &Candidate<'_>, given: &[Given]) -> Vec<String> {
    let compared: Vec<_> = file.outputs().filter(|(name, _)| not_compared(file, name, candidate).is_none()).collect();
    if compared.is_empty() {
        return vec!["nothing to compare".into()];
    }
    let error = |(name, expected): (&str, &FileTensor)| {
        let Some(got) = given.iter().find(|given| given.name == name) else { return Some(format!("{name} was not given")) };
        match file.tolerance(name) {
            Ok(tolerance) => {
                let result = compare(&got.shape, &got.values, &expected.shape, &expected.to_f64(), &tolerance);
                result.err().map(|mismatch| format!("{name} {mismatch}"))
            }
            Err(error) => Some(error.to_string()),
        }
    };
    compared.into_iter().filter_map(error).collect()
}
