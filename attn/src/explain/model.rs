//! `attn explain --model`: the heads of a real model's layer, on hidden states of the user's or the file's.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use wgpu_attention::layer::{MultiHead, Naming, WeightFile, average_heads, naive};
use wgpu_attention::{Algorithm, Engine, HostVec, Inputs, Returns};

use super::heatmap::heatmap;
use super::svg::{self, Panel, Picture};
use super::{Args, heading, matrix};
use crate::arrays::{Array, Data, read_npy, read_safetensors, safetensors_header, write_file};
use crate::backend;
use crate::failure::Failure;
use crate::terminal::{Terminal, note, number};

/// Tolerance of weights, which are at most 1: f32 errs by far less, a wrong head by far more.
const MOST_DIFFERENCE: f64 = 1e-4;

/// Weights and output of a layer, and the texts that label them.
struct Model {
    title: String,
    tokens: Vec<String>,
    num_heads: usize,
    /// [num_heads, tokens, tokens].
    weights: Vec<f32>,
    /// Weights averaged over the heads.
    mean: Vec<f32>,
    /// [tokens, embed_dim].
    output: Vec<f32>,
    embed_dim: usize,
    difference: f64,
}

pub(super) fn run(args: &Args, path: &Path, terminal: &mut Terminal) -> Result<(), Failure> {
    let engine = backend::open(&args.backend, Algorithm::Auto, false)?;
    let model = compute(args, path, &engine)?;
    let focus = match &args.focus {
        None => None,
        Some(wanted) => Some(model.tokens.iter().position(|token| token.eq_ignore_ascii_case(wanted)).ok_or_else(|| {
            Failure::input(format!("--focus: no token `{}` here; there are {}", wanted.escape_debug(), model.tokens.join(", ")))
        })?),
    };
    if let Some(path) = &args.svg {
        write_file(path, picture(&model, &engine).as_bytes())?;
        note(format_args!("wrote {}", path.display()));
    }
    if args.json {
        terminal.json(&as_json(&model, &engine), true)?;
        return Ok(());
    }
    tell(terminal, &model, &engine, focus)
}

fn compute(args: &Args, path: &Path, engine: &Engine) -> Result<Model, Failure> {
    let file = path.display().to_string();
    let (names, metadata) = safetensors_header(path)?;
    let hidden = hidden(args, path, &file)?;
    let [.., length, embed_dim] = hidden.shape[..] else {
        return Err(Failure::input(format!("{}: has the shape {:?}; [tokens, embed_dim] is needed", hidden.source, hidden.shape)));
    };
    let batch: usize = hidden.shape[..hidden.shape.len() - 2].iter().product();
    if batch != 1 || length == 0 || length > super::example::MOST_WORDS {
        let most = super::example::MOST_WORDS;
        return Err(Failure::input(format!(
            "{}: has the shape {:?}; one sequence of 1 to {most} tokens is needed",
            hidden.source, hidden.shape
        )));
    }
    let Data::Numbers(numbers) = hidden.data else {
        return Err(Failure::input(format!("{}: is bool; numbers are needed", hidden.source)));
    };
    let hidden = HostVec::into_f32(numbers);
    let num_heads = match args.num_heads.or_else(|| metadata.get("attr.num_heads").and_then(|count| count.parse().ok())) {
        Some(count) => count,
        None => return Err(Failure::input(format!("{file}: does not say how many heads there are: give --num-heads"))),
    };
    let naming = naming(&names, args.layer).ok_or_else(|| {
        Failure::input(format!("{file}: has no attention layer {} under the names of BERT or PyTorch, and no wq, wk, wv, wo", args.layer))
    })?;
    let layer: MultiHead = WeightFile::open(path)?.multi_head(&naming, num_heads, num_heads)?;

    let mut problem = layer.problem(1, length, length);
    problem.want = Returns { weights: true, ..Returns::default() };
    let inputs = Inputs::new(&hidden, &hidden, &hidden);
    let outputs = layer.forward(engine, &problem, &inputs)?;
    let reference = naive::forward(&layer, &problem, &inputs)?;
    let weights = outputs.weights.ok_or_else(|| Failure::Check(format!("{} gave no weights", engine.chosen())))?;
    let difference = weights
        .iter()
        .zip(&reference.attention.weights)
        .map(|(&got, expected)| (f64::from(got) - expected).abs())
        .fold(0.0, |most, x| if x.is_nan() || x > most { x } else { most });
    if difference.is_nan() || difference > MOST_DIFFERENCE {
        return Err(Failure::Check(format!("{} is off by {difference:e} from the f64 reference", engine.chosen())));
    }
    let tokens: Vec<String> = match metadata.get("tokens") {
        Some(tokens) => tokens.split_whitespace().map(|token| token.chars().filter(|c| !c.is_control()).collect()).collect(),
        None => (0..length).map(|at| format!("token {at}")).collect(),
    };
    if tokens.len() != length {
        return Err(Failure::input(format!("{file}: names {} tokens, but there are {length} hidden states", tokens.len())));
    }
    let mean = average_heads(&weights, &problem.dims)?;
    let title = metadata.get("sentence").cloned().unwrap_or_else(|| file.clone());
    let title = title.chars().filter(|c| !c.is_control()).collect();
    Ok(Model { title, tokens, num_heads, weights, mean, output: outputs.output, embed_dim, difference })
}

