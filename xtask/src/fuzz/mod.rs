//! `cargo xtask fuzz`: random problems on every backend, compared with the oracle for as long as one likes.
//!
//! A worker process draws the problems of consecutive seeds, computes outputs and gradients on the backend and compares
//! them with the oracle's. A failing problem is shrunk until nothing can be left out. The parent reads the messages: it
//! counts, detects a worker that hangs or dies, records the seed, and starts another worker after it.

mod cached;
mod examine;
mod state;
mod supervise;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use wgpu_attention::gpu;

use state::{Failure, Progress, State};

const EXAMPLES: &str = "Examples:
  cargo xtask fuzz
      a minute, shared by the CPU path and every adapter
  cargo xtask fuzz --backend cpu --count 1000000 --state target/fuzz.json
      a million problems; started again it goes on where it left off
  cargo xtask fuzz --backend 'llvmpipe gl' --minutes 60
      an adapter by words of its name and its wgpu backend
  cargo xtask fuzz --terms --backend cpu --count 2000
      random texts of users' terms, each with random options
  cargo xtask fuzz --backend swiftshader --seed 1234 --count 1
      one problem again

Exit code: 0 if nothing failed, 1 if something did, 2 if it could not run.";

#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Backend: cpu, or words of an adapter's name and wgpu backend; may be repeated [default: cpu and every adapter]
    #[arg(long, value_name = "BACKEND")]
    backend: Vec<String>,
    /// First seed; problems have consecutive seeds [default: 1, or where the state file left off]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of problems on each backend
    #[arg(long)]
    count: Option<u64>,
    /// Minutes for all backends together [default: 1 if there is no --count]
    #[arg(long)]
    minutes: Option<f64>,
    /// File that keeps the progress and the failures of each backend; created if there is none
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Seconds after which a problem without an answer counts as a hang
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    hang: u64,
    /// Number of failures after which a backend is abandoned
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    failures: usize,
    /// Give every problem a random text as its user's term; more than one in twenty that is refused is a failure
    #[arg(long)]
    terms: bool,
    /// Print one JSON object for each failure, and one for each backend at its end
    #[arg(long)]
    json: bool,
    /// Run as a worker, for this program's own use
    #[arg(long, hide = true)]
    worker: bool,
    /// Plant a mistake, for the tests of this program
    #[arg(long, hide = true, value_enum)]
    plant: Option<examine::Plant>,
}

/// Runs until the time or the count is over. Returns true if nothing failed in this run.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    if args.worker {
        return worker::run(args).map(|()| true);
    }
    let backends = if args.backend.is_empty() { every_backend() } else { args.backend.clone() };
    let mut state = State::read(args.state.as_deref())?;
    let minutes = args.minutes.or(args.count.is_none().then_some(1.0));
    let time = minutes.map(|minutes| Duration::try_from_secs_f64(60.0 * minutes / backends.len() as f64)).transpose();
    let time = time.map_err(|_| "--minutes must be a time of at least 0")?;
    let mut sound = true;
    for backend in &backends {
        let mut progress = state.take(backend);
        progress.next = args.seed.unwrap_or(progress.next);
        let (first, known) = (progress.next, progress.failures.len());
        supervise::run(args, backend, time, &mut progress, |progress| state.save(args.state.as_deref(), backend, progress))?;
        sound &= progress.failures.len() == known && few_refused(&progress);
        conclude(args, backend, first, &progress)?;
    }
    Ok(sound)
}

/// Begin of the reason for a skip because the text of a user's term was refused.
const REFUSED_TEXT: &str = "the text is refused";

/// True if at most one text in twenty was refused, or too few were drawn to tell.
fn few_refused(progress: &Progress) -> bool {
    let refused: u64 = progress.skips.iter().filter(|(reason, _)| reason.starts_with(REFUSED_TEXT)).map(|(_, count)| count).sum();
    progress.passed + progress.skipped < 200 || 20 * refused <= progress.passed + progress.skipped
}

pub(crate) fn every_backend() -> Vec<String> {
    let adapters = pollster::block_on(gpu::list());
    let names = adapters.into_iter().map(|adapter| format!("{} {}", adapter.name, adapter.backend));
    std::iter::once("cpu".to_string()).chain(names).collect()
}

/// Prints a failure at once, with the command that reproduces it.
fn tell(args: &Args, backend: &str, failure: &Failure) -> Result<(), String> {
    let Failure { seed, kind, report, smallest } = failure;
    if args.json {
        return print(&serde_json::json!({ "backend": backend, "failure": failure }).to_string());
    }
    print(&format!("{backend}, seed {seed}: {kind}: {report}"))?;
    if !smallest.is_empty() {
        print(&format!("    smallest: {smallest}"))?;
    }
    let terms = if args.terms { "--terms " } else { "" };
    print(&format!("    again: cargo xtask fuzz {terms}--backend '{backend}' --seed {seed} --count 1"))
}

/// Prints the summary of a backend.
fn conclude(args: &Args, backend: &str, first: u64, progress: &Progress) -> Result<(), String> {
    if args.json {
        return print(&serde_json::json!({ "backend": backend, "first": first, "progress": progress }).to_string());
    }
    let Progress { next, passed, cached, skipped, seconds, failures, skips } = progress;
    let (done, failed) = (passed + skipped + failures.len() as u64, failures.len());
    let rate = done as f64 / seconds.max(1e-3);
    print(&format!(
        "{backend}: seeds {first} to {next}; in all {passed} passed ({cached} also from a cache), {skipped} skipped, {failed} failed, {rate:.1} a second"
    ))?;
    for (reason, count) in skips {
        print(&format!("    skipped {count} x: {reason}"))?;
    }
    Ok(())
}

pub(crate) fn print(line: &str) -> Result<(), String> {
    use std::io::Write;
    writeln!(std::io::stdout(), "{line}").map_err(|error| format!("standard output: {error}"))
}
