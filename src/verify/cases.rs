//! Operations of case files as problems: one function per operation, and the comparison of its results with the file.

use crate::error::{Error, Result};
use crate::numbers::DType;
use crate::problem::{AttentionFn, BroadcastShape};
use crate::verify::case_file::{CaseFile, FileData};
use crate::verify::cases_backward::with_gradients;
use crate::verify::compare::compare;
use crate::verify::suite::{Candidate, Verdict, verdict_of};
use crate::verify::{cases_model, cases_onnx, cases_sdpa, cases_serving};

/// Tensor that an operation returned.
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// Runs the operation of a file.
type Op = fn(&CaseFile, &AttentionFn<'_>) -> Result<Vec<Given>>;

const OPS: [(&str, Op); 13] = [
    ("sdpa", cases_sdpa::sdpa),
    ("flex", cases_sdpa::flex),
    ("varlen", cases_serving::varlen),
    ("paged", cases_serving::paged),
    ("merge_states", cases_serving::merge_states),
    ("sdpa_layers", cases_model::sdpa_layers),
    ("bert_attention", cases_model::bert_attention),
    ("mha", cases_model::mha),
    ("Attention", cases_onnx::attention),
    ("RotaryEmbedding", cases_onnx::rotary_embedding),
    ("FlexAttention", cases_onnx::flex_attention),
    ("ms.MultiHeadAttention", cases_onnx::multi_head_attention),
    ("ms.GroupQueryAttention", cases_onnx::group_query_attention),
];

/// Returns the reason why an expected output is not compared, if it is not.
fn not_compared(file: &CaseFile, output: &str, has_engine: bool) -> Option<&'static str> {
    match (file.op(), output) {
        (_, "sentence_embedding") => Some("needs the whole model"),
        _ if has_engine => None,
        // Gradients are named d<input>.
        _ => output.strip_prefix('d').filter(|input| file.optional(input).is_some()).map(|_| "needs an engine"),
    }
}

/// Runs a case file on `attend`, without gradients. Also returns a note on what was not compared and why.
pub fn check_file(file: &CaseFile, attend: &AttentionFn<'_>) -> (Verdict, String) {
    check_on(file, &Candidate { name: "", attend, engine: None })
}

/// Runs a case file on a candidate. With an engine, gradients are compared too, and BERT blocks run on its own layer.
pub(crate) fn check_on(file: &CaseFile, candidate: &Candidate<'_>) -> (Verdict, String) {
    let Some((_, op)) = OPS.iter().find(|(name, _)| *name == file.op()) else {
        return (Verdict::Skipped(format!("op `{}` is not covered", file.op())), String::new());
    };
    let given = match (file.op(), candidate.engine) {
        ("bert_attention", Some(engine)) => cases_model::bert_layer(file, engine),
        (_, Some(engine)) if file.optional("dout").or(file.optional("doutput")).is_some() => {
            with_gradients(file, engine, candidate.attend, op)
        }
        _ => op(file, candidate.attend),
    };
    let given = match given {
        Ok(given) => given,
        Err(error) => return (verdict_of(&error), String::new()),
    };
    let (mut reports, mut notes, mut compared) = (Vec::new(), Vec::new(), 0);
    for (name, expected) in file.outputs() {
        if let Some(why) = not_compared(file, name, candidate.engine.is_some()) {
            notes.push(format!("{name} ({why})"));
            continue;
        }
        compared += 1;
        let Some(got) = given.iter().find(|given| given.name == name) else {
            reports.push(format!("{name} was not given"));
            continue;
        };
        match file.tolerance(name) {
            Ok(tolerance) => {
                if let Err(mismatch) = compare(&got.shape, &got.values, &expected.shape, &expected.to_f64(), &tolerance) {
                    reports.push(format!("{name} {mismatch}"));
                }
            }
            Err(error) => reports.push(error.to_string()),
        }
    }
    if compared == 0 {
        reports.push("nothing to compare".into());
    }
    let mut note = if notes.is_empty() { String::new() } else { format!("not compared: {}", notes.join(", ")) };
    if file.op() == "merge_states" {
        note.push_str("merged on the host, whatever the backend");
    }
    if reports.is_empty() { (Verdict::Passed, note) } else { (Verdict::Failed(reports.join("; ")), note) }
}

/// Pads a shape to four axes with leading 1s.
pub(crate) fn broadcast_shape(file: &CaseFile, name: &str, shape: &[usize]) -> Result<BroadcastShape> {
    if shape.len() > 4 {
        return Err(file.error(format!("tensor `in.{name}` has more than four axes: {shape:?}")));
    }
    let mut full = [1; 4];
    full[4 - shape.len()..].copy_from_slice(shape);
    Ok(BroadcastShape(full))
}

/// Storage type of the expected `output`, in which the engine is asked to store it; f32 for f64.
pub(crate) fn output_dtype(file: &CaseFile, output: &str) -> Result<DType> {
    let expected = file.expected(output).ok_or_else(|| file.error(format!("has no tensor `out.{output}`")))?;
    match (expected.dtype(), &expected.data) {
        (Some(dtype), _) => Ok(dtype),
        (None, FileData::Double(_)) => Ok(DType::F32),
        _ => Err(file.error(format!("tensor `out.{output}` is not of floating-point numbers"))),
    }
}

/// Unwraps an optional output that was asked for; an error if it is missing.
pub(crate) fn asked_for(values: Option<Vec<f32>>, what: &'static str) -> Result<Vec<f32>> {
    values.ok_or_else(|| Error::invalid(what, "was asked for and is not there"))
}