/// Reads the input of the layer: the file of `--hidden`, else the model file's tensor.
fn hidden(args: &Args, path: &Path, file: &str) -> Result<Array, Failure> {
    if let Some(path) = &args.hidden {
        return read_npy(path);
    }
    let mut found = read_safetensors(path, &["in.hidden", "hidden"])?;
    found.remove("in.hidden").or_else(|| found.remove("hidden")).ok_or_else(|| {
        Failure::input(format!("{file}: has no tensor `hidden`; give the layer's input, [tokens, embed_dim], with --hidden FILE.npy"))
    })
}

/// Detects how the file names the tensors of the layer.
fn naming(names: &[String], layer: usize) -> Option<Naming> {
    let prefix_of = |suffix: &str| names.iter().find_map(|name| name.strip_suffix(suffix)).map(str::to_string);
    if let Some(prefix) = prefix_of(&format!("encoder.layer.{layer}.attention.self.query.weight")) {
        return Some(Naming::Bert { prefix, layer });
    }
    if let Some(prefix) = ["in_proj_weight", "q_proj_weight"].into_iter().find_map(prefix_of) {
        return Some(Naming::Torch { prefix });
    }
    prefix_of("wq").map(|prefix| Naming::Plain { prefix })
}

fn tell(terminal: &mut Terminal, model: &Model, engine: &Engine, focus: Option<usize>) -> Result<(), Failure> {
    let title = terminal.bold(&format!("\"{}\"", model.title));
    writeln!(terminal, "{title}\ncomputed on {} ({})", engine.chosen(), engine.why())?;
    writeln!(terminal, "{} tokens, {} heads; the weights are the model's own", model.tokens.len(), model.num_heads)?;
    heading(terminal, "The mean over the heads")?;
    heatmap(terminal, &model.tokens, &model.mean, [0.0, 1.0], focus)?;
    for (head, weights) in heads(model).enumerate() {
        heading(terminal, &format!("Head {} of {}", head + 1, model.num_heads))?;
        heatmap(terminal, &model.tokens, weights, [0.0, 1.0], focus)?;
    }
    writeln!(terminal, "\nEvery weight was checked against the f64 reference of the layer: largest difference {:.0e}.", model.difference)?;
    Ok(())
}

fn heads(model: &Model) -> std::slice::Chunks<'_, f32> {
    model.weights.chunks(model.tokens.len() * model.tokens.len())
}

fn as_json(model: &Model, engine: &Engine) -> Value {
    let count = model.tokens.len();
    json!({
        "sentence": model.title,
        "tokens": model.tokens,
        "backend": engine.chosen(),
        "why": engine.why(),
        "heads": heads(model).map(|weights| json!({ "weights": matrix(weights, count) })).collect::<Vec<_>>(),
        "mean": matrix(&model.mean, count),
        "layer_output": matrix(&model.output, model.output.len() / count),
        "embed_dim": model.embed_dim,
        "largest_weight": number(model.weights.iter().copied().fold(0.0, f32::max)),
        "reference_largest_difference": model.difference,
    })
}

fn picture(model: &Model, engine: &Engine) -> String {
    let mean = Panel { title: format!("mean of {} heads", model.num_heads), weights: &model.mean };
    let heads = heads(model).enumerate().map(|(head, weights)| Panel { title: format!("head {}", head + 1), weights });
    svg::draw(&Picture {
        title: &model.title,
        subtitle: "Attention weights: how much each token (row) takes from each token (column). Rows sum to 1.",
        footer: &format!("The model's own weights. Computed on {}.", engine.chosen()),
        tokens: &model.tokens,
        panels: std::iter::once(mean).chain(heads).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognised() {
        let naming = |name: &str| naming(&[name.to_string()], 3);
        let bert = "bert.encoder.layer.3.attention.self.query.weight";
        assert_eq!(naming(bert), Some(Naming::Bert { prefix: "bert.".into(), layer: 3 }));
        assert_eq!(naming("encoder.layer.2.attention.self.query.weight"), None);
        assert_eq!(naming("self_attn.in_proj_weight"), Some(Naming::Torch { prefix: "self_attn.".into() }));
        assert_eq!(naming("in.wq"), Some(Naming::Plain { prefix: "in.".into() }));
    }
}
