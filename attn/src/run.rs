//! `attn run`: attention on arrays from files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use serde_json::json;
use wgpu_attention::{
    Algorithm, Alignment, Backend, BroadcastShape, DType, Dims, Engine, HostVec, Inputs, Layout, Outputs, Problem, Progress, Returns,
    TensorSpec,
};

use crate::arrays::{Array, Data, Target, read_npy, read_safetensors};
use crate::backend;
use crate::failure::Failure;
use crate::terminal::{ProgressBar, Terminal, note};
use crate::terms::Terms;

const EXAMPLES: &str = "\
Examples:
  attn run --query q.npy --key k.npy --value v.npy --out o.npy
  attn run --query q.npy --key k.npy --value v.npy --causal top-left --out o.npy       PyTorch's is_causal
  attn run --query q.npy --key k.npy --value v.npy --causal bottom-right --out o.npy   FlashAttention, decoding
  attn run --input qkv.safetensors --layout bshd --window 128,0 --causal bottom-right --out o.safetensors
  attn run --input qkv.safetensors --out o.npy --lse lse.npy --weights w.npy

In Python: np.save(\"q.npy\", q.astype(np.float32)); o = np.load(\"o.npy\")

Shapes: query [batch, num_heads, seq_len_q, head_dim], key [batch, num_kv_heads, seq_len_kv, head_dim],
value [batch, num_kv_heads, seq_len_kv, head_dim_v]; all three without the batch axis if there is only one item.
Fewer key/value heads than query heads are shared by groups of query heads. The output has the query's rank and type.";

/// Arguments of `attn run`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Query array, float32 or float16
    #[arg(long, value_name = "Q.npy", requires_all = ["key", "value"], required_unless_present = "input", conflicts_with = "input")]
    query: Option<PathBuf>,
    /// Key array
    #[arg(long, value_name = "K.npy", requires = "query")]
    key: Option<PathBuf>,
    /// Value array
    #[arg(long, value_name = "V.npy", requires = "query")]
    value: Option<PathBuf>,
    /// One file with the tensors `query`, `key` and `value`, optionally `mask` and `bias`; F32, F16 or BF16
    #[arg(long, value_name = "FILE.safetensors")]
    input: Option<PathBuf>,
    #[command(flatten)]
    terms: Terms,
    /// Positions of the rows for terms that count from them, without --causal; needed if the lengths differ
    #[arg(long, value_name = "top-left|bottom-right|OFFSET", value_parser = Alignment::from_str, allow_negative_numbers = true, conflicts_with = "causal")]
    align: Option<Alignment>,
    /// Factor on the dot products [default: 1/sqrt(head_dim)]
    #[arg(long, allow_hyphen_values = true)]
    scale: Option<f32>,
    /// Bool array, true = may attend; broadcasts from the right to [batch, num_heads, seq_len_q, seq_len_kv]
    #[arg(long, value_name = "M.npy")]
    mask: Option<PathBuf>,
    /// Float array added to the scores, -inf masks; broadcasts like --mask
    #[arg(long, value_name = "B.npy")]
    bias: Option<PathBuf>,
    /// Order of the axes: [batch, heads, seq, dim] or [batch, seq, heads, dim]
    #[arg(long, value_enum, default_value_t = Axes::Bhsd)]
    layout: Axes,
    /// Output file: .npy, or .safetensors (tensor `output`)
    #[arg(long, value_name = "O.npy")]
    out: PathBuf,
    /// Also write the natural logarithm of each row's softmax denominator, float32 [batch, num_heads, seq_len_q]
    #[arg(long, value_name = "F.npy")]
    lse: Option<PathBuf>,
    /// Also write the softmax weights, float32 [batch, num_heads, seq_len_q, seq_len_kv]
    #[arg(long, value_name = "F.npy")]
    weights: Option<PathBuf>,
    #[arg(long, value_name = "BACKEND", default_value = "auto", value_parser = backend::parse, help = backend::BACKEND_HELP)]
    backend: Backend,
    /// Print a summary as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Axes {
    Bhsd,
    Bshd,
}

impl Axes {
    fn layout(self) -> Layout {
        match self {
            Self::Bhsd => Layout::Bhsd,
            Self::Bshd => Layout::Bshd,
        }
    }

    /// Converts a shape from the file's order to [batch, heads, seq, dim], or back: it is its own inverse.
    fn swap(self, [batch, first, second, dim]: [usize; 4]) -> [usize; 4] {
        match self {
            Self::Bhsd => [batch, first, second, dim],
            Self::Bshd => [batch, second, first, dim],
        }
    }
}

