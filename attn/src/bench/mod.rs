//! `attn bench`: times attention on every backend and against peers, each answer checked.

mod candidate;
mod check;
mod decode;
mod decode_device;
mod machine;
mod overheads;
mod peer;
mod task;

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use wgpu_attention::{Backend, DType};

use crate::backend;
use crate::failure::Failure;
use crate::terminal::{ProgressBar, Terminal};
use candidate::Candidate;
use task::bytes;

pub(crate) use check::tensors;
pub(crate) use task::{Shape, Task};

const EXAMPLES: &str = "\
Examples:
  attn bench                                                one layer of prefill and one step of decoding
  attn bench --shape 1,32,8,1024,1024,128 --causal          grouped heads, causal
  attn bench --shape 1,8,8,512,512,64 --shape 1,8,8,1,4096,64 --dtype f16
  attn bench --backend vulkan --backend cpu --json >> results.jsonl
  attn bench --suite llama --suite bert                     named shapes: prefill, bert, llama, long, window, scaling, million, ...
  attn bench --decode --context 4k --context 128k --cache q8  steps of decoding: GB/s, and that beside a copy
  attn bench --overheads --backend vulkan                   microseconds of CPU a recorded attention, a cold start
  attn bench --backward --backend cpu                       forward and backward, the gradients checked too
  attn bench --suite prefill --backend cpu --compare \"python3 benches/peers/peer.py torch\"

Each answer is held against the f64 oracle before it is timed (rows picked from large shapes). Times are host to host: arrays
in host memory, the answer back in host memory. Candidates take turns, so that a machine that gets slower slows them all.
GFLOP/s counts 4 * D operations for each pair of a row and a key in the row's interval, about half of all
where it is causal; with --backward 3.5 times as many. ms is the median, GFLOP/s belong to it. `attn report` draws what --json writes.";

/// Arguments of `attn bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Batch, query heads, key/value heads, queries, keys, head_dim; may be repeated [default: 1,8,8,512,512,64 and 1,8,8,1,4096,64]
    #[arg(long, value_name = "B,H,HKV,LQ,LK,D")]
    shape: Vec<Shape>,
    /// Apply a causal mask to every --shape, bottom-right aligned: the last query is at the last key
    #[arg(long)]
    causal: bool,
    /// Time the shapes of attn/suite.txt whose names begin with NAME; may be repeated
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Storage type of query, key, value and output: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,
    #[arg(long, value_name = "BACKEND", value_parser = backend::parse, help = concat!("May be repeated [default: auto and cpu]. ", "Where to compute: auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name"))]
    backend: Vec<Backend>,
    /// Peer program to time, interleaved with ours; may be repeated. benches/peers/ has some
    #[arg(long, value_name = "COMMAND")]
    compare: Vec<String>,
    /// Load the kernels that `attn tune` found
    #[arg(long, value_name = "FILE")]
    tuned: Option<std::path::PathBuf>,
    /// Threads of the CPU path and of the peers [default: all]
    #[arg(long)]
    threads: Option<std::num::NonZeroUsize>,
    /// Measure the overhead of a call instead, from a cold start to a recorded dispatch
    #[arg(long)]
    overheads: bool,
    #[command(flatten)]
    decode: decode::Args,
    /// Time forward and backward passes, with the gradients of query, key and value
    #[arg(long)]
    backward: bool,
    /// Leave out the staged kernels, which are slow on long sequences
    #[arg(long)]
    fused: bool,
    /// Seconds to spend on each shape, not counting the checks
    #[arg(long, default_value_t = 4.0, allow_hyphen_values = true, value_parser = parse_seconds)]
    seconds: f64,
    /// Print one JSON object per line: the machine first, then one line for each shape and candidate
    #[arg(long)]
    json: bool,
}

pub(crate) fn parse_seconds(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|seconds: &f64| (0.0..=86_400.0).contains(seconds)).ok_or("say a number of seconds from 0 to 86400".into())
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
        pool.build_global().map_err(|error| Failure::input(format!("--threads {threads}: {error}")))?;
    }
    let mut shapes = args.shape.clone();
    if shapes.is_empty() && args.suite.is_empty() {
        for shape in ["1,8,8,512,512,64", "1,8,8,1,4096,64"] {
            shapes.push(shape.parse().map_err(Failure::Input)?);
        }
    }
    let mut tasks: Vec<Task> = shapes.into_iter().map(|shape| Task::new(shape, args.dtype, args.causal)).collect();
    tasks.extend(Task::suite(&args.suite, args.dtype).map_err(|why| Failure::input(format!("--suite: {why}")))?);
    tasks.iter_mut().for_each(|task| task.backward = args.backward);
    let backends = if args.backend.is_empty() { vec![Backend::Auto, Backend::Cpu] } else { args.backend.clone() };
    if args.overheads {
        return overheads::run(&backends, args.json, terminal);
    }
    if args.decode.decode {
        return decode::run(&args.decode, &backends, args.seconds, args.json, terminal);
    }
    let mut candidates = candidate::all(&backends, &args.compare, args.tuned.as_deref(), !(args.fused || args.backward))?;
    if args.json {
        terminal.json(&machine::line(machine::copy_gb_s()), false)?;
    }
    for task in &tasks {
        time(task, &mut candidates, args.seconds, args.json, terminal)?;
    }
    Ok(())
}

