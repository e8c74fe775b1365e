//! `attn bench`: times attention on every backend and against peers, each answer checked.

mod candidate;
mod check;
mod decode;
mod decode_device;
mod first_calls;
mod machine;
mod overheads;
mod peer;
mod task;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use wgpu_attention::{Backend, DType};

use crate::backend::BackendsArg;
use crate::failure::Failure;
use crate::terminal::{ProgressBar, Terminal};
use crate::user_terms::TermArgs;
use candidate::{Candidate, Kernels};
use task::{Task, needs_data};

pub(crate) use check::{tensors_of, unit};
pub(crate) use task::{ShapeArgs, shape};

const EXAMPLES: &str = "\
Examples:
  attn bench                                   a prefill and a step of decoding
  attn bench --shape 1,32,8,1024,1024,128 --causal
  attn bench --shape 1,8,8,512,512,64 --shape 1,8,8,1,4096,64 --dtype f16
  attn bench --shape 1,8,8,2048,2048,64 --term causal --term window=255,0
  attn bench --shape 1,8,8,2048,2048,64 --visible 'at.key <= at.position'
  attn bench --backend vulkan --backend cpu --json >> results.jsonl
  attn bench --suite llama --suite bert        shapes of attn/suite.txt
  attn bench --decode --context 4k --context 128k --cache q8
  attn bench --overheads --backend vulkan      CPU time of a recorded attention, cold start
  attn bench --backward --backend cpu          forward and backward
  attn bench --shape 64,32,8,1,8192,128 --kv-lengths 16..8192 --dtype bf16
  attn bench --backward --shape 1,8,8,512,512,64 --bias 1,8,512,512
  attn bench --backend cpu --compare \"python3 benches/peers/peer.py torch\"

Every answer is checked against the f64 oracle before it is timed (rows picked from large shapes). A peer may be \
less exact than our bound, which is said; beyond 8 times the bound of its storage type its answer is WRONG.

Times are wall time in ms, from arrays in host memory to the answer in host memory; candidates are interleaved. \
Device ms is the time of a run on the device alone, of several recorded in one submit. GFLOP/s belong to the median and count 4 * D operations for each pair of a row and a key in the row's interval, \
3.5 times as many with --backward. `attn report` draws what --json writes.";

/// Arguments of `attn bench`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    shapes: ShapeArgs,
    #[command(flatten)]
    terms: TermArgs,
    /// Time the shape of attn/suite.txt called NAME, or all whose names begin with it; may be repeated
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    #[command(flatten)]
    backends: BackendsArg,
    /// Peer program to time, interleaved with ours; may be repeated. benches/peers/ has some
    #[arg(long, value_name = "COMMAND")]
    compare: Vec<String>,
    /// Load the kernels that `attn tune` found
    #[arg(long, value_name = "FILE")]
    tuned: Option<PathBuf>,
    /// Threads of the CPU path and of the peers, from 1 on [default: all]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Measure the overhead of a call instead, from a cold start to a recorded dispatch: the first call of each pass on
    /// a fresh device and the calls after it, by phase, with the kernels that they compile
    #[arg(long, conflicts_with_all = ["decode", "shape", "causal", "term", "bias", "constant_bias", "kv_lengths", "score", "visible", "table", "suite", "dtype", "compare", "tuned", "matrices", "backward", "fused", "seconds"])]
    overheads: bool,
    #[command(flatten)]
    decode: decode::Args,
    /// Time forward and backward passes, with the gradients of query, key and value
    #[arg(long)]
    backward: bool,
    /// Let weights be rounded to bf16 before they are multiplied by bf16 values, as PyTorch does: an error of up to 2^-8 of
    /// each weight
    #[arg(long)]
    bf16_weights: bool,
    /// Prefer kernels of cooperative matrices, where the device has them
    #[arg(long, conflicts_with = "tuned")]
    matrices: bool,
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
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global().map_err(|error| Failure::at(format!("--threads {threads}"), error))?;
    }
    let ShapeArgs { shape, causal, term, bias, kv_lengths, dtype, .. } = &args.shapes;
    let is_suite_alone = shape.is_empty() && !args.suite.is_empty();
    let terms = args.terms.read()?;
    let options = [
        causal.then_some("--causal"),
        (!term.is_empty()).then_some("--term"),
        bias.map(|_| "--bias"),
        kv_lengths.map(|_| "--kv-lengths"),
        terms.options().first().copied(),
    ];
    if let Some(option) = options.into_iter().flatten().next().filter(|_| is_suite_alone) {
        return Err(Failure::at(option, "is for --shape; the shapes of --suite have their own terms"));
    }
    if let Some(word) = term.iter().find(|word| needs_data(word)) {
        return Err(Failure::at(format!("--term {word}"), "needs an array, which only `attn run` takes"));
    }
    let mut tasks = if is_suite_alone { Vec::new() } else { args.shapes.tasks(&["1,8,8,512,512,64", "1,8,8,1,4096,64"])? };
    tasks.iter_mut().try_for_each(|task| task.add(&terms))?;
    tasks.extend(Task::suite(&args.suite, *dtype).map_err(|why| Failure::at("--suite", why))?);
    for task in &mut tasks {
        (task.backward, task.problem.allow_bf16_weights) = (args.backward, args.bf16_weights);
    }
    let backends = if args.backends.backend.is_empty() { &vec![Backend::Auto, Backend::Cpu] } else { &args.backends.backend };
    if args.overheads {
        return overheads::run(backends, args.json, terminal);
    }
    if args.decode.decode {
        return decode::run(&args.decode, backends, args.seconds, args.json, terminal);
    }
    let kernels = if args.matrices { Kernels::Matrices } else { args.tuned.as_deref().map_or(Kernels::Planned, Kernels::Tuned) };
    let mut candidates = candidate::all(backends, &args.compare, kernels, !(args.fused || args.backward))?;
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
    let (shape, term, bias, kv_lengths) = Default::default();
    let shapes = ShapeArgs { shape, causal: true, term, bias, constant_bias: false, kv_lengths, dtype: DType::F32 };
    let mut candidates = candidate::all(backends, &[], Kernels::Planned, true)?;
    shapes.tasks(&["1,8,8,512,512,64"])?.iter().try_for_each(|task| time(task, &mut candidates, 2.0, false, terminal))
}

