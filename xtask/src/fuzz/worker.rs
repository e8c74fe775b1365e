//! Worker process: prints one line of JSON for each message to its parent.

use std::io::Write;

use serde::{Deserialize, Serialize};

use wgpu_attention::Error;

use super::examine::{Engines, Outcome, draw, examine, remember_panics, smallest};
use super::state::{Failure, Kind};
use super::{Args, REFUSED_TEXT};
use crate::memory::resident_bytes;

/// Memory limit in bytes. A worker above it ends and another one goes on, because some drivers leak.
const MOST_MEMORY: u64 = 3 << 30;

/// Message of a worker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Message {
    /// The worker begins with this seed, or still works on it.
    Seed(u64),
    /// The problem passed, and if this is true also from a cache on the device.
    Passed(bool),
    /// The problem was skipped, for this reason.
    Skipped(String),
    Failed(Failure),
}

/// Works through seeds until the count is reached, something fails, or the memory limit is exceeded.
pub(super) fn run(args: &Args) -> Result<(), String> {
    let (Some(backend), Some(first)) = (args.backend.first(), args.seed) else { return Err("a worker needs a backend and a seed".into()) };
    let engines = Engines::open(backend, args.terms, args.plant)?;
    remember_panics();
    for seed in first..first.saturating_add(args.count.unwrap_or(u64::MAX)) {
        say(&Message::Seed(seed))?;
        let engine = engines.of(seed);
        let case = match draw(backend, args.terms, seed) {
            Ok(Ok(case)) => case,
            Ok(Err(error)) => {
                say(&Message::Skipped(format!("{REFUSED_TEXT}: {}", reason(&error))))?;
                continue;
            }
            Err(error) => return say(&Message::Failed(Failure::bare(seed, Kind::Wrong, format!("the generator: {error}")))),
        };
        match examine(&case, &engine) {
            Outcome::Passed { cached } => say(&Message::Passed(cached))?,
            Outcome::Skipped(reason) => say(&Message::Skipped(reason))?,
            Outcome::Failed(kind, report) => {
                let smallest = smallest(case, &engine, || say(&Message::Seed(seed)));
                // The failure may have lost the device; the next worker opens its own.
                return say(&Message::Failed(Failure { seed, kind, report: format!("{}: {report}", engine.name), smallest }));
            }
        }
        if resident_bytes().is_some_and(|bytes| bytes > MOST_MEMORY) {
            break;
        }
    }
    Ok(())
}

/// Reason of an error without the place in the text, so that equal reasons are counted together.
fn reason(error: &Error) -> String {
    let text = error.to_string();
    text.rsplit(": ").next().unwrap_or_default().chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn say(message: &Message) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, message).map_err(|error| error.to_string())?;
    writeln!(out).and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}"))
}
