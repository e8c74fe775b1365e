//! `cargo xtask simulate --sabotage`: removes each barrier and each test of a tail in turn; each must be noticed.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;
use wgpu_attention::plan::{DeviceCaps, KernelExport};
use wgpu_attention::verify::Verdict;
use wgpu_attention_simulator::Rule;

use super::device::{Device, Shaders};
use super::log::{Log, place_of};
use super::{Args, Planned, Task, devices, lane_order, tasks, verdicts};

/// Change of one line of a shader file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Edit {
    /// File and line.
    place: String,
    /// Text of the line, trimmed.
    words: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// A barrier is removed.
    NoBarrier,
    /// A condition always holds.
    Always,
    /// A condition never holds.
    Never,
}

/// Changes that need not be noticed: file, start of the line, reason.
const HARMLESS: &[(&str, &str, &str)] = &[
    ("shaders/", "if (!tile_shows_any(", "work for pairs that are masked one by one all the same"),
    ("shaders/", "if (!shown) {", "as above"),
    ("shaders/backward/square.wgsl", "if (first.", "as above"),
    ("shaders/lib/block.wgsl", "if (key >= max(first_key,", "as above"),
    ("shaders/backward/table_gradient.wgsl", "if (element >=", "work for lines whose elements are compared one by one all the same"),
    (
        "shaders/backward/rows_of_group.wgsl",
        "if (interval_of(item, middle)",
        "a search that finds more rows, whose pairs are masked one by one",
    ),
    ("shaders/lib/block.wgsl", "if (row < item.rows) {", "rows that do not exist are neither loaded nor stored"),
    ("shaders/lib/block.wgsl", "if (params.splits > 1u) {", "one split is all keys"),
    ("shaders/", "if (largest >= INFINITE) {", "the slow path for values that are not finite is right for all"),
    ("shaders/fused/tiles.wgsl", "if (largest_score_part >= INFINITE) {", "as above"),
    ("shaders/fused/tiles.wgsl", "if (ROWS == 1u) {", "a loop of one turn stays a loop"),
    ("shaders/fused/merge.wgsl", "if (workgroup == NO_WORK) {", "workgroups past the last have no pair of an item and a head either"),
    ("shaders/staged/weighted_values.wgsl", "if (first / TILE % PART_TILES", "parts join the sums sooner"),
    ("shaders/software/weighted_values", "if ((first", "as above"),
    ("shaders/software/", "if (i * LANES + j < HEAD_VECS) {", "a row's elements past its end are 0, their sums are not stored"),
    ("shaders/software/", "if (i * LANES + j < VALUE_VECS) {", "as above"),
    ("shaders/lib/row_reduce_subgroup.wgsl", "workgroupBarrier();", "nobody reads workgroup memory after the sums"),
    ("shaders/lib/row_reduce_workgroup.wgsl", "workgroupBarrier();", "the caller's own barriers are between the maxima and the sums"),
    ("shaders/staged/softmax.wgsl", "workgroupBarrier(); // between the last reduction", "the first reduction has none before it"),
    ("shaders/software/decode.wgsl", "if (n < half) {", "the other half's sums are not read"),
];

/// Number of runs of a change before it counts as unnoticed.
const MOST_RUNS: usize = 48;

/// Runs the command. Returns true if each change is noticed, or harmless by name.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    let mut tasks = tasks(args.seed, args.only.as_deref(), args.random).map_err(|error| error.to_string())?;
    // These widths and this storage type have the branches of all others.
    let narrow = |name: &str| ["f32 D=64", "f32 D=67", "f32 cache D=64"].iter().any(|start| name.starts_with(start));
    tasks.retain(|task| args.only.is_some() || narrow(&task.case.name));
    let shaders = Shaders::default();
    let sound: Vec<Sound<'_>> = tasks.par_iter().flat_map_iter(|task| sound(args, task, &shaders)).collect();
    let mut runs: BTreeMap<&Edit, Vec<&Sound<'_>>> = BTreeMap::new();
    for run in &sound {
        run.edits.iter().for_each(|edit| runs.entry(edit).or_default().push(run));
    }
    let runs: Vec<_> = runs.into_iter().collect();
    eprintln!("{} changes, {} sound runs to try them on", runs.len(), sound.len());
    let unnoticed: Vec<&Edit> = runs.par_iter().filter(|(edit, runs)| !is_noticed(args, edit, runs)).map(|&(edit, _)| edit).collect();
    let harmless = |edit: &&&Edit| HARMLESS.iter().any(|(file, words, _)| edit.place.starts_with(file) && edit.words.starts_with(words));
    let (harmless, bad): (Vec<&Edit>, Vec<&Edit>) = unnoticed.iter().partition(|edit| harmless(edit));
    bad.iter().for_each(|edit| eprintln!("not noticed: {:?}: {}", edit.kind, edit.place));
    eprintln!("{} noticed, {} harmless by name, {} not noticed", runs.len() - unnoticed.len(), harmless.len(), bad.len());
    Ok(bad.is_empty())
}