/// Times one shape for the tour (`attn` without a subcommand).
pub(crate) fn brief(terminal: &mut Terminal, backends: &[Backend]) -> Result<(), Failure> {
    let task = Task::new("1,8,8,512,512,64".parse().map_err(Failure::Input)?, DType::F32, true);
    time(&task, &mut candidate::all(backends, &[], None, true)?, 2.0, false, terminal)
}

fn time(task: &Task, candidates: &mut [Candidate], seconds: f64, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let tensors = check::tensors(&task.problem)?;
    let mut warm = Vec::new();
    for candidate in candidates {
        if candidate.warm_up(task, &tensors)? {
            warm.push(candidate);
        }
    }
    if warm.is_empty() {
        return Err(Failure::input(format!("{task}: nothing can compute it")));
    }
    // Each candidate gets about `share` seconds, split over 3 to 10 rounds; fewer rounds if a single run takes long.
    let share = seconds / warm.len() as f64;
    let once = warm.iter().filter_map(|candidate| candidate.times.last()).fold(0.0, |most: f64, &ms| most.max(ms / 1e3));
    let rounds = (share / once.max(1e-6)).clamp(3.0, 10.0) as usize;
    for candidate in &mut warm {
        candidate.times.clear();
    }
    let mut progress = ProgressBar::new(format!("{}: timing", task.name));
    for done in 0..rounds {
        progress.report(done as f64 / rounds as f64);
        for candidate in &mut warm {
            candidate.visit(task, &tensors, Duration::from_secs_f64(share / rounds as f64))?;
        }
    }
    drop(progress);
    if !json {
        writeln!(terminal, "  {task}, {:.1} MB of arrays", bytes(&task.problem) / 1e6)?;
        writeln!(terminal, "    {:<8}{:>11}{:>23}{:>6}{:>11}  on", "op", "median ms", "min..max ms", "n", "GFLOP/s")?;
    }
    // Ratios are relative to the fastest peer.
    let medians = warm.iter().filter(|candidate| candidate.is_peer()).filter_map(|candidate| candidate.spread());
    let best_peer = medians.map(|[_, median, _]| median).reduce(f64::min);
    for candidate in &warm {
        report(task, candidate, best_peer, json, terminal)?;
    }
    if !json {
        writeln!(terminal)?;
    }
    Ok(())
}

fn report(task: &Task, candidate: &Candidate, best_peer: Option<f64>, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let Some([min, median, max]) = candidate.spread() else { return Ok(()) };
    let gflops = task.flops() / (median * 1e6);
    let ratio = best_peer.filter(|_| !candidate.is_peer()).map(|peer| peer / median);
    let Candidate { adapter, op, kernel, times, .. } = candidate;
    if json {
        let d = &task.problem.dims;
        let line: Value = json!({
            "adapter": adapter, "op": op, "name": task.name,
            "shape": [d.batch, d.num_heads, d.num_kv_heads, d.seq_len_q, d.seq_len_kv, d.head_dim],
            "causal": task.problem.visibility.causal, "window": task.window(), "terms": task.problem.terms_text(), "dtype": task.problem.query.dtype.name(),
            "backward": task.backward, "threads": rayon::current_num_threads(), "ms_median": median, "ms_min": min, "ms_max": max, "n": times.len(), "gflops": gflops,
            "bytes": bytes(&task.problem), "first_s": (!candidate.is_peer()).then_some(candidate.first), "peak_bytes": candidate.peak_bytes,
            "checked": candidate.wrong.is_none(), "wrong": candidate.wrong, "peer": candidate.is_peer(), "ratio_to_best_peer": ratio,
            "kernel": kernel,
        });
        terminal.json(&line, false)?;
    } else {
        let spread = format!("{min:.3}..{max:.3}");
        let ratio = ratio.map_or_else(String::new, |ratio| format!(", {ratio:.2} times as fast as the best peer"));
        let wrong = if candidate.wrong.is_some() { ", WRONG" } else { "" };
        writeln!(terminal, "    {op:<8}{median:>11.3}{spread:>23}{:>6}{gflops:>11.2}  {adapter}{ratio}{wrong}", times.len())?;
        if let (Some(peak), true) = (candidate.peak_bytes, task.backward) {
            writeln!(terminal, "            {:.1} MB at most, of the whole process", peak as f64 / 1e6)?;
        }
        if !kernel.is_empty() {
            writeln!(terminal, "            {kernel}")?;
        }
    }
    Ok(())
}
