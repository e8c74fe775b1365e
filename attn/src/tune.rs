//! `attn tune`: finds the fastest kernels of a device.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use wgpu_attention::{Engine, Tuned};

use crate::arrays::{check_output, write_file};
use crate::backend::{self, BackendArg};
use crate::bench::{ShapeArgs, tensors_of};
use crate::failure::Failure;
use crate::terminal::{ProgressBar, Terminal, note};

const EXAMPLES: &str = "\
Examples:
  attn tune --backend vulkan                  prefill and decoding of common sizes
  attn tune --backend vulkan --shape 1,32,8,1,4096,128 --seconds 3
  attn tune --backend vulkan --out kernels.tsv
  attn bench --backend vulkan --tuned kernels.tsv

Every kernel that can compute a shape is checked against the CPU path and then timed, interleaved with the others. \
The winner serves all problems of the shape's class, by adapter, driver and version; it is written after each shape. \
The planner's own choice stays unless another kernel is 3 % faster, and an earlier winner stays unless it was tried \
and was slower.

A program loads the file with Engine::load_tuned.";

/// Arguments of `attn tune`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    shapes: ShapeArgs,
    #[command(flatten)]
    backend: BackendArg,
    /// Seconds to spend on each shape
    #[arg(long, default_value_t = 2.0, allow_hyphen_values = true, value_parser = crate::bench::parse_seconds)]
    seconds: f64,
    /// File to write the winners to; its entries for other devices and shapes are kept
    #[arg(long, value_name = "FILE", default_value = "wgpu-attention-tuned.tsv")]
    out: PathBuf,
    /// Print one JSON object per shape
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    check_output(&args.out, &[])?;
    let old = read(&args.out, false)?;
    let tasks = args.shapes.tasks(&["1,8,8,1024,1024,64", "1,32,8,1,4096,128"])?;
    let engine = backend::open_fused(&args.backend.backend, true)?;
    engine.load_tuned(&old)?;
    for task in tasks {
        let tensors = tensors_of(&task)?;
        let mut progress = ProgressBar::new(format!("{task}: tuning on {}", engine.chosen()));
        progress.report(0.0);
        let earlier = engine.tuned()?;
        let mut tuned = engine.tune(&task.problem, &tensors.inputs(), Duration::from_secs_f64(args.seconds))?;
        drop(progress);
        keep_earlier(&engine, &earlier, &mut tuned)?;
        write(args, &engine, &old)?;
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
        let best = tuned.trials.iter().filter_map(|trial| trial.milliseconds).fold(f64::INFINITY, f64::min);
        let row = |trial: &wgpu_attention::TunedKernel| {
            let mark = if trial.kernel == tuned.winner { "*" } else { " " };
            let time = trial.milliseconds.map_or("wrong, or refused".into(), |ms| format!("{ms:.3} ms, {:.2} x the least", ms / best));
            format!("{mark} {}\t{time}", trial.kernel)
        };
        terminal.table(2, &tuned.trials.iter().map(row).collect::<Vec<_>>())?;
        if tuned.untried > 0 {
            writeln!(terminal, "    {} more were not tried for lack of time: raise --seconds", tuned.untried)?;
        }
        writeln!(terminal)?;
    }
    Ok(())
}

/// Reads a file that `attn tune` wrote. A file that does not exist is empty, unless it must exist.
pub(crate) fn read(path: &Path, must_exist: bool) -> Result<String, Failure> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => return Ok(String::new()),
        text => text.map_err(|error| Failure::at(path.display(), error))?,
    };
    // Adapter, version, class, kernel.
    let is_own = |line: &str| line.split('\t').count() == 4 && line.split('\t').all(|field| !field.is_empty());
    match text.lines().position(|line| !is_own(line)) {
        Some(at) => Err(Failure::at(path.display(), format!("line {} is not one of `attn tune`: name another file", at + 1))),
        None => Ok(text),
    }
}

/// Restores the winner of `earlier` for the class unless it was tried and was slower, or wrong.
fn keep_earlier(engine: &Engine, earlier: &str, tuned: &mut Tuned) -> Result<(), Failure> {
    let own = format!("\t{}\t", tuned.class);
    let Some((line, (_, kernel))) = earlier.lines().find_map(|line| Some((line, line.split_once(&own)?))) else { return Ok(()) };
    let time = |kernel: &str| tuned.trials.iter().find(|trial| trial.kernel == kernel).map(|trial| trial.milliseconds);
    let is_better = match (time(kernel), time(&tuned.winner).flatten()) {
        (None, _) => true,
        (Some(Some(earlier)), Some(new)) => earlier <= new,
        _ => false,
    };
    if is_better && kernel != tuned.winner {
        engine.load_tuned(line)?;
        note(format_args!("{}: {kernel} won earlier and stays", tuned.class));
        tuned.winner = kernel.into();
    }
    Ok(())
}

/// Writes the winners and keeps the entries of other devices, versions and classes.
fn write(args: &Args, engine: &Engine, old: &str) -> Result<(), Failure> {
    let new = engine.tuned()?;
    // All fields but the kernel identify an entry.
    let whose = |line: &str| line.rsplit_once('\t').map(|(whose, _)| whose.to_string());
    let fresh: Vec<_> = new.lines().map(whose).collect();
    let kept: String = old.lines().filter(|line| !fresh.contains(&whose(line))).map(|line| format!("{line}\n")).collect();
    write_file(&args.out, (kept + &new).as_bytes())
}