/// Arrays read from the files.
struct Files {
    query: Array,
    key: Array,
    value: Array,
    mask: Option<Array>,
    bias: Option<Array>,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let files = read(args)?;
    let (mut problem, shape_out) = problem(args, &files)?;
    let numbers = |array: &Array| match &array.data {
        Data::Numbers(numbers) => Ok(numbers.clone()),
        Data::Bools(_) => Err(Failure::input(format!("{}: is bool; float32 or float16 is needed", array.source))),
    };
    let (query, key, value) = (numbers(&files.query)?, numbers(&files.key)?, numbers(&files.value)?);
    problem.query.dtype = query.as_slice().dtype();
    problem.key.dtype = key.as_slice().dtype();
    problem.value.dtype = value.as_slice().dtype();
    problem.output = problem.query;
    let target = |path: &Option<PathBuf>| path.as_deref().map(|path| Target::new(path, DType::F32)).transpose();
    let (out, lse, weights) = (Target::new(&args.out, problem.output.dtype)?, target(&args.lse)?, target(&args.weights)?);
    problem.want = Returns { lse: lse.is_some(), weights: weights.is_some(), ..Returns::default() };

    let mask = match files.mask.as_ref().map(|array| (&array.data, array)) {
        None => Vec::new(),
        Some((Data::Bools(mask), _)) => mask.clone(),
        Some((Data::Numbers(numbers), array)) => {
            let dtype = numbers.as_slice().dtype();
            return Err(Failure::input(format!(
                "{}: is {dtype}; a mask is bool, true = may attend; numbers to add go to --bias",
                array.source
            )));
        }
    };
    let bias = files.bias.as_ref().map(numbers).transpose()?.map(HostVec::into_f32).unwrap_or_default();
    let inputs = Inputs { mask: &mask, bias: &bias, ..Inputs::new(query.as_slice(), key.as_slice(), value.as_slice()) };
    problem.check()?;

    let engine = backend::open(&args.backend, Algorithm::Auto, false)?;
    let (outputs, ms) = compute(&engine, &problem, &inputs)?;
    let rows = [problem.dims.batch, problem.dims.num_heads, problem.dims.seq_len_q];
    let skip = 4 - shape_out.len();
    out.write("output", &shape_out, &outputs.output)?;
    if let (Some(target), Some(values)) = (&lse, outputs.lse) {
        target.write("lse", &rows[skip..], &HostVec::F32(values))?;
    }
    if let (Some(target), Some(values)) = (&weights, outputs.weights) {
        target.write("weights", &problem.dims.scores_shape()[skip..], &HostVec::F32(values))?;
    }

    note(format_args!(
        "{} ({}): {shape_out:?} {} in {ms:.2} ms, written to {}",
        engine.chosen(),
        engine.why(),
        problem.output.dtype,
        args.out.display()
    ));
    if args.json {
        let report = json!({
            "adapter": engine.chosen(), "why": engine.why(), "ms": ms, "shape": shape_out,
            "dtype": problem.output.dtype.name(), "out": args.out.display().to_string(),
        });
        terminal.json(&report, false)?;
    }
    Ok(())
}

