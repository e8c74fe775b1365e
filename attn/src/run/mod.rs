//! `attn run`: attention on arrays from files.

mod options;
mod request;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use serde_json::json;
use wgpu_attention::{
    Alibi, Alignment, BackwardInputs, DType, Engine, HostVec, Layout, Progress, Returns, ScoreStage, SummedRows, WantGradients,
};

use crate::arrays::{TensorFile, check_output, keep_apart, read_npy, write_tensor};
use crate::backend::{self, BackendArg, one_of};
use crate::failure::Failure;
use crate::plan_args::summed_rows;
use crate::terminal::{ProgressBar, Terminal, note};
use crate::user_terms::TermArgs;
use options::{ARRAYS, ArrayArgs, by_option};
use request::{Arrays, Request};

pub(crate) use options::BuiltInArgs;

const EXAMPLES: &str = "\
Examples:
  attn run --query q.npy --key k.npy --value v.npy --out o.npy
  attn run --query q.npy --key k.npy --value v.npy --causal top-left --out o.npy
  attn run --query q.npy --key k.npy --value v.npy --kv-lengths lengths.npy --out o.npy
  attn run --input qkv.safetensors --layout bshd --causal bottom-right --window 128,0 --out o.npy
  attn run --input qkv.safetensors --out o.npy --lse lse.npy --weights w.npy
  attn run --input qkv.safetensors --visible 'at.key <= at.position' --out o.npy
  attn run --input qkv.safetensors --score 'x - 0.1 * f32(abs(at.row - at.key))' --out o.npy
  attn run --input qkv.safetensors --score alibi.wgsl --table slopes=s.npy --out o.npy
  attn run --input qkv.safetensors --out o.npy --d-output do.npy --gradients gradients

PyTorch's is_causal is --causal top-left; FlashAttention and decoding are --causal bottom-right.
In Python: np.save(\"q.npy\", q.astype(np.float32)); o = np.load(\"o.npy\")

The batch axis may be left out if there is only one item. Key/value heads are shared by groups of query heads. The \
output has the query's rank and type.";

/// Arguments of `attn run`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    arrays: ArrayArgs,
    #[command(flatten)]
    built_ins: BuiltInArgs,
    #[command(flatten, next_help_heading = "Terms in WGSL")]
    terms: TermArgs,
    /// Positions of the rows for terms that count from them, without --causal; needed if the lengths differ
    #[arg(long, value_name = "top-left|bottom-right|OFFSET", value_parser = Alignment::from_str, allow_negative_numbers = true, conflicts_with = "causal")]
    align: Option<Alignment>,
    /// Form of --alibi: signed is slope * (key - position), symmetric -slope * |key - position| [default: symmetric]
    #[arg(long, value_name = "FORM", value_parser = alibi_form)]
    alibi_form: Option<Alibi>,
    /// Factor on the dot products [default: 1/sqrt(head_dim)]
    #[arg(long, allow_hyphen_values = true)]
    scale: Option<f32>,
    /// Probability, from 0 to below 1, with which a weight is dropped
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    dropout: Option<f32>,
    /// Let weights be rounded to bf16 before they are multiplied by bf16 values, as PyTorch does: an error of up to 2^-8 of
    /// each weight
    #[arg(long)]
    bf16_weights: bool,
    /// Rows and keys of a tile of --block-list
    #[arg(long, value_name = "ROWS,KEYS", value_parser = tile)]
    tile: Option<[u32; 2]>,
    /// Seed of --dropout
    #[arg(long, value_name = "N", default_value_t = 0, requires = "dropout")]
    dropout_seed: u64,
    /// Offset of --dropout, another one for every layer of every step
    #[arg(long, value_name = "N", default_value_t = 0, requires = "dropout")]
    dropout_offset: u32,
    /// Tensors in one file, named as the arrays above with _ for -: query, key, value, kv_lengths, ...
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Arrays")]
    input: Option<PathBuf>,
    /// Order of the axes: bhsd is [batch, heads, seq, dim], bshd is [batch, seq, heads, dim]
    #[arg(long, value_parser = layout, default_value = "bhsd", help_heading = "Arrays")]
    layout: Layout,
    /// Output: .npy, or .safetensors (tensor `output`)
    #[arg(long, value_name = "O.npy", help_heading = "Results")]
    out: PathBuf,
    /// Also write the log of each row's softmax denominator, float32 [batch, num_heads, seq_len_q]
    #[arg(long, value_name = "F.npy", help_heading = "Results")]
    lse: Option<PathBuf>,
    /// Also write the softmax statistics of each row, its max m and its sum l of exp(score - m), float32
    /// [batch, num_heads, seq_len_q, 2]
    #[arg(long, value_name = "F.npy", help_heading = "Results")]
    stats: Option<PathBuf>,
    /// Also write the scores, float32 [batch, num_heads, seq_len_q, seq_len_kv]
    #[arg(long, value_name = "F.npy", help_heading = "Results")]
    scores: Option<PathBuf>,
    /// Scores to write: raw is scale * q.k, capped is after --softcap, masked is after the biases too, -inf where masked
    #[arg(long, value_name = "STAGE", default_value = "masked", value_parser = stage, requires = "scores", help_heading = "Results")]
    scores_at: ScoreStage,
    /// Also write the softmax weights, float32 [batch, num_heads, seq_len_q, seq_len_kv]
    #[arg(long, value_name = "F.npy", help_heading = "Results")]
    weights: Option<PathBuf>,
    /// Also write the sum of each key's weights over rows and the heads that share the key, float32
    /// [batch, num_kv_heads, seq_len_kv]
    #[arg(long, value_name = "F.npy", help_heading = "Results")]
    key_sums: Option<PathBuf>,
    /// Rows whose weights are summed: all, or the last N of each item
    #[arg(long, value_name = "all|N", default_value = "all", value_parser = summed_rows, requires = "key_sums", help_heading = "Results")]
    summed_rows: SummedRows,
    /// Also write d_query.npy, d_key.npy, d_value.npy to this folder, and d_bias.npy, d_relative_bias.npy, d_sinks.npy
    /// if the problem has them, and d_table_NAME.npy of each --table with an owner; bfloat16 as float32
    #[arg(long, value_name = "DIR", help_heading = "Results")]
    gradients: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Computation")]
    backend: BackendArg,
    /// Print a summary as one JSON object
    #[arg(long)]
    json: bool,
}

