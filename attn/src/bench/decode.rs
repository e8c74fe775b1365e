//! `attn bench --decode`: one new token against caches of many keys.

use std::io::Write;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::json;
use wgpu_attention::cache::LayerShape;
use wgpu_attention::verify::{Expected, compare};
use wgpu_attention::{Backend, DType, Dims, HostVec, Inputs, Layout, PageTable, Paged, Problem};

use super::decode_device::{self, OnDevice};
use super::machine;
use crate::backend;
use crate::failure::Failure;
use crate::random::Random;
use crate::terminal::{ProgressBar, Terminal, note};

/// Page size of paged caches, in keys.
const PAGE_SIZE: usize = 16;

/// Options of `--decode`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Time decoding steps instead: one token against caches on a device or the host, contiguous and in pages of 16
    #[arg(long)]
    pub(super) decode: bool,
    /// Keys in the cache, for example 4096 or 4k (1k is 1024); may be repeated [default: 1k, 4k and 16k]
    #[arg(long, value_name = "KEYS", requires = "decode")]
    context: Vec<Context>,
    /// Storage type of the cache: f32, f16, bf16, q8 or q4; may be repeated [default: f32, f16, q8 and q4]
    #[arg(long, value_name = "STORAGE", requires = "decode")]
    cache: Vec<DType>,
    /// Numbers of query heads and of key/value heads
    #[arg(long, value_name = "H:HKV", requires = "decode", default_value = "32:8")]
    heads: Heads,
    /// Head dimension
    #[arg(long, value_name = "D", requires = "decode", default_value_t = 128)]
    head_dim: usize,
    /// Sliding window: only the last N keys are visible [default: all]
    #[arg(long, value_name = "N", requires = "decode")]
    window: Option<u32>,
}

/// Number of keys; parses `4096` and `4k`.
#[derive(Clone, Copy, Debug)]
struct Context(usize);

impl FromStr for Context {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, unit) = text.strip_suffix('k').map_or((text, 1), |digits| (digits, 1024));
        let keys = digits.parse().ok().and_then(|keys: usize| keys.checked_mul(unit)).filter(|keys| (1..=1 << 27).contains(keys));
        keys.map(Self).ok_or_else(|| format!("`{text}` is no number of keys such as 4096 or 4k"))
    }
}

#[derive(Clone, Copy, Debug)]
struct Heads(usize, usize);

impl FromStr for Heads {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(heads, kv)| Some((heads.parse().ok()?, kv.parse().ok()?)));
        let numbers = numbers.filter(|&(heads, kv): &(usize, usize)| kv > 0 && heads > 0 && heads % kv == 0);
        numbers.map(|(heads, kv)| Self(heads, kv)).ok_or_else(|| format!("`{text}` is not H:HKV with H a multiple of HKV"))
    }
}

/// Data of one step: a full cache whose last token is the new one, and the query of that token.
pub(super) struct Full {
    pub(super) shape: LayerShape,
    pub(super) num_heads: usize,
    pub(super) keys: usize,
    pub(super) window: Option<u32>,
    pub(super) query: Vec<f32>,
    /// `[keys, num_kv_heads, head_dim]` in the cache's storage type.
    pub(super) key: HostVec,
    pub(super) value: HostVec,
    /// Key and value of the last token before quantisation or narrowing.
    pub(super) new: [Vec<f32>; 2],
}

