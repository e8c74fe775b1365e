//! `cargo xtask simulate --sabotage`: takes out each barrier and each test of a tail in turn, and asks whether the simulator notices.

use std::collections::BTreeMap;

use rayon::prelude::*;
use wgpu_attention::plan::{DeviceCaps, KernelExport};
use wgpu_attention::verify::Verdict;

use super::device::{Device, Shaders};
use super::log::Log;
use super::{Args, Task, devices, lanes, tasks, verdicts};

/// A change of one line of our files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edit {
    /// File and line.
    place: String,
    /// The line, trimmed.
    words: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A barrier taken out.
    NoBarrier,
    /// A condition that always holds.
    Always,
    /// A condition that never holds.
    Never,
}

/// Changes that nobody needs to notice: file, start of the line, why.
const HARMLESS: &[(&str, &str, &str)] = &[];

/// Runs that a change is given before it counts as unnoticed.
const MOST_RUNS: usize = 6;

/// True if each change is noticed, or harmless by name.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    let mut tasks = tasks(args).map_err(|error| error.to_string())?;
    // One width and one storage type have the branches that others have.
    let narrow = |name: &str| ["f32 D=64", "f32 D=67", "f32 cache D=64"].iter().any(|start| name.starts_with(start));
    tasks.retain(|task| args.only.is_some() || narrow(&task.case.name));
    let shaders = Shaders::default();
    let clean: Vec<(&Task, DeviceCaps, Vec<Edit>)> = tasks.par_iter().flat_map_iter(|task| sound(args, task, &shaders)).collect();
    let mut runs: BTreeMap<&Edit, Vec<(&Task, &DeviceCaps)>> = BTreeMap::new();
    for (task, caps, edits) in &clean {
        edits.iter().for_each(|edit| runs.entry(edit).or_default().push((*task, caps)));
    }
    let runs: Vec<_> = runs.into_iter().collect();
    println!("{} changes, {} sound runs to try them on", runs.len(), clean.len());
    let unnoticed: Vec<&Edit> = runs.par_iter().filter(|(edit, runs)| !is_noticed(args, edit, runs)).map(|&(edit, _)| edit).collect();
    let harmless = |edit: &&&Edit| HARMLESS.iter().any(|(file, words, _)| edit.place.starts_with(file) && edit.words.starts_with(words));
    let (harmless, bad): (Vec<&Edit>, Vec<&Edit>) = unnoticed.iter().partition(|edit| harmless(&edit));
    bad.iter().for_each(|edit| println!("not noticed: {}: {:?}: {}", edit.place, edit.kind, edit.words));
    println!("{} noticed, {} harmless by name, {} not noticed", runs.len() - unnoticed.len(), harmless.len(), bad.len());
    Ok(bad.is_empty())
}

/// The devices on which a task runs without a finding, and the changes that can be made to its kernels.
fn sound<'a>(args: &Args, task: &'a Task, shaders: &Shaders) -> Vec<(&'a Task, DeviceCaps, Vec<Edit>)> {
    let (devices, _) = devices(args, task);
    let sound = devices.into_iter().filter(|(caps, _)| !finds(args, task, caps, shaders, None));
    sound.map(|(caps, export)| (task, caps, export.kernels.iter().flat_map(edits).collect())).collect()
}

/// True if a run has a finding or a wrong answer.
fn finds(args: &Args, task: &Task, caps: &DeviceCaps, shaders: &Shaders, edit: Option<Edit>) -> bool {
    let log = Log::default();
    let device = Device { caps: caps.clone(), seed: args.seed, lanes: lanes(args), shaders, log: &log, edit, most_iterations: 100_000 };
    let verdicts = verdicts(task, std::slice::from_ref(&device));
    !log.is_empty() || verdicts.iter().any(|verdict| matches!(verdict, Verdict::Failed(_)))
}

fn edits(kernel: &KernelExport) -> Vec<Edit> {
    let mut edits = Vec::new();
    let lines: Vec<&str> = kernel.text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let place = kernel.locate(at as u32 + 1);
        let words = line.trim().to_string();
        let next = lines.get(at + 1).map_or("", |next| next.trim());
        let leaves = ["return;", "continue;", "break;"].contains(&next);
        let compares = [" < ", " >= ", " <= ", " > "].iter().any(|sign| words.contains(sign));
        let kinds: &[Kind] = if place.starts_with("prelude") {
            &[]
        } else if words.starts_with("workgroupBarrier();") {
            &[Kind::NoBarrier]
        } else if !words.starts_with("if (") || !words.ends_with('{') {
            &[]
        } else if leaves {
            &[Kind::Never]
        } else if compares {
            &[Kind::Always]
        } else {
            &[]
        };
        edits.extend(kinds.iter().map(|&kind| Edit { place: place.clone(), words: words.clone(), kind }));
    }
    edits
}

impl Edit {
    /// The kernel's text with the change.
    pub(crate) fn apply(&self, kernel: &KernelExport) -> String {
        let change = |(at, line): (usize, &str)| {
            if kernel.locate(at as u32 + 1) != self.place {
                return line.to_string();
            }
            match self.kind {
                Kind::NoBarrier => line.replacen("workgroupBarrier();", "", 1),
                // The condition stays, so that what it names is used.
                Kind::Always => line.replacen("if (", "if (true || ", 1),
                Kind::Never => line.replacen("if (", "if (false && ", 1),
            }
        };
        kernel.text.lines().enumerate().map(|line| change(line) + "\n").collect()
    }
}

fn is_noticed(args: &Args, edit: &Edit, runs: &[(&Task, &DeviceCaps)]) -> bool {
    // Spread over the runs, which are in the order of their problems.
    let step = runs.len().div_ceil(MOST_RUNS).max(1);
    runs.iter().step_by(step).any(|(task, caps)| finds(args, task, caps, &Shaders::default(), Some(edit.clone())))
}
