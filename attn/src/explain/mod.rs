//! `attn explain`: attention step by step, on the words of a sentence; or a mask and what kernels skip of it.

mod example;
mod heatmap;
mod mask;
mod mask_counts;
mod mask_svg;
mod model;
mod svg;

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use wgpu_attention::{DType, Dims, Engine, Inputs, Layout, Problem, Returns, ScoreStage, oracle};

use crate::arrays::{check_output, keep_apart, write_file};
use crate::backend::{self, BackendArg};
use crate::failure::Failure;
use crate::terminal::{Terminal, note, number};
use example::{Example, SENTENCE, times};
use heatmap::{figures, heatmap, row_text};
use mask::MaskArgs;
use svg::Picture;

pub(crate) use svg::escape;

const EXAMPLES: &str = "\
Examples:
  attn explain                                    the worked example, to be checked by hand
  attn explain --focus weights                    follow another word's row
  attn explain \"the cat sat on the mat\"           any sentence, with made-up embeddings
  attn explain --svg attention.svg                a picture of every head
  attn explain --backend vulkan                   the same numbers from a GPU
  attn explain --json | jq .weights               for programs
  attn explain --model tests/data/minilm/minilm_layer0_block.safetensors
  attn explain --model bert.safetensors --layer 3 --num-heads 12 --hidden h.npy --tokens labels.txt
  attn explain --visible 'at.key <= at.position' --tile 16,16 --svg mask.svg
  attn explain --causal top-left --window 31,0 --shape 1,1,1,4096,4096,64
  attn explain --score alibi.wgsl --table slopes=0.25 --svg alibi.svg

A mask is drawn with rows down and keys across, beside its tiles: kernels skip those that show nothing, and test no \
pair of those that show all. docs/gallery.md has pictures of the masks and scores that papers use.";

/// Error bound. Scores are sums of at most 8 products of numbers up to 8, so that f32 errs by at most
/// 8 * 8 * 8 * 8 * epsilon / 2; weights and outputs err by less.
const MOST_DIFFERENCE: f64 = 4096.0 * f32::EPSILON as f64 / 2.0;

/// Arguments of `attn explain`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Sentence to explain. All but this one get made-up embeddings, which show the arithmetic and mean nothing
    /// [default: She wants to deadlift heavy weights]
    sentence: Option<String>,
    /// Word whose row is followed [default: the longest]
    #[arg(long, value_name = "WORD")]
    focus: Option<String>,
    /// Show the heads of a model's layer instead; weights named as in Hugging Face BERT or PyTorch, or wq, wk, wv, wo
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "sentence")]
    model: Option<PathBuf>,
    /// Layer of the model, from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "model")]
    layer: usize,
    /// Number of heads, if the file does not say
    #[arg(long, value_name = "N", requires = "model")]
    num_heads: Option<usize>,
    /// Input of the layer, float32 [tokens, embed_dim] [default: the file's tensor `hidden`]
    #[arg(long, value_name = "H.npy", requires = "model")]
    hidden: Option<PathBuf>,
    /// Labels of the tokens, one for each row of the input: words, or a text file with a label per line
    #[arg(long, value_name = "TEXT|FILE", requires = "model")]
    tokens: Option<String>,
    /// Also write a picture: a heat map of the whole and of each head, or the mask and its tiles
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    mask: MaskArgs,
    #[command(flatten)]
    backend: BackendArg,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Result of attention over some number of heads; `output` is [tokens, width], heads side by side.
struct Attended {
    scale: f32,
    /// [heads, tokens, tokens].
    scores: Vec<f32>,
    /// [heads, tokens, tokens].
    weights: Vec<f32>,
    output: Vec<f32>,
}