impl Full {
    fn new(args: &Args, keys: usize, dtype: DType) -> Result<Self, Failure> {
        let (Heads(num_heads, num_kv_heads), dim) = (args.heads, args.head_dim);
        let shape = LayerShape::new(num_kv_heads, dim).stored(dtype, dtype);
        let row = num_kv_heads * dim;
        let mut random = Random::new(3);
        let mut some = |len: usize| -> Result<Vec<f32>, Failure> {
            let mut numbers = Vec::new();
            numbers.try_reserve_exact(len).map_err(|_| Failure::input(format!("--context {keys}: does not fit in memory")))?;
            numbers.extend((0..len).map(|_| random.unit()));
            Ok(numbers)
        };
        let query = some(num_heads * dim)?;
        let (mut stored, mut new) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let numbers = some(keys * row)?;
            new.push(numbers[(keys - 1) * row..].to_vec());
            stored.push(if dtype == DType::F32 { HostVec::F32(numbers) } else { HostVec::from_f32(dtype, &numbers) });
        }
        let (Some(value), Some(key), Some(new_value), Some(new_key)) = (stored.pop(), stored.pop(), new.pop(), new.pop()) else {
            return Err(Failure::input("--decode: nothing was made"));
        };
        Ok(Self { shape, num_heads, keys, window: args.window, query, key, value, new: [new_key, new_value] })
    }

    /// Returns the number of keys visible to the new token.
    fn seen(&self) -> usize {
        self.window.map_or(self.keys, |window| self.keys.min(window as usize))
    }

    /// Returns the bytes of the visible keys and values.
    fn bytes(&self) -> f64 {
        (self.seen() * self.shape.token_bytes()) as f64
    }

    /// Returns the operation count, 4 * H * visible keys * D.
    fn flops(&self) -> f64 {
        4.0 * (self.num_heads * self.seen() * self.shape.head_dim) as f64
    }

    fn dims(&self) -> Dims {
        let LayerShape { num_kv_heads, head_dim, head_dim_v, .. } = self.shape;
        Dims { batch: 1, num_heads: self.num_heads, num_kv_heads, seq_len_q: 1, seq_len_kv: self.keys, head_dim, head_dim_v }
    }

    /// Applies the window: the new token sees the last `window` keys, itself included.
    pub(super) fn look(&self, problem: Problem) -> Problem {
        match self.window {
            Some(keys) => problem.aligned(wgpu_attention::Alignment::BottomRight).window(Some(keys.saturating_sub(1)), Some(0)),
            None => problem,
        }
    }

    /// Checks some heads of an answer against the oracle.
    fn check(&self, output: &[f32]) -> Result<(), String> {
        let (dim, row) = (self.shape.head_dim, self.shape.num_kv_heads * self.shape.head_dim);
        let group = self.num_heads / self.shape.num_kv_heads;
        if output.len() != self.num_heads * dim {
            return Err(format!("{} numbers", output.len()));
        }
        for head in [0, self.num_heads / 3, self.num_heads - 1] {
            let of = |data: &HostVec| -> Vec<f32> {
                let data = data.as_slice();
                let first = self.keys - self.seen();
                (first..self.keys).flat_map(|key| (0..dim).map(move |i| data.get(key * row + head / group * dim + i))).collect()
            };
            let (key, value) = (of(&self.key), of(&self.value));
            let one = Problem::new(Dims { num_heads: 1, num_kv_heads: 1, seq_len_kv: self.seen(), ..self.dims() });
            let query = &self.query[head * dim..][..dim];
            let expected = Expected::of(&one, &Inputs::new(query, &key, &value)).map_err(|error| error.to_string())?.output;
            compare(&expected.shape, &output[head * dim..][..dim], &expected.shape, &expected.values, &expected.tolerance)
                .map_err(|mismatch| format!("head {head}: {mismatch}"))?;
        }
        Ok(())
    }
}

/// One implementation of the step, and its timings.
struct Candidate<'a> {
    adapter: String,
    /// `contiguous` or `paged`.
    op: &'static str,
    copy_gb_s: f64,
    cache_bytes: u64,
    step: Step<'a>,
    times: Vec<f64>,
}

enum Step<'a> {
    Host { engine: &'a wgpu_attention::Engine, problem: Box<Problem>, table: PageTable },
    Device(Box<OnDevice<'a>>),
}

impl Candidate<'_> {
    /// Runs one step. Returns its time in ms and the answer; devices read the answer back only if it is `wanted`.
    fn step(&mut self, full: &Full, wanted: bool) -> Result<(f64, Vec<f32>), Failure> {
        match &mut self.step {
            Step::Host { engine, problem, table } => {
                let inputs = Inputs {
                    kv_lengths: if problem.paged.is_some() { &table.kv_lengths } else { &[] },
                    page_table: if problem.paged.is_some() { &table.entries } else { &[] },
                    ..Inputs::new(&full.query, full.key.as_slice(), full.value.as_slice())
                };
                let started = Instant::now();
                let outputs = engine.attention(problem, &inputs)?;
                Ok((started.elapsed().as_secs_f64() * 1e3, outputs.output.to_f32()))
            }
            Step::Device(device) => device.step(full, wanted),
        }
    }
}

pub(super) fn run(args: &Args, backends: &[Backend], seconds: f64, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let some = |given: &[Context], otherwise: &[usize]| -> Vec<usize> {
        if given.is_empty() { otherwise.to_vec() } else { given.iter().map(|context| context.0).collect() }
    };
    let contexts = some(&args.context, &[1024, 4096, 16384]);
    let stored = if args.cache.is_empty() { vec![DType::F32, DType::F16, DType::Q8, DType::Q4] } else { args.cache.clone() };
    let host_copy = machine::copy_gb_s();
    let mut engines = Vec::new();
    for (_, engine) in backend::open_each(backends, false)? {
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
            let layer_step = layer_step.map_or_else(String::new, |us| format!(", {us:.1} us of CPU a layer-step of a replayed stack"));
            writeln!(terminal, "  {}: copies {copy:.1} GB/s{layer_step}", engine.chosen())?;
        }
    }
    for &keys in &contexts {
        for &dtype in &stored {
            time(&Full::new(args, keys, dtype)?, &engines, seconds, json, terminal)?;
        }
    }
    Ok(())
}

