//! `attn tune`: finds the fastest kernels of a device.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use wgpu_attention::{Backend, DType, Engine};

use crate::arrays::write_file;
use crate::backend;
use crate::bench::{Shape, Task, tensors};
use crate::failure::Failure;
use crate::terminal::{ProgressBar, Terminal};

const EXAMPLES: &str = "\
Examples:
  attn tune                                          prefill and decoding of common sizes, on the GPU
  attn tune --backend vulkan --shape 1,32,8,1,4096,128 --seconds 3
  attn tune --out kernels.tsv && attn bench --tuned kernels.tsv

Each kernel that can compute a shape is tried: its answer is held against the CPU path, then it is timed in turns with the others. What
wins is kept for all problems of the shape's class, by adapter, driver and version. Where the planner's own choice is not beaten by 3 %
it stays. A program takes the file over with Engine::load_tuned.";

/// Arguments of `attn tune`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Batch, query heads, key/value heads, queries, keys, head_dim; may be repeated [default: one prefill, one step of decoding]
    #[arg(long, value_name = "B,H,HKV,LQ,LK,D")]
    shape: Vec<Shape>,
    /// Apply a causal mask, bottom-right aligned
    #[arg(long)]
    causal: bool,
    /// Storage type of query, key, value and output: f32, f16 or bf16
    #[arg(long, default_value = "f32")]
    dtype: DType,
    /// Adapter: auto, vulkan, gl, metal, dx12 or part of its name
    #[arg(long, value_name = "BACKEND", value_parser = backend::parse, default_value = "auto")]
    backend: Backend,
    /// Seconds to spend on each shape
    #[arg(long, default_value_t = 2.0, value_parser = crate::bench::parse_seconds)]
    seconds: f64,
    /// File to write the winners to; its entries for other devices and shapes are kept
    #[arg(long, value_name = "FILE", default_value = "wgpu-attention-tuned.tsv")]
    out: PathBuf,
    /// Print one JSON object per shape
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let engine = backend::open_tunable(&args.backend)?;
    let old = match std::fs::read_to_string(&args.out) {
        Ok(old) => old,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Failure::input(format!("--out {}: {error}", args.out.display()))),
    };
    engine.load_tuned(&old)?;
    let mut shapes = args.shape.clone();
    if shapes.is_empty() {
        for shape in ["1,8,8,1024,1024,64", "1,32,8,1,4096,128"] {
            shapes.push(shape.parse().map_err(Failure::Input)?);
        }
    }
    for shape in shapes {
        let task = Task::new(shape, args.dtype, args.causal);
        let tensors = tensors(&task.problem)?;
        let mut progress = ProgressBar::new(format!("{task}: tuning on {}", engine.chosen()));
        progress.report(0.0);
        let tuned = engine.tune(&task.problem, &tensors.inputs(), Duration::from_secs_f64(args.seconds))?;
        drop(progress);
        let best = tuned.trials.iter().filter_map(|trial| trial.milliseconds).fold(f64::INFINITY, f64::min);
        if args.json {
            let trials: Vec<_> = tuned.trials.iter().map(|trial| json!({ "kernel": trial.kernel, "ms": trial.milliseconds })).collect();
            let line = json!({
                "adapter": engine.chosen(), "class": tuned.class, "winner": tuned.winner, "planned": tuned.planned, "trials": trials,
                "untried": tuned.untried,
            });
            terminal.json(&line, false)?;
            continue;
        }
        writeln!(terminal, "  {task}\n  {}", tuned.class)?;
        for trial in &tuned.trials {
            let time = trial.milliseconds.map_or("wrong, or refused".into(), |ms| format!("{ms:.3} ms, {:.2} of the best", ms / best));
            let mark = if trial.kernel == tuned.winner { "*" } else { " " };
            writeln!(terminal, "  {mark} {:<26} {time}", trial.kernel)?;
        }
        if tuned.untried > 0 {
            writeln!(terminal, "    {} more had no time: --seconds gives them some", tuned.untried)?;
        }
        writeln!(terminal)?;
    }
    keep(args, &engine, &old)
}

/// Writes the winners and keeps the entries of other devices, versions and classes.
fn keep(args: &Args, engine: &Engine, old: &str) -> Result<(), Failure> {
    let new = engine.tuned()?;
    // A line has adapter, version, class and kernel; all but the kernel identify the entry.
    let whose = |line: &str| line.rsplit_once('\t').map(|(whose, _)| whose.to_string());
    let fresh: Vec<_> = new.lines().map(whose).collect();
    let kept: String = old.lines().filter(|line| !fresh.contains(&whose(line))).map(|line| format!("{line}\n")).collect();
    write_file(&args.out, (kept + &new).as_bytes())
}
