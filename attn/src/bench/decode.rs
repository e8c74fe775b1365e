//! `attn bench --decode`: one new token, or some, against caches of many keys.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use wgpu_attention::cache::{LayerShape, Tree};
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::{Alignment, Backend, DType, Dims, Engine, Error, Hadamard, HostSlice, HostVec, Inputs, Layout, PageTable, Problem};

use super::check::{Deviation, draw, stored};
use super::decode_device;
use super::machine::{self, milliseconds};
use crate::backend;
use crate::failure::Failure;
use crate::terminal::{ProgressBar, Terminal, note};

/// Page size of paged caches, in keys.
const PAGE_SIZE: usize = 16;

/// Options that `--decode` and its own options exclude. Where one of them is given, `requires` alone refuses nothing.
const OF_PREFILL: [&str; 12] =
    ["shape", "causal", "term", "score", "visible", "table", "suite", "dtype", "compare", "tuned", "backward", "fused"];

/// Options of `--decode`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Time decoding steps instead: one token against caches on a device or the host, contiguous and in pages of 16
    #[arg(long, conflicts_with_all = OF_PREFILL)]
    pub(super) decode: bool,
    /// Keys in the cache, for example 4096 or 4k (1k is 1024); may be repeated
    #[arg(long, value_name = "KEYS", requires = "decode", conflicts_with_all = OF_PREFILL, value_parser = context, default_values = ["1k", "4k", "16k"])]
    context: Vec<usize>,
    /// Storage type of the cache: f32, f16, bf16, q8 or q4, or that of keys and that of values, as f16:q4; followed by
    /// +hadamard, rotated; may be repeated
    #[arg(long, value_name = "STORAGE", requires = "decode", conflicts_with_all = OF_PREFILL, value_parser = storage, default_values = ["f32", "f16", "q8", "q4"])]
    cache: Vec<Storage>,
    /// Numbers of query heads and of key/value heads
    #[arg(long, value_name = "H:HKV", requires = "decode", conflicts_with_all = OF_PREFILL, default_value = "32:8", value_parser = heads)]
    heads: [usize; 2],
    /// Head dimension
    #[arg(long, value_name = "D", requires = "decode", conflicts_with_all = OF_PREFILL, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..))]
    head_dim: u16,
    /// Sliding window: only the last N keys are visible [default: all]
    #[arg(long, value_name = "N", requires = "decode", conflicts_with_all = OF_PREFILL, value_parser = clap::value_parser!(u32).range(1..))]
    window: Option<u32>,
    /// New tokens of a step, causal, as a draft that is verified
    #[arg(long, value_name = "N", requires = "decode", conflicts_with_all = OF_PREFILL, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    rows: u16,
    /// Time also steps whose new tokens are a tree of drafts, of two guesses after each token
    #[arg(long, requires = "decode", conflicts_with_all = OF_PREFILL)]
    tree: bool,
}

/// Parses a number of keys, `4096` or `4k`.
fn context(text: &str) -> Result<usize, String> {
    let (digits, unit) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1024));
    let keys = digits.parse().ok().and_then(|keys: usize| keys.checked_mul(unit)).filter(|keys| (1..=1 << 27).contains(keys));
    keys.ok_or_else(|| format!("`{text}` is not a number of keys such as 4096 or 4k"))
}

fn heads(text: &str) -> Result<[usize; 2], String> {
    let heads = text.split_once(':').and_then(|(heads, kv)| Some([heads.parse().ok()?, kv.parse().ok()?]));
    let heads = heads.filter(|&[heads, kv]: &[usize; 2]| kv > 0 && heads > 0 && heads.is_multiple_of(kv));
    heads.ok_or_else(|| format!("`{text}` is not H:HKV with H a multiple of HKV"))
}

/// Storage of keys and values.
#[derive(Clone, Copy, Debug)]
struct Storage {
    key: DType,
    value: DType,
    hadamard: bool,
}

/// Parses the storage of keys and values: `q4`, `f16:q4`, `q4+hadamard`.
fn storage(text: &str) -> Result<Storage, Error> {
    let (types, hadamard) = text.strip_suffix("+hadamard").map_or((text, false), |types| (types, true));
    let (key, value) = types.split_once(':').unwrap_or((types, types));
    Ok(Storage { key: key.parse()?, value: value.parse()?, hadamard })
}