fn compute(engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<(Outputs, f64), Failure> {
    let mut progress = ProgressBar::new(format!("attention on {}", engine.chosen()));
    let mut report = |done| {
        progress.report(done);
        ControlFlow::Continue(())
    };
    let started = Instant::now();
    let outputs = engine.attention_controlled(problem, inputs, &mut Progress::new(&mut report))?;
    Ok((outputs, started.elapsed().as_secs_f64() * 1e3))
}

fn read(args: &Args) -> Result<Files, Failure> {
    let optional = |path: &Option<PathBuf>| path.as_deref().map(read_npy).transpose();
    let (mask, bias) = (optional(&args.mask)?, optional(&args.bias)?);
    if let Some(input) = &args.input {
        let mut found = read_safetensors(input, &["query", "key", "value", "mask", "bias"])?;
        let mut one_of = |name, given: Option<Array>| match (found.remove(name), given) {
            (Some(_), Some(given)) => Err(Failure::input(format!("{} and {} both hold a {name}", input.display(), given.source))),
            (found, given) => Ok(found.or(given)),
        };
        let (mask, bias) = (one_of("mask", mask)?, one_of("bias", bias)?);
        let mut needed = |name| found.remove(name).ok_or_else(|| Failure::input(format!("{}: has no tensor `{name}`", input.display())));
        return Ok(Files { query: needed("query")?, key: needed("key")?, value: needed("value")?, mask, bias });
    }
    let needed = |path: &Option<PathBuf>, name| {
        let path: &Path = path.as_deref().ok_or_else(|| Failure::input(format!("--{name} is missing")))?;
        read_npy(path)
    };
    Ok(Files { query: needed(&args.query, "query")?, key: needed(&args.key, "key")?, value: needed(&args.value, "value")?, mask, bias })
}

/// Returns the problem that the files describe and the shape of its output file. Errors name the file and the axis.
fn problem(args: &Args, files: &Files) -> Result<(Problem, Vec<usize>), Failure> {
    let rank = files.query.shape.len();
    let mut shapes = [[0; 4]; 3];
    for (array, shape) in [&files.query, &files.key, &files.value].into_iter().zip(&mut shapes) {
        *shape = args.layout.swap(four_axes(array, args.layout)?);
        if array.shape.len() != rank {
            return Err(Failure::input(format!("{}: has {} axes, but {} has {rank}", array.source, array.shape.len(), files.query.source)));
        }
    }
    let [query, key, value] = shapes;
    let same = |axis: usize, array: &Array, found: [usize; 4], other: &Array, expected: [usize; 4]| {
        if found[axis] == expected[axis] {
            return Ok(());
        }
        let place = axis_name(axis, rank, args.layout);
        Err(Failure::input(format!("{}: {place} is {}, but {} has {} there", array.source, found[axis], other.source, expected[axis])))
    };
    same(0, &files.key, key, &files.query, query)?;
    same(3, &files.key, key, &files.query, query)?;
    for axis in 0..3 {
        same(axis, &files.value, value, &files.key, key)?;
    }
    if !query[1].is_multiple_of(key[1]) {
        return Err(Failure::input(format!(
            "{}: has {} heads, not a multiple of the {} heads of {}",
            files.query.source, query[1], key[1], files.key.source
        )));
    }
    let dims = Dims {
        batch: query[0],
        num_heads: query[1],
        num_kv_heads: key[1],
        seq_len_q: query[2],
        seq_len_kv: key[2],
        head_dim: query[3],
        head_dim_v: value[3],
    };
    let mut problem = Problem::new(dims);
    let spec = TensorSpec::new(DType::F32, args.layout.layout());
    (problem.query, problem.key, problem.value, problem.output) = (spec, spec, spec, spec);
    problem.scale = args.scale;
    args.terms.add_to(&mut problem)?;
    problem.visibility.alignment = problem.visibility.alignment.or(args.align);
    match (problem.uses_position(), problem.visibility.alignment) {
        (true, None) if dims.seq_len_q == dims.seq_len_kv => problem.visibility.alignment = Some(Alignment::TopLeft),
        (true, None) => {
            return Err(Failure::input(format!(
                "--{}: {} queries and {} keys; say with --causal or --align where the rows stand",
                problem.terms_text()[0].split('=').next().unwrap_or_default(),
                dims.seq_len_q,
                dims.seq_len_kv
            )));
        }
        (false, Some(_)) => return Err(Failure::input("--align: nothing that was asked for counts from the rows' positions")),
        _ => {}
    }
    problem.visibility.mask = files.mask.as_ref().map(|array| broadcast(array, &dims)).transpose()?;
    problem.bias = files.bias.as_ref().map(|array| broadcast(array, &dims)).transpose()?;
    let shape = args.layout.swap([dims.batch, dims.num_heads, dims.seq_len_q, dims.head_dim_v]);
    Ok((problem, shape[4 - rank..].to_vec()))
}

/// Returns the shape in the order of the file, with a batch axis.
fn four_axes(array: &Array, axes: Axes) -> Result<[usize; 4], Failure> {
    let shape = match array.shape[..] {
        [first, second, dim] => [1, first, second, dim],
        [batch, first, second, dim] => [batch, first, second, dim],
        _ => {
            let (three, four) = match axes {
                Axes::Bhsd => ("[heads, seq, dim]", "[batch, heads, seq, dim]"),
                Axes::Bshd => ("[seq, heads, dim]", "[batch, seq, heads, dim]"),
            };
            return Err(Failure::input(format!("{}: has the shape {:?}; {four} is needed, or {three}", array.source, array.shape)));
        }
    };
    let in_order = axes.swap(shape);
    // Only a sequence may be empty.
    match [0, 1, 3].into_iter().find(|&axis| in_order[axis] == 0) {
        Some(axis) => Err(Failure::input(format!("{}: {} is 0", array.source, axis_name(axis, array.shape.len(), axes)))),
        None => Ok(shape),
    }
}

/// Describes an axis of [batch, heads, seq, dim] by its place in the file and its name.
fn axis_name(axis: usize, rank: usize, axes: Axes) -> String {
    let mut place = [0; 4];
    place[axis] = 1;
    let place = axes.swap(place).iter().position(|&here| here == 1).unwrap_or(axis);
    let name = ["batch", "heads", "seq", "dim"][axis];
    format!("axis {} ({name})", (place + rank).saturating_sub(4))
}

/// Returns the shape of a mask or a bias; axes missing on the left are 1.
fn broadcast(array: &Array, dims: &Dims) -> Result<BroadcastShape, Failure> {
    let full = dims.scores_shape();
    let mut shape = [1; 4];
    let fits = array.shape.len() <= 4 && {
        shape[4 - array.shape.len()..].copy_from_slice(&array.shape);
        shape.iter().zip(full).all(|(&extent, full)| extent == full || extent == 1)
    };
    if fits {
        return Ok(BroadcastShape(shape));
    }
    Err(Failure::input(format!(
        "{}: shape {:?} does not broadcast to [batch, num_heads, seq_len_q, seq_len_kv] = {full:?}; each axis is full or 1",
        array.source, array.shape
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_named_by_their_place_in_the_file() {
        assert_eq!(axis_name(3, 4, Axes::Bhsd), "axis 3 (dim)");
        assert_eq!(axis_name(1, 4, Axes::Bshd), "axis 2 (heads)");
        assert_eq!(axis_name(1, 3, Axes::Bshd), "axis 1 (heads)");
        assert_eq!(axis_name(2, 3, Axes::Bhsd), "axis 1 (seq)");
    }
}