/// Results to show.
struct Walkthrough {
    /// One head over the whole width, with scale 1.
    unscaled: Attended,
    /// One head over the whole width.
    scaled: Attended,
    heads: Attended,
    layer_output: Vec<f32>,
    /// Largest difference of any attention result from the oracle.
    difference: f64,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    if let Some(path) = &args.svg {
        check_output(path, &["svg"])?;
        keep_apart(&[path], args.model.iter().chain(&args.hidden).map(PathBuf::as_path))?;
    }
    if let Some(path) = &args.model {
        if args.mask.is_given() {
            return Err(Failure::at("--model", "has no masks: leave it out, or --visible and --score"));
        }
        return model::run(args, path, terminal);
    }
    if args.mask.is_given() {
        let others = [("--focus", args.focus.is_some()), ("a sentence", args.sentence.is_some())];
        return match others.into_iter().find(|other| other.1) {
            Some((other, _)) => Err(Failure::at(other, "is for attention step by step, not for a mask: leave it out")),
            None => mask::run(args, terminal),
        };
    }
    if let Some(option) = args.mask.other_option() {
        let why = "is for a mask or a change of scores: give --visible, --score or a built-in one such as --causal top-left";
        return Err(Failure::at(option, why));
    }
    let example = Example::new(args.sentence.as_deref().unwrap_or(SENTENCE))?;
    let focus = example.focus(args.focus.as_deref())?;
    let engine = backend::open(&args.backend.backend)?;
    let steps = compute(&engine, &example)?;
    write_picture(args, || picture(&example, &steps, &engine))?;
    match args.json {
        true => Ok(terminal.json(&as_json(&example, &steps, &engine, focus), true)?),
        false => tell(terminal, &example, &steps, &engine, focus),
    }
}

fn write_picture(args: &Args, picture: impl FnOnce() -> String) -> Result<(), Failure> {
    if let Some(path) = &args.svg {
        write_file(path, picture().as_bytes())?;
        note(format_args!("wrote {}", path.display()));
    }
    Ok(())
}

/// Prints the worked example in a few lines, for the tour.
pub(crate) fn brief(terminal: &mut Terminal, engine: &Engine) -> Result<(), Failure> {
    let example = Example::new(SENTENCE)?;
    let focus = example.focus(None)?;
    let steps = compute(engine, &example)?;
    writeln!(terminal, "  Who attends to whom in \"{SENTENCE}\" (each row sums to 1):\n")?;
    heatmap(terminal, &example.tokens, &steps.scaled.weights, [0.0, 1.0], Some(focus))?;
    writeln!(terminal, "\n  computed on {}; largest difference from the f64 oracle {:.0e}", engine.chosen(), steps.difference)?;
    Ok(())
}

fn compute(engine: &Engine, example: &Example) -> Result<Walkthrough, Failure> {
    let mut difference = 0.0f64;
    let mut run = |heads, scale| attend(engine, example, heads, scale, &mut difference);
    let (unscaled, scaled, heads) = (run(1, Some(1.0))?, run(1, None)?, run(example.heads, None)?);
    let layer_output = times(&heads.output, &example.output_weight, example.width);
    Ok(Walkthrough { unscaled, scaled, heads, layer_output, difference })
}

/// Computes one attention on the engine and checks it against the oracle.
fn attend(engine: &Engine, example: &Example, heads: usize, scale: Option<f32>, worst: &mut f64) -> Result<Attended, Failure> {
    let dims = Dims::self_attention(1, heads, example.tokens.len(), example.width / heads);
    let mut problem = Problem::new(dims).stored(DType::F32, Layout::Bshd);
    problem.scale = scale;
    problem.want = Returns { scores: Some(ScoreStage::Raw), weights: true, ..Returns::default() };
    let inputs = Inputs::new(&example.query, &example.key, &example.value);
    let outputs = engine.attention(&problem, &inputs)?;
    let (Some(scores), Some(weights)) = (outputs.scores, outputs.weights) else {
        return Err(Failure::Check(format!("{} returned no scores and weights", engine.chosen())));
    };
    let attended = Attended { scale: problem.effective_scale(), scores, weights, output: outputs.output.into_f32() };

    let oracle = oracle::attention(&problem, &inputs)?;
    // The oracle's output is [heads, tokens, head_dim]; ours has the heads side by side.
    let side_by_side = |at: usize| {
        let (token, head, dim) = (at / example.width, at % example.width / dims.head_dim, at % dims.head_dim);
        oracle.output[(head * dims.seq_len_q + token) * dims.head_dim + dim]
    };
    let pairs = attended.scores.iter().zip(oracle.raw).chain(attended.weights.iter().zip(oracle.weights));
    let pairs = pairs.chain(attended.output.iter().enumerate().map(|(at, x)| (x, side_by_side(at))));
    for (&got, expected) in pairs {
        let difference = (f64::from(got) - expected).abs();
        if difference.is_nan() || difference > MOST_DIFFERENCE {
            return Err(Failure::Check(format!("{} computed {got} where the oracle has {expected}", engine.chosen())));
        }
        *worst = worst.max(difference);
    }
    Ok(attended)
}