fn time(full: &Full, engines: &[(wgpu_attention::Engine, f64)], seconds: f64, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let dtype = full.shape.key;
    let name = format!("{} keys, {}:{} heads of {}, {dtype}", full.keys, full.num_heads, full.shape.num_kv_heads, full.shape.head_dim);
    let mut progress = ProgressBar::new(format!("{name}: checking"));
    progress.report(0.0);
    let mut candidates = Vec::new();
    for (engine, copy_gb_s) in engines {
        for op in ["contiguous", "paged"] {
            match candidate(full, engine, *copy_gb_s, op)? {
                Ok(mut candidate) => {
                    let (_, output) = candidate.step(full, true)?;
                    let wrong = |why| Failure::Check(format!("{name}: {op} on {} is wrong: {why}", engine.chosen()));
                    full.check(&output).map_err(wrong)?;
                    candidates.push(candidate);
                }
                Err(why) => note(format_args!("{name}: {op} on {} left out: {why}", engine.chosen())),
            }
        }
    }
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while candidates.iter().any(|candidate| candidate.times.len() < 3) || Instant::now() < until {
        for candidate in &mut candidates {
            let (ms, _) = candidate.step(full, false)?;
            candidate.times.push(ms);
        }
        if candidates.is_empty() {
            return Err(Failure::input(format!("--decode {name}: nothing can compute it")));
        }
    }
    drop(progress);
    if !json {
        writeln!(terminal, "  {name}, {:.1} MB read a step", full.bytes() / 1e6)?;
        writeln!(terminal, "    {:<12}{:>11}{:>10}{:>10}{:>9}{:>11}  on", "cache", "median ms", "least", "GFLOP/s", "GB/s", "of a copy")?;
    }
    for candidate in &mut candidates {
        candidate.times.sort_by(f64::total_cmp);
        let Candidate { adapter, op, copy_gb_s, cache_bytes, times, .. } = candidate;
        let (median, least) = (times[times.len() / 2], times[0]);
        let (gflops, gb_s) = (full.flops() / median / 1e6, full.bytes() / median / 1e6);
        let of_copy = gb_s / *copy_gb_s;
        if json {
            let line = json!({
                "adapter": adapter, "op": format!("decode {op}"), "context": full.keys, "heads": [full.num_heads, full.shape.num_kv_heads],
                "head_dim": full.shape.head_dim, "window": full.window, "dtype": dtype.name(), "ms_median": median, "ms_min": least,
                "n": times.len(), "gflops": gflops, "gb_s": gb_s, "copy_gb_s": copy_gb_s, "of_copy": of_copy, "bytes": full.bytes(),
                "cache_bytes": cache_bytes, "checked": true,
            });
            terminal.json(&line, false)?;
        } else {
            writeln!(terminal, "    {op:<12}{median:>11.3}{least:>10.3}{gflops:>10.2}{gb_s:>9.2}{of_copy:>11.2}  {adapter}")?;
        }
    }
    if !json {
        writeln!(terminal)?;
    }
    Ok(())
}

/// Sets up `op` on an engine. The inner error says why the engine does not support it.
fn candidate<'a>(
    full: &Full,
    engine: &'a wgpu_attention::Engine,
    copy_gb_s: f64,
    op: &'static str,
) -> Result<Result<Candidate<'a>, String>, Failure> {
    let cache_bytes = (full.keys * full.shape.token_bytes()) as u64;
    let adapter = engine.chosen().to_string();
    if let Some(gpu) = engine.gpu() {
        let page_size = if op == "paged" { PAGE_SIZE } else { full.keys };
        return Ok(OnDevice::new(gpu, full, page_size)?.map(|device| {
            let cache_bytes = device.cache_bytes();
            Candidate { adapter, op, copy_gb_s, cache_bytes, step: Step::Device(Box::new(device)), times: Vec::new() }
        }));
    }
    let mut problem = full.look(Problem::new(full.dims()));
    (problem.key.dtype, problem.value.dtype) = (full.shape.key, full.shape.value);
    (problem.key.layout, problem.value.layout) = (Layout::Bshd, Layout::Bshd);
    let mut table = PageTable::default();
    if op == "paged" {
        let pages: Vec<u32> = (0..(full.keys / PAGE_SIZE) as u32).collect();
        if !full.keys.is_multiple_of(PAGE_SIZE) {
            return Ok(Err(format!("{} keys are no whole pages of {PAGE_SIZE}", full.keys)));
        }
        table = PageTable::new(PAGE_SIZE, [(&pages[..], full.keys)])?;
        problem.paged = Some(Paged { page_size: PAGE_SIZE, pages: pages.len(), pages_per_item: pages.len() });
        problem.visibility.kv_lengths = true;
    }
    let step = Step::Host { engine, problem: Box::new(problem), table };
    Ok(Ok(Candidate { adapter, op, copy_gb_s, cache_bytes, step, times: Vec::new() }))
}
