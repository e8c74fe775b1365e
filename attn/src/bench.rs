//! `attn bench`: how fast, on what, and is it right.

use std::io::Write;
use std::str::FromStr;
use std::time::Instant;

use serde_json::{Value, json};
use wgpu_attention::verify::{Expected, compare};
use wgpu_attention::{Algorithm, Alignment, Backend, DType, Dims, Engine, Error, HostVec, Inputs, Layout, Problem};

use crate::backend;
use crate::failure::Failure;
use crate::random::Random;
use crate::terminal::{Progress, Terminal, note};

const EXAMPLES: &str = "\
Examples:
  attn bench                                                one layer of prefill and one step of decoding
  attn bench --shape 1,32,8,1024,1024,128 --causal          grouped heads, causal
  attn bench --shape 1,8,8,512,512,64 --shape 1,8,8,1,4096,64 --dtype f16
  attn bench --backend vulkan --backend cpu --json >> results.jsonl

Each answer is held against the f64 oracle before it is timed (rows picked from large shapes). Times are host to host: arrays
in host memory, the answer back in host memory. Candidates take turns, so that a machine that gets slower slows them all.
GFLOP/s counts 4 * B * H * LQ * LK * D operations, half of that with --causal; ms is the median, GFLOP/s belong to it.";

/// The arguments.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Batch, query heads, key/value heads, queries, keys, head_dim; may be repeated [default: 1,8,8,512,512,64 and 1,8,8,1,4096,64]
    #[arg(long, value_name = "B,H,HKV,LQ,LK,D")]
    shape: Vec<Shape>,
    /// Hide the keys after each row's position, the last row standing at the last key
    #[arg(long)]
    causal: bool,
    /// How query, key, value and output are stored: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,
    #[arg(long, value_name = "BACKEND", value_parser = backend::parse, help = concat!("May be repeated [default: auto and cpu]. ", "Where to compute: auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name"))]
    backend: Vec<Backend>,
    /// Seconds to spend on each shape, besides checking
    #[arg(long, default_value_t = 4.0, allow_hyphen_values = true, value_parser = parse_seconds)]
    seconds: f64,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|seconds: &f64| (0.0..=86_400.0).contains(seconds)).ok_or("say a number of seconds from 0 to 86400".into())
}

/// The sizes to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(Dims);

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes: Vec<usize> = text
            .split(',')
            .map(|size| size.trim().parse().map_err(|_| format!("`{}` is no whole number from 0", size.trim())))
            .collect::<Result<_, _>>()?;
        let [batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim] = sizes[..] else {
            return Err(format!("has {} numbers; six are needed: B,H,HKV,LQ,LK,D", sizes.len()));
        };
        let dims = Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v: head_dim };
        Problem::new(dims).check().map_err(|error| error.to_string())?;
        if seq_len_q == 0 || seq_len_kv == 0 {
            return Err("LQ or LK is 0: there is nothing to time".into());
        }
        Ok(Self(dims))
    }
}

/// One thing to time.
struct Candidate {
    engine: Engine,
    op: &'static str,
    /// Milliseconds of each run.
    times: Vec<f64>,
}

/// The numbers of a problem.
struct Tensors {
    query: HostVec,
    key: HostVec,
    value: HostVec,
}

impl Tensors {
    fn inputs(&self) -> Inputs<'_> {
        Inputs::new(self.query.as_slice(), self.key.as_slice(), self.value.as_slice())
    }
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let default = ["1,8,8,512,512,64", "1,8,8,1,4096,64"].map(Shape::from_str);
    let shapes: Vec<Shape> =
        if args.shape.is_empty() { default.into_iter().collect::<Result<_, _>>().map_err(Failure::Input)? } else { args.shape.clone() };
    let backends = if args.backend.is_empty() { vec![Backend::Auto, Backend::Cpu] } else { args.backend.clone() };
    for Shape(dims) in shapes {
        let mut problem = Problem::new(dims).stored(args.dtype, Layout::Bhsd);
        if args.causal {
            problem = problem.causal(Alignment::BottomRight);
        }
        time(&problem, candidates(&backends)?, args.seconds, args.json, terminal)?;
    }
    Ok(())
}

/// One shape on one engine, for `attn` alone.
pub(crate) fn brief(terminal: &mut Terminal, backends: &[Backend]) -> Result<(), Failure> {
    let problem = Problem::new(Dims::square(1, 8, 512, 64)).causal(Alignment::BottomRight);
    time(&problem, candidates(backends)?, 2.0, false, terminal)
}

/// Fused and staged on every adapter, fused on the CPU; each adapter once.
fn candidates(backends: &[Backend]) -> Result<Vec<Candidate>, Failure> {
    let mut found: Vec<Candidate> = Vec::new();
    for backend in backends {
        let engine = backend::open(backend, Algorithm::Fused, false)?;
        if found.iter().any(|candidate| candidate.engine.chosen() == engine.chosen()) {
            continue;
        }
        let op = if *backend == Backend::Oracle { "naive" } else { "fused" };
        if engine.gpu().is_some() {
            let staged = engine.clone().with_algorithm(Algorithm::Staged);
            found.push(Candidate { engine: staged, op: "staged", times: Vec::new() });
        }
        found.push(Candidate { engine, op, times: Vec::new() });
    }
    Ok(found)
}