/// Data of one step: a full cache whose last tokens are the new ones, and their queries.
pub(super) struct Full {
    pub(super) shape: LayerShape,
    pub(super) num_heads: usize,
    pub(super) keys: usize,
    /// Number of new tokens.
    pub(super) rows: usize,
    pub(super) window: Option<u32>,
    /// Tree of the new tokens, for steps that have one.
    pub(super) tree: Option<Tree>,
    /// `[rows, num_heads, head_dim]`.
    pub(super) query: Vec<f32>,
    /// `[keys, num_kv_heads, head_dim]` in the cache's storage type.
    pub(super) key: HostVec,
    pub(super) value: HostVec,
    /// Keys and values of the new tokens before quantisation or narrowing.
    pub(super) new: [Vec<f32>; 2],
}

/// Kind of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) is_paged: bool,
    pub(super) has_tree: bool,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_paged { "paged" } else { "contiguous" })?;
        f.write_str(if self.has_tree { " tree" } else { "" })
    }
}

impl Full {
    fn new(args: &Args, keys: usize, storage: Storage) -> Result<Self, Failure> {
        let ([num_heads, num_kv_heads], dim) = (args.heads, usize::from(args.head_dim));
        let shape = LayerShape::new(num_kv_heads, dim).stored(storage.key, storage.value).hadamard(storage.hadamard, storage.hadamard);
        let (row, rows) = (num_kv_heads * dim, usize::from(args.rows));
        let parents: Vec<_> = (0..rows).map(|row| row.checked_sub(1).map(|before| before / 2)).collect();
        let tree = args.tree.then(|| Tree::from_parents(&parents)).transpose()?;
        let mut random = fastrand::Rng::with_seed(3);
        let mut some = |len: usize| draw(&mut random, len, format!("--context {keys}"));
        let query = some(rows * num_heads * dim)?;
        let mut full = |dtype| -> Result<(HostVec, Vec<f32>), Failure> {
            let mut elements = some(keys * row)?;
            let last = elements[(keys - rows) * row..].to_vec();
            Hadamard::of(dim).filter(|_| storage.hadamard).into_iter().for_each(|rotation| rotation.rotate(&mut elements));
            Ok((stored(dtype, elements), last))
        };
        let ((key, new_key), (value, new_value)) = (full(shape.key)?, full(shape.value)?);
        Ok(Self { shape, num_heads, keys, rows, window: args.window, tree, query, key, value, new: [new_key, new_value] })
    }

    /// Returns the number of keys visible to a new token, as if none was masked among the new ones.
    fn seen(&self) -> usize {
        self.window.map_or(self.keys, |window| self.keys.min(window as usize))
    }

    /// Returns the bytes of the visible keys and values.
    fn bytes(&self) -> f64 {
        ((self.seen() + self.rows - 1).min(self.keys) * self.shape.token_bytes()) as f64
    }

    fn dims(&self) -> Dims {
        let LayerShape { num_kv_heads, head_dim, head_dim_v, .. } = self.shape;
        Dims { batch: 1, num_heads: self.num_heads, num_kv_heads, seq_len_q: self.rows, seq_len_kv: self.keys, head_dim, head_dim_v }
    }

    /// Applies the window, so that a token sees the last `window` keys, itself included, and the mask of the new tokens.
    pub(super) fn look(&self, problem: Problem, has_tree: bool) -> Result<Problem, Error> {
        let mut problem = problem.aligned(Alignment::BottomRight);
        (problem.query.layout, problem.output.layout) = (Layout::Bshd, Layout::Bshd);
        if let Some(keys) = self.window {
            problem = problem.window(Some(keys.saturating_sub(1)), None);
        }
        match self.rows {
            _ if has_tree => Ok(problem.with_term(Tree::term(1, self.rows)?)),
            1 => Ok(problem),
            _ => Ok(problem.causal()),
        }
    }