fn time(task: &Task, candidates: &mut [Candidate], seconds: f64, json: bool, terminal: &mut Terminal) -> Result<(), Failure> {
    let tensors = check::tensors_of(task)?;
    let mut warm = Vec::new();
    for candidate in candidates {
        if candidate.warm_up(task, &tensors)? {
            warm.push(candidate);
        }
    }
    if warm.is_empty() {
        return Err(Failure::at(task, "no candidate supports it"));
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
    for candidate in &mut warm {
        candidate.visit_device(task, &tensors, Duration::from_secs_f64(share / 4.0))?;
    }
    drop(progress);
    // Ratios are relative to the fastest peer.
    let medians = warm.iter().filter(|candidate| candidate.is_peer()).filter_map(|candidate| machine::spread(&candidate.times));
    let best_peer = medians.map(|[_, median, _]| median).reduce(f64::min);
    let ratio = |candidate: &Candidate, median: f64| best_peer.filter(|_| !candidate.is_peer()).map(|peer| peer / median);
    if json {
        for candidate in &warm {
            let Some(spread) = machine::spread(&candidate.times) else { continue };
            terminal.json(&as_json(task, candidate, spread, ratio(candidate, spread[1])), false)?;
        }
        return Ok(());
    }
    writeln!(terminal, "  {task}, {:.1} MB of arrays", task.bytes() / 1e6)?;
    let mut rows = vec!["op\tmedian ms\tmin..max ms\tn\tGFLOP/s\tdevice ms\tGFLOP/s\ton".to_string()];
    for candidate in &warm {
        let Some([min, median, max]) = machine::spread(&candidate.times) else { continue };
        let faster = ratio(candidate, median).map(|ratio| format!("{ratio:.2} times as fast as the fastest peer"));
        let notes: Vec<String> = [Some(candidate.adapter.clone()), faster, candidate.exactness(task)].into_iter().flatten().collect();
        let (op, n, gflops, notes) = (&candidate.op, candidate.times.len(), task.flops() / (median * 1e6), notes.join(", "));
        let device = machine::spread(&candidate.device_times).map(|[_, median, _]| median);
        let device = device.map_or("\t".into(), |ms| format!("{ms:.3}\t{:.2}", task.flops() / (ms * 1e6)));
        rows.push(format!("{op}\t{median:.3}\t{min:.3}..{max:.3}\t{n}\t{gflops:.2}\t{device}\t{notes}"));
    }
    terminal.table(4, &rows)?;
    for candidate in &warm {
        let peak = candidate.peak.all.zip(candidate.peak.extra).filter(|_| task.backward);
        let peak =
            peak.map(|(all, extra)| format!("{:.1} MB more memory than before, {:.1} MB in all", extra as f64 / 1e6, all as f64 / 1e6));
        let kernel = Some(candidate.kernel.clone()).filter(|kernel| !kernel.is_empty());
        let notes: Vec<String> = [kernel, peak].into_iter().flatten().collect();
        if !notes.is_empty() {
            writeln!(terminal, "    {}: {}", candidate.who(), notes.join("; "))?;
        }
    }
    writeln!(terminal)?;
    Ok(())
}

fn as_json(task: &Task, candidate: &Candidate, [min, median, max]: [f64; 3], ratio: Option<f64>) -> Value {
    let Candidate { adapter, op, kernel, times, deviation, .. } = candidate;
    let device = machine::spread(&candidate.device_times);
    let mut line = json!({
        "adapter": adapter, "op": op, "name": task.name, "ms_median": median, "ms_min": min, "ms_max": max, "n": times.len(),
        "gflops": task.flops() / (median * 1e6), "bytes": task.bytes(),
        "device_ms_min": device.map(|[min, ..]| min), "device_ms_median": device.map(|[_, median, _]| median),
        "device_gflops": device.map(|[_, median, _]| task.flops() / (median * 1e6)),
        "first_s": (!candidate.is_peer()).then_some(candidate.first), "peak_bytes": candidate.peak.all, "extra_bytes": candidate.peak.extra,
        "checked": !candidate.is_wrong(), "wrong": candidate.is_wrong().then_some(&deviation.why),
        "error_of_bound": deviation.of_bound, "peer": candidate.is_peer(), "ratio_to_best_peer": ratio, "kernel": kernel,
    });
    if let (Some(line), Value::Object(task)) = (line.as_object_mut(), task.describe()) {
        line.extend(task);
    }
    line
}
