//! The process that does the work: one line of JSON for each thing that its parent must know.

use std::io::Write;

use serde::{Deserialize, Serialize};

use super::Args;
use super::examine::{Engines, Outcome, draw, examine, remember_panics, smallest};
use super::state::{Failure, Kind};

/// A worker with more memory than this ends, and another one goes on: some drivers leak.
const MOST_MEMORY: u64 = 3 << 30;

/// What a worker says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Message {
    /// It begins with this seed, or is still at it.
    Seed(u64),
    Passed,
    /// Why.
    Skipped(String),
    Failed(Failure),
}

/// Works through seeds until the count is over, something fails, or memory is short.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let (Some(backend), Some(first)) = (args.backend.first(), args.seed) else { return Err("a worker needs a backend and a seed".into()) };
    let engines = Engines::open(backend, args.plant)?;
    remember_panics();
    for seed in first..first.saturating_add(args.count.unwrap_or(u64::MAX)) {
        say(&Message::Seed(seed))?;
        let engine = engines.of(seed);
        let case = match draw(backend, seed) {
            Ok(case) => case,
            Err(error) => return say(&Message::Failed(Failure::bare(seed, Kind::Wrong, format!("the generator: {error}")))),
        };
        match examine(&case, &engine) {
            Outcome::Passed => say(&Message::Passed)?,
            Outcome::Skipped(reason) => say(&Message::Skipped(reason))?,
            Outcome::Failed(kind, report) => {
                let smallest = smallest(case, &engine, || say(&Message::Seed(seed)));
                // What failed may have taken the device with it: the next worker opens its own.
                return say(&Message::Failed(Failure { seed, kind, report: format!("{}: {report}", engine.name), smallest }));
            }
        }
        if resident_bytes().is_some_and(|bytes| bytes > MOST_MEMORY) {
            break;
        }
    }
    Ok(())
}

fn say(message: &Message) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, message).map_err(|error| error.to_string())?;
    writeln!(out).and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}"))
}

/// Memory of this process, where Linux says it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}
