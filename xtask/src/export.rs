//! `cargo xtask export`: runs exported plans on Dawn by `web/run-plan.mjs` and compares the answers with the oracle.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use wgpu_attention::plan::{BufferExport, DeviceCaps, DeviceClass, Plan, PlanExport, Specialise, TensorExport};
use wgpu_attention::verify::{Case, Expected, Fill, Verdict, check_against, check_backward};
use wgpu_attention::{Algorithm, Dims, Error, Problem, Result};

use crate::host::{self, Tensors};
use crate::simulate::{self, Task};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Program that runs plans: `scripts/export/dawn.mjs`, beside an installed Dawn
    #[arg(long, value_name = "FILE")]
    host: PathBuf,
    /// Run only problems with TEXT in their names
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Run every problem, instead of one for each kernel, storage type and kind of problem
    #[arg(long)]
    all: bool,
}

/// Process of node that runs plans on Dawn.
struct Dawn {
    process: Child,
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
    adapter: Adapter,
}

/// First line of the process.
#[derive(Deserialize)]
struct Adapter {
    name: String,
    #[serde(rename = "subgroupSize")]
    subgroup_size: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Tensors(BTreeMap<String, Vec<u8>>),
    Error(String),
}

impl Dawn {
    fn start(program: &PathBuf) -> std::result::Result<Self, String> {
        let fail = |error: std::io::Error| format!("node {}: {error}", program.display());
        let mut process = Command::new("node").arg(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(fail)?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else { return Err("node has no pipes".into()) };
        let (mut output, mut line) = (BufReader::new(output), String::new());
        output.read_line(&mut line).map_err(fail)?;
        let adapter = serde_json::from_str(&line).map_err(|_| format!("node {}: {line}", program.display()))?;
        Ok(Self { process, pipes: RefCell::new((input, output)), adapter })
    }

    fn run(&self, plan: &PlanExport, given: &Tensors) -> Result<Tensors> {
        let device = |why: String| Error::Device { why: why.into() };
        let (input, output) = &mut *self.pipes.borrow_mut();
        let tensors = serde_json::to_string(given).map_err(|error| device(error.to_string()))?;
        // Line breaks in JSON stand between its words only.
        let plan_line = plan.to_json().replace('\n', " ");
        let mut line = String::new();
        let asked = writeln!(input, "{{\"plan\": {plan_line}, \"tensors\": {tensors}}}").and_then(|()| output.read_line(&mut line));
        asked.map_err(|error| device(error.to_string()))?;
        match serde_json::from_str(&line) {
            Ok(Answer::Tensors(mut tensors)) => {
                let result = |tensor: &TensorExport| Some((tensor.name, tensors.remove(tensor.name)?));
                Ok(plan.tensors.iter().filter_map(result).collect())
            }
            Ok(Answer::Error(why)) => Err(device(why)),
            Err(error) => Err(device(format!("the answer is no JSON: {error}: {line}"))),
        }
    }

    /// Kinds of devices that plans are made for: the least that WebGPU has, then with subgroups.
    fn caps(&self) -> Vec<(&'static str, DeviceCaps)> {
        let portable = DeviceCaps::webgpu_defaults();
        let software = DeviceCaps { class: DeviceClass::Software, slow_barriers: true, ..portable.clone() };
        let mut caps = vec![("portable", portable.clone()), ("software", software)];
        let size = self.adapter.subgroup_size;
        if size > 0 {
            let with = |class| DeviceCaps { class, subgroup_size: size, subgroup_max: size, ..portable.clone() };
            caps.extend([("with subgroups", with(DeviceClass::Discrete)), ("software, with subgroups", with(DeviceClass::Software))]);
        }
        caps
    }

    /// Computes a task and compares the answer with the oracle's. `edit` may change the plan first.
    fn check(&self, task: &Task, caps: &DeviceCaps, edit: &dyn Fn(&mut PlanExport)) -> Verdict {
        let run = |plan: &PlanExport, given: &Tensors| {
            let mut plan = plan.clone();
            edit(&mut plan);
            self.run(&plan, given)
        };
        let case = &task.case;
        match task.algorithm {
            Some(algorithm) => match Expected::of(&case.problem, &case.data.inputs()) {
                Ok(expected) => check_against(case, &expected, &|problem, inputs| host::attention(&run, caps, problem, inputs, algorithm)),
                Err(error) => Verdict::Failed(format!("the oracle refused it: {error}")),
            },
            None => check_backward(case, &|problem, inputs, backward, want| host::backward(&run, caps, problem, inputs, backward, want)),
        }
    }
}

impl Drop for Dawn {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// Runs the command. Returns true if every answer was right and every sabotage was noticed.
pub(crate) fn run(args: &Args) -> std::result::Result<bool, String> {
    let dawn = Dawn::start(&args.host)?;
    let tasks = simulate::tasks(1, args.only.as_deref(), 0).map_err(|error| error.to_string())?;
    let (mut seen, mut counts) = (HashSet::new(), [0; 3]);
    for (device, caps) in dawn.caps() {
        for task in &tasks {
            let caps = DeviceCaps { specialise: task.specialise, ..caps.clone() };
            let is_new = match simulate::plan(&task.case.problem, &caps, task.algorithm) {
                Ok(plan) => families(&plan, &task.case.problem).filter(|family| seen.insert(family.clone())).count() > 0,
                Err(Error::Unsupported { .. }) => false,
                Err(error) => return Err(format!("{} ({device}): {error}", task.case.name)),
            };
            if !(args.all || is_new) {
                continue;
            }
            let verdict = dawn.check(task, &caps, &|_| {});
            let count = match &verdict {
                Verdict::Passed => 0,
                Verdict::Failed(_) => 1,
                Verdict::Skipped(_) => 2,
            };
            counts[count] += 1;
            if count > 0 {
                eprintln!("{} ({device}): {verdict}", task.case.name);
            }
        }
    }
    let [passed, failed, skipped] = counts;
    eprintln!("{passed} passed, {failed} failed, {skipped} skipped on {}", dawn.adapter.name);
    Ok(failed == 0 && passed > 0 && sabotage(&dawn)?)
}

/// Families that a plan is an example of: its kernels by their names without sizes, the storage type of its keys, its options.
fn families(plan: &Plan, problem: &Problem) -> impl Iterator<Item = String> {
    let pass = plan.summary().split(' ').next().unwrap_or_default().to_string();
    let storage = format!("{pass} {}", problem.key.dtype);
    let options = [
        ("varlen", problem.varlen.is_some()),
        ("paged", problem.paged.is_some()),
        ("user terms", !problem.user_terms.is_empty()),
        ("dropout", problem.dropout.is_some()),
    ];
    let options = options.into_iter().filter(|&(_, has)| has).map(move |(name, _)| format!("{pass} {name}"));
    let name = |name: String| name.chars().filter(|letter| !letter.is_ascii_digit()).collect();
    plan.shaders().into_iter().map(move |shader| name(shader.name)).chain([storage]).chain(options)
}

/// Change of a plan, with its name.
type Change<'a> = (&'a str, &'a dyn Fn(&mut PlanExport));

/// Changes a plan in ways that must spoil its answer. Returns true if each was noticed.
fn sabotage(dawn: &Dawn) -> std::result::Result<bool, String> {
    let problem = Problem::new(Dims::self_attention(1, 2, 100, 32));
    let export = |problem: &Problem| Plan::new(problem, &DeviceCaps::webgpu_defaults(), Algorithm::Fused).and_then(|plan| plan.export());
    let scaled = Problem { scale: Some(0.5), ..problem.clone() };
    let (own, other) = (export(&problem).map_err(|error| error.to_string())?, export(&scaled).map_err(|error| error.to_string())?);
    let pairs = own.dispatches[0].params.iter().zip(&other.dispatches[0].params);
    // The last byte has the exponent.
    let byte = pairs.enumerate().rfind(|(_, (own, other))| own != other).map(|(at, (_, &other))| (at, other));
    let (at, value) = byte.ok_or("the scale is no byte of the parameters")?;
    let case = Case::new("sabotage", problem, Fill::seed(1)).map_err(|error| error.to_string())?;
    let task = Task { case, algorithm: Some(Algorithm::Fused), specialise: Specialise::Always };
    let changes: [Change<'_>; 4] = [
        ("a byte of the parameters", &|plan| plan.dispatches[0].params[at] = value),
        ("a grid that lacks a workgroup", &|plan| plan.dispatches[0].grid[0] -= 1),
        ("a dispatch that is left out", &|plan| drop(plan.dispatches.pop())),
        ("values bound as keys", &|plan| {
            let key = plan.dispatches[0].bindings.iter_mut().find(|binding| binding.buffer == BufferExport::Tensor("key"));
            key.into_iter().for_each(|key| key.buffer = BufferExport::Tensor("value"));
        }),
    ];
    let caps = DeviceCaps { specialise: task.specialise, ..DeviceCaps::webgpu_defaults() };
    let sound = dawn.check(&task, &caps, &|_| {});
    if sound != Verdict::Passed {
        return Err(format!("the sabotage has nothing to spoil: {sound}"));
    }
    let mut all = true;
    for (what, change) in changes {
        if !matches!(dawn.check(&task, &caps, change), Verdict::Failed(_)) {
            eprintln!("not noticed: {what}");
            all = false;
        }
    }
    eprintln!("sabotage: {}", if all { "all 4 changes were noticed" } else { "this check proves nothing" });
    Ok(all)
}