fn layout(text: &str) -> Result<Layout, String> {
    one_of(text, &[("bhsd", Layout::Bhsd), ("bshd", Layout::Bshd)])
}

fn alibi_form(text: &str) -> Result<Alibi, String> {
    one_of(text, &[("signed", Alibi::Signed), ("symmetric", Alibi::Symmetric)])
}

fn tile(text: &str) -> Result<[u32; 2], String> {
    let sizes: Vec<u32> = text.split(',').filter_map(|size| size.trim().parse().ok()).filter(|&size| size > 0).collect();
    sizes.try_into().map_err(|_| format!("`{text}` is not two sizes from 1 on, ROWS,KEYS"))
}

fn stage(text: &str) -> Result<ScoreStage, String> {
    one_of(text, &[("raw", ScoreStage::Raw), ("capped", ScoreStage::Capped), ("masked", ScoreStage::Masked)])
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let mut request = request::read(args, read(args)?)?;
    request.problem.want = Returns {
        lse: args.lse.is_some(),
        stats: args.stats.is_some() || args.gradients.is_some(),
        scores: args.scores.as_ref().map(|_| args.scores_at),
        weights: args.weights.is_some(),
        key_sums: args.key_sums.as_ref().map(|_| args.summed_rows),
    };
    let targets = targets(args, &request)?;
    let engine = backend::open(&args.backend.backend)?;
    let started = Instant::now();
    let results = compute(&engine, &request)?;
    let ms = started.elapsed().as_secs_f64() * 1e3;
    if let Some(folder) = args.gradients.as_ref().filter(|folder| !folder.is_dir()) {
        std::fs::create_dir(folder).map_err(|error| Failure::at(folder.display(), error))?;
    }
    let mut written = Vec::new();
    for (name, value) in results {
        if let (Some(path), Some(value)) = (targets.get(&name), value) {
            write_tensor(path, &name, &request.shapes[&name], &value)?;
            written.push(path.display().to_string());
        }
    }
    let (shape, dtype) = (&request.shapes["output"], request.problem.output.dtype);
    note(format_args!("{} ({}): {shape:?} {dtype} in {ms:.2} ms, written to {}", engine.chosen(), engine.why(), written.join(", ")));
    if args.json {
        let report = json!({
            "adapter": engine.chosen(), "why": engine.why(), "ms": ms, "shape": shape,
            "dtype": dtype.name(), "out": args.out.display().to_string(), "written": written,
        });
        terminal.json(&report, false)?;
    }
    Ok(())
}