/// Run whose answer is right, and the possible changes of the lines that it runs.
struct Sound<'a> {
    task: &'a Task,
    caps: DeviceCaps,
    lanes: u32,
    /// Findings without any change.
    findings: BTreeSet<(String, Rule)>,
    edits: Vec<Edit>,
}

/// Returns the runs of a task on the devices where its answer is right.
fn sound<'a>(args: &Args, task: &'a Task, shaders: &Shaders) -> Vec<Sound<'a>> {
    let mut sound = Vec::new();
    for Planned { caps, plan, lanes } in devices(args, task).0 {
        let log = Log::default();
        if simulated(args, task, (&caps, lanes), shaders, &log, None) {
            let ran = log.places_that_ran();
            let edits = plan.kernels.iter().flat_map(|kernel| edits(kernel, &ran)).collect();
            sound.push(Sound { task, caps, lanes, findings: log.findings(), edits });
        }
    }
    sound
}

/// Runs a task on a device, with a change if there is one. Returns true if the answer is right.
fn simulated(
    args: &Args,
    task: &Task,
    (caps, subgroup_size): (&DeviceCaps, u32),
    shaders: &Shaders,
    log: &Log,
    edit: Option<Edit>,
) -> bool {
    let (caps, seed, lanes) = (caps.clone(), args.seed, lane_order(args));
    let device = Device { caps, subgroup_size, seed, lanes, shaders, log, edit, most_iterations: 100_000 };
    verdicts(task, std::slice::from_ref(&device)).iter().all(|verdict| !matches!(verdict, Verdict::Failed(_)))
}

/// Returns the changes of a kernel's lines that ran. A branch that leaves is changed only if it was taken.
fn edits(kernel: &KernelExport, ran: &BTreeSet<String>) -> Vec<Edit> {
    let mut edits = Vec::new();
    let lines: Vec<&str> = kernel.text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let place = place_of(kernel, at as u32 + 1);
        let words = line.trim().to_string();
        let next = lines.get(at + 1).map_or("", |next| next.trim());
        let leaves = ["return;", "continue;", "break;"].contains(&next);
        let compares = [" < ", " >= ", " <= ", " > "].iter().any(|sign| words.contains(sign));
        let taken = ran.contains(&place_of(kernel, at as u32 + 2));
        let kinds: &[Kind] = if place.starts_with("prelude") || !ran.contains(&place) {
            &[]
        } else if words.starts_with("workgroupBarrier();") {
            &[Kind::NoBarrier]
        } else if !words.starts_with("if (") || !words.ends_with('{') {
            &[]
        } else if leaves {
            if taken { &[Kind::Never] } else { &[] }
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
    /// Returns the kernel's text with the change.
    pub(crate) fn apply(&self, kernel: &KernelExport) -> String {
        let change = |(at, line): (usize, &str)| {
            if place_of(kernel, at as u32 + 1) != self.place {
                return line.to_string();
            }
            match self.kind {
                Kind::NoBarrier => line.replacen("workgroupBarrier();", "", 1),
                // The condition stays, so that its variables are still used.
                Kind::Always => line.replacen("if (", "if (true || ", 1),
                Kind::Never => line.replacen("if (", "if (false && ", 1),
            }
        };
        kernel.text.lines().enumerate().map(|line| change(line) + "\n").collect()
    }
}

fn is_noticed(args: &Args, edit: &Edit, runs: &[&Sound<'_>]) -> bool {
    // Samples the runs, which are ordered by problem, from the end: the odd problems come last.
    let step = runs.len().div_ceil(MOST_RUNS).max(1);
    runs.iter().rev().step_by(step).any(|run| {
        let log = Log::default();
        let right = simulated(args, run.task, (&run.caps, run.lanes), &Shaders::default(), &log, Some(edit.clone()));
        !right || !log.findings().is_subset(&run.findings)
    })
}