    /// Table of the mask of the new tokens.
    pub(super) fn words(&self, has_tree: bool) -> Result<Vec<u32>, Error> {
        self.tree.iter().filter(|_| has_tree).map(|tree| tree.words(self.rows)).next().unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Compares some heads of an answer with the oracle. Errors say what is wrong.
    fn check(&self, output: &[f32], kind: Kind, who: &str) -> Result<(), Failure> {
        let dim = self.shape.head_dim;
        let group = self.num_heads / self.shape.num_kv_heads;
        let one = Problem::new(Dims { num_heads: 1, num_kv_heads: 1, ..self.dims() });
        let one = self.look(one, kind.has_tree)?.hadamard(self.shape.key_hadamard, self.shape.value_hadamard);
        let words = self.words(kind.has_tree)?;
        for head in [0, self.num_heads / 3, self.num_heads - 1] {
            let of = |data: HostSlice<'_>, heads: usize, head: usize| -> Vec<f32> {
                let rows = (0..data.len() / heads / dim).map(|row| (row * heads + head) * dim);
                rows.flat_map(|at| at..at + dim).map(|at| data.get(at)).collect()
            };
            let kv = |data: &HostVec| of(data.as_slice(), self.shape.num_kv_heads, head / group);
            let (query, key, value) = (of((&self.query).into(), self.num_heads, head), kv(&self.key), kv(&self.value));
            let got = of(output.into(), self.num_heads, head);
            let found = Deviation::of(&one, &Inputs { term_tables: &words, ..Inputs::new(&query, &key, &value) }, &got)?;
            if found.of_bound > 1.0 {
                return Err(Failure::Check(format!("{who} is wrong: head {head}: {}", found.why)));
            }
        }
        Ok(())
    }
}

/// Runs one step. Returns its time in ms and the answer, which devices read back only if it is wanted.
pub(super) type Step<'a> = Box<dyn FnMut(bool) -> Result<(f64, Vec<f32>), Failure> + 'a>;

/// One implementation of the step, and its timings.
struct Candidate<'a> {
    adapter: &'a str,
    kind: Kind,
    copy_gb_s: f64,
    cache_bytes: u64,
    step: Step<'a>,
    times: Vec<f64>,
}

pub(super) fn run(args: &Args, backends: &[Backend], seconds: f64, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let rows = usize::from(args.rows);
    if let Some(keys) = args.context.iter().find(|&&keys| rows > keys) {
        return Err(Failure::at(format!("--rows {rows}"), format!("is more than --context {keys}")));
    }
    let host_copy = machine::copy_gb_s();
    let mut engines = Vec::new();
    for engine in backend::open_each(backends, ShaderOptions::default())? {
        let copy = match engine.gpu() {
            Some(gpu) => decode_device::copy_gb_s(gpu)?,
            None => host_copy,
        };
        engines.push((engine, copy));
    }
    if json {
        terminal.json(&machine::line(host_copy), false)?;
    }
    for (engine, copy) in &engines {
        let layer_step = engine.gpu().map(decode_device::layer_step_us).transpose()?;
        if json {
            terminal.json(&json!({ "adapter": engine.chosen(), "copy_gb_s": copy, "layer_step_us": layer_step }), false)?;
        } else {
            let layer_step = layer_step.map_or_else(String::new, |us| format!(", {us:.1} us of CPU time per layer of a replayed step"));
            writeln!(terminal, "  {}: copies {copy:.1} GB/s{layer_step}", engine.chosen())?;
        }
    }
    for &keys in &args.context {
        for &storage in &args.cache {
            time(&Full::new(args, keys, storage)?, &engines, seconds, json, terminal)?;
        }
    }
    Ok(())
}