fn tell(terminal: &mut Terminal, example: &Example, steps: &Walkthrough, engine: &Engine, focus: usize) -> Result<(), Failure> {
    let (tokens, width) = (&example.tokens, example.width);
    let count = tokens.len();
    let row = |values: &[f32]| row_text(&values[focus * count..][..count]);
    let word = &tokens[focus];
    let title = terminal.bold(&format!("\"{}\"", example.sentence));
    writeln!(terminal, "{title}\ncomputed on {} ({})", engine.chosen(), engine.why())?;

    heading(terminal, "1. Embeddings X: a row for each token")?;
    writeln!(terminal, "   {}", example.origin.replace(". ", ".\n   "))?;
    for omitted in &example.omitted {
        writeln!(terminal, "   \"{omitted}\" has no embedding in this example and is left out.")?;
    }
    figures(terminal, tokens, &example.embeddings, width)?;

    heading(terminal, "2. Queries, keys and values: Q = X·W_Q, K = X·W_K, V = X·W_V")?;
    if example.worked {
        writeln!(terminal, "   The weights are the identity, so Q = K = V = X.")?;
    } else {
        let values = [&example.query, &example.key, &example.value];
        for (values, purpose) in values.into_iter().zip(["Q: what each token looks for", "K: what finds it", "V: what it contributes"]) {
            writeln!(terminal, "   {purpose}")?;
            figures(terminal, tokens, values, width)?;
        }
    }

    heading(terminal, "3. Scores: Q·Kᵀ, how well each query (row) matches each key (column)")?;
    let range = |values: &[f32]| values.iter().fold([f32::MAX, f32::MIN], |[low, high], &x| [low.min(x), high.max(x)]);
    heatmap(terminal, tokens, &steps.unscaled.scores, range(&steps.unscaled.scores), Some(focus))?;
    writeln!(terminal, "   the row of \"{word}\": {}", row(&steps.unscaled.scores))?;

    heading(terminal, "4. Scaled: divided by the square root of the width of a head, so that wide heads do not sharpen softmax")?;
    writeln!(terminal, "   1/sqrt({width}) = {:.4}; the row of \"{word}\": {}", steps.scaled.scale, row(&steps.scaled.scores))?;

    heading(terminal, "5. Softmax: exp of each score over the sum of its row; weights that sum to 1")?;
    heatmap(terminal, tokens, &steps.scaled.weights, [0.0, 1.0], Some(focus))?;
    writeln!(terminal, "   the row of \"{word}\": {}", row(&steps.scaled.weights))?;
    writeln!(terminal, "   without the scale:  {} (sharper)", row(&steps.unscaled.weights))?;
    if example.worked {
        writeln!(terminal, "   A popular text prints [0.04, 0.04, 0.66, 0.04, 0.22] for the row of \"deadlift\". No scale gives that.")?;
    }

    heading(terminal, "6. Weighted sum: each token's output is the values, weighted by its row")?;
    let output = &steps.scaled.output[focus * width..][..width];
    if count <= 8 {
        let weights = &steps.scaled.weights[focus * count..][..count];
        let terms: Vec<String> = weights.iter().zip(tokens).map(|(weight, token)| format!("{weight:.4}·V({token})")).collect();
        writeln!(terminal, "   {word} = {}", terms.join(" + "))?;
    }
    writeln!(terminal, "   {word} = {}", row_text(output))?;
    figures(terminal, tokens, &steps.scaled.output, width)?;

    let (heads, head_dim) = (example.heads, width / example.heads);
    heading(terminal, &format!("7. Heads: the {width} columns in {heads} heads of {head_dim}, each with its own scores and softmax"))?;
    for (head, weights) in steps.heads.weights.chunks(count * count).enumerate() {
        let from = head * head_dim;
        writeln!(terminal, "   head {}: columns {} to {}", head + 1, from + 1, from + head_dim)?;
        heatmap(terminal, tokens, weights, [0.0, 1.0], Some(focus))?;
    }

    heading(terminal, "8. W_O: the heads side by side, times W_O, are the layer's output")?;
    if example.worked {
        writeln!(terminal, "   W_O is the identity: the output is the heads side by side.")?;
    }
    figures(terminal, tokens, &steps.layer_output, width)?;
    let difference = steps.difference;
    writeln!(terminal, "\nEvery score, weight and output was checked against the f64 oracle: largest difference {difference:.0e}.")?;
    Ok(())
}

