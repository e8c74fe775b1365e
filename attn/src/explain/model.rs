//! `attn explain --model`: the heads of a real model's layer, on hidden states of the user's or the file's.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use wgpu_attention::layer::{MultiHead, Naming, WeightFile, average_heads, naive};
use wgpu_attention::{Engine, Inputs, Returns};

use super::example::{MOST_WORDS, position, printable};
use super::heatmap::heatmap;
use super::svg::{self, Picture};
use super::{Args, heading, matrix, write_picture};
use crate::arrays::{Array, TensorFile, read_npy};
use crate::backend;
use crate::failure::Failure;
use crate::terminal::{Terminal, number};

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
    difference: f64,
}

pub(super) fn run(args: &Args, path: &Path, terminal: &mut Terminal) -> Result<(), Failure> {
    let engine = backend::open(&args.backend.backend)?;
    let model = compute(args, path, &engine)?;
    let focus = position(&model.tokens, args.focus.as_deref())?;
    write_picture(args, || picture(&model, &engine))?;
    match args.json {
        true => Ok(terminal.json(&as_json(&model, &engine, focus), true)?),
        false => tell(terminal, &model, &engine, focus),
    }
}

fn compute(args: &Args, path: &Path, engine: &Engine) -> Result<Model, Failure> {
    let file = TensorFile::read(path)?;
    let bad = |why: String| Failure::at(path.display(), why);
    let hidden = hidden(args, &file)?;
    let length = match hidden.shape[..] {
        [length, _] | [1, length, _] if length > 0 => length,
        _ => return Err(Failure::at(&hidden.source, format!("has the shape {:?}; [tokens, embed_dim] is needed", hidden.shape))),
    };
    if length > MOST_WORDS {
        return Err(Failure::at(&hidden.source, format!("has {length} tokens; explain shows up to {MOST_WORDS}")));
    }
    let tokens = tokens(args, &file, length)?;
    let hidden = hidden.floats()?.into_f32();
    let stored = || file.metadata.get("attr.num_heads").and_then(|count| count.parse().ok());
    let num_heads = args.num_heads.or_else(stored).ok_or_else(|| bad("does not say how many heads there are: give --num-heads".into()))?;
    let naming = naming(&file.names, args.layer)
        .ok_or_else(|| bad(format!("has no attention layer {} under the names of BERT or PyTorch, and no wq, wk, wv, wo", args.layer)))?;
    let layer: MultiHead = WeightFile::open(path)?.multi_head(&naming, num_heads, num_heads)?;

    let mut problem = layer.problem(1, length, length);
    problem.want = Returns { weights: true, ..Returns::default() };
    let inputs = Inputs::new(&hidden, &hidden, &hidden);
    let outputs = layer.forward(engine, &problem, &inputs)?;
    let reference = naive::forward(&layer, &problem, &inputs)?;
    let weights = outputs.weights.ok_or_else(|| Failure::Check(format!("{} returned no weights", engine.chosen())))?;
    let pairs = weights.iter().zip(&reference.attention.weights);
    let differences = pairs.map(|(&got, expected)| (f64::from(got) - expected).abs());
    let difference = differences.fold(0.0, |most, x| if x.is_nan() || x > most { x } else { most });
    if difference.is_nan() || difference > MOST_DIFFERENCE {
        return Err(Failure::Check(format!("{} is off by {difference:e} from the f64 reference", engine.chosen())));
    }
    let mean = average_heads(&weights, &problem.dims)?;
    let title = printable(file.metadata.get("sentence").unwrap_or(&path.display().to_string()));
    Ok(Model { title, tokens, num_heads, weights, mean, output: outputs.output, difference })
}

/// Reads the input of the layer: the file of `--hidden`, else the model file's tensor.
fn hidden(args: &Args, file: &TensorFile) -> Result<Array, Failure> {
    if let Some(path) = &args.hidden {
        return read_npy(path);
    }
    let found = file.tensor("in.hidden")?;
    let found = if found.is_some() { found } else { file.tensor("hidden")? };
    found.ok_or_else(|| file.missing("hidden", "; give the layer's input, [tokens, embed_dim], with --hidden FILE.npy"))
}

/// Labels of the tokens: those of `--tokens`, else those that the file names, else their numbers.
fn tokens(args: &Args, file: &TensorFile, length: usize) -> Result<Vec<String>, Failure> {
    let (source, labels) = match (&args.tokens, file.metadata.get("tokens")) {
        (Some(text), _) if Path::new(text).is_file() => {
            let lines = std::fs::read_to_string(text).map_err(|error| Failure::at(format!("--tokens {text}"), error))?;
            (format!("--tokens {text}"), lines.lines().map(printable).collect())
        }
        (Some(text), _) => ("--tokens".to_string(), text.split_whitespace().map(printable).collect()),
        (None, Some(text)) => (file.path.display().to_string(), text.split_whitespace().map(printable).collect()),
        (None, None) => (String::new(), (0..length).map(|at| format!("token {at}")).collect::<Vec<_>>()),
    };
    if labels.len() != length {
        return Err(Failure::at(source, format!("names {} tokens, but the layer's input has {length} rows", labels.len())));
    }
    Ok(labels)
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

fn as_json(model: &Model, engine: &Engine, focus: Option<usize>) -> Value {
    let count = model.tokens.len();
    let embed_dim = model.output.len() / count;
    json!({
        "sentence": model.title, "tokens": model.tokens, "focus": focus.map(|at| &model.tokens[at]),
        "backend": engine.chosen(), "why": engine.why(),
        "heads": heads(model).map(|weights| json!({ "weights": matrix(weights, count) })).collect::<Vec<_>>(),
        "mean": matrix(&model.mean, count), "layer_output": matrix(&model.output, embed_dim),
        "embed_dim": embed_dim, "largest_weight": number(model.weights.iter().copied().fold(0.0, f32::max)),
        "reference_largest_difference": model.difference,
    })
}

fn picture(model: &Model, engine: &Engine) -> String {
    svg::draw(&Picture {
        title: &model.title,
        footer: &format!("The model's own weights. Computed on {}.", engine.chosen()),
        tokens: &model.tokens,
        whole: (&format!("mean of {} heads", model.num_heads), &model.mean),
        heads: &model.weights,
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
