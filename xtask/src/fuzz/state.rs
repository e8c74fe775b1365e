//! State that the fuzz keeps from one run to the next.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Progress of each backend.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct State {
    backends: BTreeMap<String, Progress>,
}

/// Progress of a backend in all runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Progress {
    /// Next seed.
    pub(super) next: u64,
    pub(super) passed: u64,
    /// Number of those that also passed from a cache on the device.
    #[serde(default)]
    pub(super) cached: u64,
    pub(super) skipped: u64,
    pub(super) seconds: f64,
    pub(super) failures: Vec<Failure>,
    /// Reasons for skips, with their counts.
    pub(super) skips: BTreeMap<String, u64>,
}

/// Problem that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) kind: Kind,
    /// Description of the failure.
    pub(super) report: String,
    /// Smallest problem that still fails, with its data; empty if the problem was not shrunk.
    pub(super) smallest: String,
}

impl Failure {
    /// Creates a failure that was not shrunk.
    pub(super) const fn bare(seed: u64, kind: Kind, report: String) -> Self {
        Self { seed, kind, report, smallest: String::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Wrong,
    Panic,
    /// No answer in time.
    Hang,
    /// The process died.
    Crash,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Wrong => "WRONG",
            Self::Panic => "PANIC",
            Self::Hang => "HANG",
            Self::Crash => "CRASH",
        })
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self { next: 1, passed: 0, cached: 0, skipped: 0, seconds: 0.0, failures: Vec::new(), skips: BTreeMap::new() }
    }
}

impl State {
    /// Reads the state file; the state is empty if there is none yet.
    pub(super) fn read(file: Option<&Path>) -> Result<Self, String> {
        let Some(file) = file.filter(|file| file.exists()) else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
    }

    pub(super) fn take(&self, backend: &str) -> Progress {
        self.backends.get(backend).cloned().unwrap_or_default()
    }

    /// Saves the progress of a backend, in the file too, which is never half written.
    pub(super) fn save(&mut self, file: Option<&Path>, backend: &str, progress: &Progress) -> Result<(), String> {
        self.backends.insert(backend.to_string(), progress.clone());
        let Some(file) = file else { return Ok(()) };
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        let draft = file.with_extension("draft");
        let saved = std::fs::write(&draft, text).and_then(|()| std::fs::rename(&draft, file));
        saved.map_err(|error| format!("{}: {error}", file.display()))
    }
}