/// Reads the arrays. Those of query, key and value are there.
fn read(args: &Args) -> Result<Arrays, Failure> {
    let mut arrays = Arrays::new();
    for (&name, path) in &args.arrays.files {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            return Err(Failure::at(format!("--{name} {}", path.display()), "is not .npy; give a .safetensors file to --input"));
        }
        arrays.insert(name, read_npy(path)?);
    }
    let Some(path) = &args.input else { return Ok(arrays) };
    if path.extension().is_some_and(|extension| extension == "npy") {
        let why = "holds one array; give it to --query, --key or --value. --input takes a .safetensors file";
        return Err(Failure::at(format!("--input {}", path.display()), why));
    }
    let file = TensorFile::read(path)?;
    let mut unread = file.names.clone();
    for (name, ..) in ARRAYS {
        let tensor = name.replace('-', "_");
        // Gradients that nobody asked for.
        if name.starts_with("d-") && args.gradients.is_none() {
            continue;
        }
        match (file.tensor(&tensor)?, arrays.get(name)) {
            (Some(array), Some(given)) => return Err(Failure::input(format!("{} and {} both hold {name}", array.source, given.source))),
            (Some(array), None) => _ = arrays.insert(name, array),
            (None, None) if ["query", "key", "value"].contains(&name) => return Err(file.missing(&tensor, "")),
            (None, _) => continue,
        }
        unread.retain(|other| *other != tensor);
    }
    if !unread.is_empty() {
        note(format_args!("{}: not read: {}", path.display(), unread.join(", ")));
    }
    Ok(arrays)
}

/// Returns where the results go, by name, checked before anything is computed.
fn targets(args: &Args, request: &Request) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let files =
        [("lse", &args.lse), ("stats", &args.stats), ("scores", &args.scores), ("weights", &args.weights), ("key_sums", &args.key_sums)];
    let files = files.into_iter().filter_map(|(name, path)| Some((name, path.clone()?)));
    let files = files.chain([("output", args.out.clone())]);
    let mut targets: BTreeMap<_, _> = files.map(|(name, path)| (name.to_string(), path)).collect();
    for path in targets.values() {
        check_output(path, &["npy", "safetensors"])?;
    }
    if request.problem.output.dtype == DType::BF16 && args.out.extension().is_some_and(|extension| extension == "npy") {
        return Err(Failure::at(args.out.display(), "NumPy has no bfloat16: write to a .safetensors file"));
    }
    if let Some(folder) = &args.gradients {
        if request.d_output.is_none() {
            return Err(Failure::at("--gradients", "the gradient of the output is missing: give --d-output"));
        }
        match folder.is_dir() {
            false if folder.exists() => return Err(Failure::at(folder.display(), "is not a folder")),
            false => check_output(folder, &[])?,
            true => {}
        }
        let names = request.shapes.keys().filter(|name| name.starts_with("d_"));
        targets.extend(names.map(|name| (name.clone(), folder.join(format!("{name}.npy")))));
    }
    let outputs: Vec<&Path> = targets.values().map(PathBuf::as_path).collect();
    keep_apart(&outputs, args.arrays.files.values().chain(&args.input).map(PathBuf::as_path))?;
    Ok(targets)
}

/// Computes the results, by name.
fn compute(engine: &Engine, request: &Request) -> Result<Vec<(String, Option<HostVec>)>, Failure> {
    let Request { problem, data, d_output, d_lse, .. } = request;
    let inputs = data.inputs();
    let mut progress = ProgressBar::new(format!("attention on {}", engine.chosen()));
    let mut report = |done| {
        progress.report(done);
        ControlFlow::Continue(())
    };
    let outputs = engine.attention_controlled(problem, &inputs, &mut Progress::new(&mut report)).map_err(by_option)?;
    let (mut results, mut tables) = (Vec::new(), Vec::new());
    if let Some(d_output) = d_output {
        let (stats, d_lse) = (outputs.stats.as_deref(), d_lse.as_deref());
        let backward = BackwardInputs { stats, d_lse, ..BackwardInputs::new(&outputs.output, d_output) };
        let want = WantGradients { through_lse: d_lse.is_some(), ..WantGradients::all(problem) };
        let gradients = engine.backward_controlled(problem, &inputs, &backward, &want, &mut Progress::new(&mut report));
        let gradients = gradients.map_err(|error| request.terms.explain(error))?;
        results.extend([("d_query", gradients.query), ("d_key", gradients.key), ("d_value", gradients.value)]);
        let others = [("d_bias", gradients.bias), ("d_relative_bias", gradients.relative_bias), ("d_sinks", gradients.sinks)];
        results.extend(others.map(|(name, values)| (name, values.map(HostVec::F32))));
        for (name, _) in request.terms.gradients() {
            let all = gradients.term_tables.as_deref().unwrap_or_default();
            tables.push((format!("d_table_{name}"), Some(HostVec::F32(problem.d_term_table(all, name)?.to_vec()))));
        }
    }
    let rows = outputs.stats.map(|stats| stats.into_iter().flatten().collect());
    let others =
        [("lse", outputs.lse), ("stats", rows), ("scores", outputs.scores), ("weights", outputs.weights), ("key_sums", outputs.key_sums)];
    results.insert(0, ("output", Some(outputs.output)));
    results.extend(others.map(|(name, values)| (name, values.map(HostVec::F32))));
    Ok(results.into_iter().map(|(name, value)| (name.to_string(), value)).chain(tables).collect())
}