fn heading(terminal: &mut Terminal, text: &str) -> Result<(), Failure> {
    let text = terminal.bold(text);
    writeln!(terminal, "\n{text}")?;
    Ok(())
}

fn as_json(example: &Example, steps: &Walkthrough, engine: &Engine, focus: usize) -> Value {
    let (width, count, heads) = (example.width, example.tokens.len(), example.heads);
    let row = |values: &[f32]| values[focus * count..][..count].iter().map(|&x| number(x)).collect::<Vec<_>>();
    let head = |at: usize| {
        let part = |values: &[f32]| matrix(&values[at * count * count..][..count * count], count);
        json!({ "scores": part(&steps.heads.scores), "weights": part(&steps.heads.weights) })
    };
    let (unscaled, scaled) = (&steps.unscaled, &steps.scaled);
    json!({
        "sentence": example.sentence, "tokens": example.tokens, "without_embedding": example.omitted, "origin": example.origin,
        "backend": engine.chosen(), "why": engine.why(),
        "embeddings": matrix(&example.embeddings, width), "query": matrix(&example.query, width), "key": matrix(&example.key, width),
        "value": matrix(&example.value, width),
        "scores_unscaled": matrix(&unscaled.scores, count), "weights_unscaled": matrix(&unscaled.weights, count),
        "scale": number(scaled.scale), "scores": matrix(&scaled.scores, count), "weights": matrix(&scaled.weights, count),
        "output": matrix(&scaled.output, width),
        "heads": (0..heads).map(head).collect::<Vec<_>>(), "heads_output": matrix(&steps.heads.output, width),
        "layer_output": matrix(&steps.layer_output, width),
        "focus": {
            "token": example.tokens[focus], "scores_unscaled": row(&unscaled.scores), "weights_unscaled": row(&unscaled.weights),
            "scores": row(&scaled.scores), "weights": row(&scaled.weights),
        },
        "oracle_largest_difference": steps.difference,
    })
}

/// Converts a row-major matrix to a JSON array of rows.
fn matrix(values: &[f32], columns: usize) -> Value {
    values.chunks(columns.max(1)).map(|row| row.iter().map(|&x| number(x)).collect::<Value>()).collect()
}

fn picture(example: &Example, steps: &Walkthrough, engine: &Engine) -> String {
    let origin = if example.worked { example.origin } else { "Made-up embeddings: they show the arithmetic and mean nothing." };
    svg::draw(&Picture {
        title: &example.sentence,
        footer: &format!("{origin} Computed on {}.", engine.chosen()),
        tokens: &example.tokens,
        whole: (&format!("one head of width {}", example.width), &steps.scaled.weights),
        heads: &steps.heads.weights,
    })
}