fn time(full: &Full, engines: &[(Engine, f64)], seconds: f64, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let LayerShape { key, value, key_hadamard, .. } = full.shape;
    let dtype = if key == value { key.to_string() } else { format!("{key}:{value}") } + if key_hadamard { "+hadamard" } else { "" };
    let rows = if full.rows == 1 { String::new() } else { format!("{} rows, ", full.rows) };
    let name =
        format!("{rows}{} keys, {}:{} heads of {}, {dtype}", full.keys, full.num_heads, full.shape.num_kv_heads, full.shape.head_dim);
    let mut progress = ProgressBar::new(format!("{name}: checking"));
    progress.report(0.0);
    let mut candidates = Vec::new();
    for (engine, copy_gb_s) in engines {
        let trees = if full.tree.is_some() { &[false, true][..] } else { &[false] };
        let kinds = [false, true].into_iter().flat_map(|is_paged| trees.iter().map(move |&has_tree| Kind { is_paged, has_tree }));
        for kind in kinds {
            let step = match engine.gpu() {
                Some(gpu) => decode_device::step(gpu, full, kind, if kind.is_paged { PAGE_SIZE } else { full.keys }),
                None => host_step(full, engine, kind),
            };
            let adapter = engine.chosen();
            if let Err(error @ (Error::Unsupported { .. } | Error::Limit { .. })) = step {
                note(format_args!("{name}: {kind} on {adapter} left out: {error}"));
                continue;
            }
            let (mut step, cache_bytes) = step?;
            full.check(&step(true)?.1, kind, &format!("{name}: {kind} on {adapter}"))?;
            candidates.push(Candidate { adapter, kind, copy_gb_s: *copy_gb_s, cache_bytes, step, times: Vec::new() });
        }
    }
    if candidates.is_empty() {
        return Err(Failure::at(format!("--decode {name}"), "no backend supports it"));
    }
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while candidates[0].times.len() < 3 || Instant::now() < until {
        for candidate in &mut candidates {
            let (ms, _) = (candidate.step)(false)?;
            candidate.times.push(ms);
        }
    }
    drop(progress);
    let mut rows = vec!["cache\tmedian ms\tmin\tGFLOP/s\tGB/s\tof a copy\ton".to_string()];
    for Candidate { adapter, kind, copy_gb_s, cache_bytes, times, .. } in &candidates {
        let Some([min, median, _]) = machine::spread(times) else { continue };
        let flops = 4.0 * (full.rows * full.num_heads * full.seen() * full.shape.head_dim) as f64;
        let (gflops, gb_s) = (flops / median / 1e6, full.bytes() / median / 1e6);
        let of_copy = gb_s / copy_gb_s;
        if json {
            let line = json!({
                "adapter": adapter, "op": format!("decode {kind}"), "context": full.keys, "rows": full.rows, "heads": [full.num_heads, full.shape.num_kv_heads],
                "head_dim": full.shape.head_dim, "window": full.window, "dtype": dtype, "ms_median": median, "ms_min": min,
                "n": times.len(), "gflops": gflops, "gb_s": gb_s, "copy_gb_s": copy_gb_s, "of_copy": of_copy, "bytes": full.bytes(),
                "cache_bytes": cache_bytes, "checked": true,
            });
            terminal.json(&line, false)?;
        }
        rows.push(format!("{kind}\t{median:.3}\t{min:.3}\t{gflops:.2}\t{gb_s:.2}\t{of_copy:.2}\t{adapter}"));
    }
    if !json {
        writeln!(terminal, "  {name}, {:.1} MB read per step", full.bytes() / 1e6)?;
        terminal.table(4, &rows)?;
        writeln!(terminal)?;
    }
    Ok(())
}

/// Sets up a step on the CPU path; returns it with the bytes of its cache.
fn host_step<'a>(full: &'a Full, engine: &'a Engine, Kind { is_paged, has_tree }: Kind) -> Result<(Step<'a>, u64), Error> {
    let (mut problem, words) = (full.look(Problem::new(full.dims()), has_tree)?, full.words(has_tree)?);
    (problem.key.dtype, problem.value.dtype) = (full.shape.key, full.shape.value);
    (problem.key.layout, problem.value.layout) = (Layout::Bshd, Layout::Bshd);
    problem = problem.hadamard(full.shape.key_hadamard, full.shape.value_hadamard);
    let mut table = PageTable::default();
    if is_paged {
        if !full.keys.is_multiple_of(PAGE_SIZE) {
            let what = format!("{} keys, which are no whole pages of {PAGE_SIZE}", full.keys);
            return Err(Error::Unsupported { what, remedy: "choose another --context".into() });
        }
        let pages: Vec<u32> = (0..(full.keys / PAGE_SIZE) as u32).collect();
        table = PageTable::new(PAGE_SIZE, [(&pages[..], full.keys)])?;
        problem = problem.paged(table.paged(pages.len()));
    }
    let step = move |_| {
        let inputs = Inputs {
            kv_lengths: &table.kv_lengths,
            page_table: &table.entries,
            term_tables: &words,
            ..Inputs::new(&full.query, full.key.as_slice(), full.value.as_slice())
        };
        let started = Instant::now();
        let outputs = engine.attention(&problem, &inputs)?;
        Ok((milliseconds(started), outputs.output.to_f32()))
    };
    Ok((Box::new(step), (full.keys * full.shape.token_bytes()) as u64))
}