fn time(problem: &Problem, candidates: Vec<Candidate>, seconds: f64, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let tensors = tensors(problem)?;
    let inputs = tensors.inputs();
    let name = shape_text(&problem.dims);
    let mut round = 0.0;
    let mut warm = Vec::new();
    for candidate in candidates {
        match warm_up(problem, &tensors, &candidate)? {
            Ok(seconds) => {
                round += seconds;
                warm.push(candidate);
            }
            // A path that cannot do this shape leaves the others their turn.
            Err(error) => note(format_args!("{name}: {} on {} left out: {error}", candidate.op, candidate.engine.chosen())),
        }
    }
    let mut candidates = warm;
    if candidates.is_empty() {
        return Err(Failure::input(format!("--shape {name}: nothing can compute it")));
    }
    let rounds = (seconds / round.max(1e-6)).clamp(3.0, 1000.0) as usize;
    let mut progress = Progress::new(format!("{name}: timing"));
    for done in 0..rounds {
        progress.report(done as f64 / rounds as f64);
        for candidate in &mut candidates {
            let started = Instant::now();
            candidate.engine.attention(problem, &inputs)?;
            candidate.times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    drop(progress);
    if !json {
        let causal = if problem.visibility.causal { ", causal" } else { "" };
        writeln!(terminal, "  {name}{causal}, {}, {:.1} MB of arrays", problem.query.dtype, bytes(problem) / 1e6)?;
        writeln!(terminal, "    {:<8}{:>11}{:>23}{:>6}{:>11}  on", "op", "median ms", "min..max ms", "n", "GFLOP/s")?;
    }
    for candidate in &mut candidates {
        candidate.times.sort_by(f64::total_cmp);
        report(problem, candidate, json, terminal)?;
    }
    if !json {
        writeln!(terminal)?;
    }
    Ok(())
}

/// Checks the answer, then times one call: the first makes pipelines and buffers, the second is what a call costs. The inner error
/// says that this path does not do the problem.
fn warm_up(problem: &Problem, tensors: &Tensors, candidate: &Candidate) -> Result<Result<f64, Error>, Failure> {
    let (engine, name) = (&candidate.engine, shape_text(&problem.dims));
    let mut progress = Progress::new(format!("{name}: checking {} on {}", candidate.op, engine.chosen()));
    progress.report(0.0);
    let outputs = match engine.attention(problem, &tensors.inputs()) {
        Err(error @ (Error::Unsupported { .. } | Error::Limit { .. })) => return Ok(Err(error)),
        other => other?,
    };
    check(problem, tensors, &outputs.output, &mut progress)
        .map_err(|why| Failure::Check(format!("{name}: {} on {} is wrong: {why}", candidate.op, engine.chosen())))?;
    let started = Instant::now();
    engine.attention(problem, &tensors.inputs())?;
    Ok(Ok(started.elapsed().as_secs_f64()))
}

fn report(problem: &Problem, candidate: &Candidate, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let times = &candidate.times;
    let (Some(min), Some(max)) = (times.first(), times.last()) else { return Ok(()) };
    let median = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
    let flops = problem.dims.flops() * if problem.visibility.causal { 0.5 } else { 1.0 };
    let gflops = flops / (median * 1e6);
    let (chosen, kernel) = (candidate.engine.chosen(), candidate.engine.explain(problem)?);
    if json {
        let d = &problem.dims;
        let line: Value = json!({
            "adapter": chosen, "op": candidate.op, "shape": [d.batch, d.num_heads, d.num_kv_heads, d.seq_len_q, d.seq_len_kv, d.head_dim],
            "causal": problem.visibility.causal, "dtype": problem.query.dtype.name(), "ms_median": median, "ms_min": min, "ms_max": max,
            "n": times.len(), "gflops": gflops, "bytes": bytes(problem), "checked": true, "kernel": kernel,
        });
        terminal.json(&line, false)?;
    } else {
        let spread = format!("{min:.3}..{max:.3}");
        writeln!(terminal, "    {:<8}{median:>11.3}{spread:>23}{:>6}{gflops:>11.2}  {chosen}", candidate.op, times.len())?;
        writeln!(terminal, "            {kernel}")?;
    }
    Ok(())
}

/// Query, key, value and output, each once: what has to move at least.
fn bytes(problem: &Problem) -> f64 {
    let numbers = [problem.query_len(), problem.key_len(), problem.value_len(), problem.output_len()];
    numbers.iter().map(|&len| len as f64 * problem.query.dtype.size() as f64).sum()
}

fn shape_text(dims: &Dims) -> String {
    let Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, .. } = dims;
    format!("{batch},{num_heads},{num_kv_heads},{seq_len_q},{seq_len_kv},{head_dim}")
}

fn tensors(problem: &Problem) -> Result<Tensors, Failure> {
    // Made as f32, then narrowed: both are there for a moment.
    let needed = 2.0 * bytes(problem) * 4.0 / problem.query.dtype.size() as f64;
    if let Some(free) = free_memory()
        && needed > free
    {
        return Err(Failure::input(format!(
            "--shape {}: needs about {:.1} GB of memory, {:.1} GB are free",
            shape_text(&problem.dims),
            needed / 1e9,
            free / 1e9
        )));
    }
    let mut random = Random::new(1);
    let mut tensor = |len: usize| {
        let mut numbers = Vec::new();
        numbers.try_reserve_exact(len).map_err(|_| Failure::input(format!("{}: does not fit in memory", shape_text(&problem.dims))))?;
        numbers.extend((0..len).map(|_| random.unit()));
        Ok::<_, Failure>(match problem.query.dtype {
            DType::F32 => HostVec::F32(numbers),
            other => HostVec::from_f32(other, &numbers),
        })
    };
    Ok(Tensors { query: tensor(problem.query_len())?, key: tensor(problem.key_len())?, value: tensor(problem.value_len())? })
}

/// Bytes that can still be had, where the system says.
fn free_memory() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

/// Rows of a large shape that are held against the oracle.
const SAMPLED_ROWS: usize = 32;

/// Holds rows of the answer against the oracle: the first, the last and some between, each as a problem of one query row.
fn check(problem: &Problem, tensors: &Tensors, output: &HostVec, progress: &mut Progress) -> Result<(), String> {
    let d = &problem.dims;
    let rows = d.batch * d.num_heads * d.seq_len_q;
    let mut random = Random::new(2);
    let picked: Vec<usize> = if rows <= SAMPLED_ROWS {
        (0..rows).collect()
    } else {
        [0, rows - 1].into_iter().chain((2..SAMPLED_ROWS).map(|_| random.below(rows))).collect()
    };
    let count = picked.len();
    for (done, row) in picked.into_iter().enumerate() {
        progress.report(done as f64 / count as f64);
        let (head, i) = (row / d.seq_len_q, row % d.seq_len_q);
        let kv_head = head / d.num_heads * d.num_kv_heads + head % d.num_heads / d.group();
        let mut one = Problem::new(Dims { batch: 1, num_heads: 1, num_kv_heads: 1, seq_len_q: 1, ..*d });
        one.scale = problem.scale;
        one.output.dtype = problem.output.dtype;
        if problem.visibility.causal {
            let position = i as i64 + Alignment::BottomRight.offset(d.seq_len_q, d.seq_len_kv);
            one = one.causal(Alignment::Offset(i32::try_from(position).map_err(|error| error.to_string())?));
        }
        let part = |tensor: &HostVec, at: usize, len: usize| (at..at + len).map(|at| tensor.as_slice().get(at)).collect::<Vec<f32>>();
        let keys = d.seq_len_kv * d.head_dim;
        let query = part(&tensors.query, row * d.head_dim, d.head_dim);
        let (key, value) = (part(&tensors.key, kv_head * keys, keys), part(&tensors.value, kv_head * keys, keys));
        let expected = Expected::of(&one, &Inputs::new(&query, &key, &value)).map_err(|error| error.to_string())?.output;
        let got = part(output, row * d.head_dim, d.head_dim);
        compare(&expected.shape, &got, &expected.shape, &expected.values, &expected.tolerance)
            .map_err(|mismatch| format!("query {i} of head {head}, counted over the batch: {mismatch}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        assert_eq!("1,8,2,16,32,64".parse::<Shape>().map(|shape| shape_text(&shape.0)), Ok("1,8,2,16,32,64".into()));
        for bad in ["", "1,2,3", "1,8,3,16,16,64", "1,1,1,0,4,4", "0,1,1,4,4,4", "1,1,1,4,4,-4", "1,1,1,4,4,x", "1,1,1,4,4,4,4"] {
            assert!(bad.parse::<Shape>().is_err(), "{bad}");
        }
        assert!(format!("{0},{0},{0},{0},{0},{0}", u64::MAX).parse::<Shape>().is_err());
    }

    #[test]
    fn a_wrong_answer_is_not_timed() {
        let problem = Problem::new(Dims { num_kv_heads: 2, ..Dims::square(2, 4, 40, 8) }).causal(Alignment::BottomRight);
        let tensors = tensors(&problem).expect("small");
        let mut progress = Progress::new("");
        let oracle = wgpu_attention::cpu::naive::attention(&problem, &tensors.inputs()).expect("valid");
        let right: Vec<f32> = oracle.output.iter().map(|&x| x as f32).collect();
        let mut verdict = |output: Vec<f32>| check(&problem, &tensors, &HostVec::F32(output), &mut progress);
        assert_eq!(verdict(right.clone()), Ok(()));
        for wrong in [right[7] * 1.001 + 1e-4, f32::NAN] {
            let mut output = right.clone();
            output[7] = wrong;
            assert!(verdict(output).is_err());
        }
        let head = 40 * 8;
        let mut swapped = right.clone();
        swapped.rotate_left(head);
        assert!(verdict(swapped).is_err());
        assert!(verdict(vec![0.0; right.len()]).is_err());
    }
}
