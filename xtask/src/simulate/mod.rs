//! `cargo xtask simulate`: runs whole plans on the simulator and compares the answers with the oracle.

mod device;
mod gallery;
mod log;
mod others;
mod sabotage;
mod variants;

use std::collections::HashSet;

use rayon::prelude::*;
use wgpu_attention::plan::{DeviceCaps, DeviceClass, Plan, PlanExport, Specialise};
use wgpu_attention::verify::{Case, Expected, ExpectedGradients, Fill, Verdict, check_against, check_backward_against, random, table};
use wgpu_attention::{Algorithm, Error, Problem, WantGradients};
use wgpu_attention_simulator::LaneOrder;

use crate::kernels::{self, SHORT};
use device::{Device, Shaders};
use log::Log;
use variants::variants;
pub(crate) use variants::with_user_terms;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Run only problems with TEXT in their names, for example `decode`; full coverage is then not required
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Simulate only devices with subgroups of this size; 0 is none
    #[arg(long, value_name = "LANES")]
    subgroup: Option<u32>,
    /// Seed of the data, of the orders of invocations and lanes, and of the random problems
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of random problems, besides the ones that need every kernel
    #[arg(long, value_name = "COUNT", default_value_t = 40)]
    random: u64,
    /// Run only every N-th problem, beginning with the one of the seed; full coverage is then not required
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Order the lanes of a subgroup by local_invocation_index, as most drivers do
    #[arg(long)]
    lanes_in_order: bool,
    /// Remove each barrier and each test of a tail in turn; each removal must be noticed
    #[arg(long)]
    sabotage: bool,
    /// Print the coverage of each kernel
    #[arg(long)]
    verbose: bool,
}

/// Subgroup sizes of the devices; 0: no subgroups.
const SUBGROUPS: [u32; 6] = [0, 4, 8, 16, 32, 64];
const CLASSES: [DeviceClass; 3] = [DeviceClass::Software, DeviceClass::Integrated, DeviceClass::Discrete];

/// Problem with its data, and how to compute it.
pub(crate) struct Task {
    pub(crate) case: Case,
    /// Algorithm of the forward pass; `None`: the gradients.
    pub(crate) algorithm: Option<Algorithm>,
    pub(crate) specialise: Specialise,
}

/// Runs the command. Returns true if nothing was found and every statement ran.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    if args.sabotage {
        return sabotage::run(args);
    }
    let mut tasks = tasks(args.seed, args.only.as_deref(), args.random).map_err(|error| error.to_string())?;
    if args.every > 1 {
        let (first, step) = ((args.seed % args.every) as usize, args.every as usize);
        tasks = tasks.into_iter().skip(first).step_by(step).collect();
    }
    let (shaders, log) = (Shaders::default(), Log::default());
    let started = std::time::Instant::now();
    let run = |task: &Task| {
        let started = std::time::Instant::now();
        let runs = simulate(args, task, &shaders, &log);
        if args.verbose {
            eprintln!("{:.2} s for {runs} runs of {}", started.elapsed().as_secs_f64(), task.case.name);
        }
        runs
    };
    let runs: usize = tasks.par_iter().map(run).sum();
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let runs = runs + gallery::run(args, &shaders, &log, wanted)?;
    let runs = runs + others::run(args.seed, lane_order(args), &shaders, &log, wanted);
    eprintln!("{} problems, {runs} runs in {:.0} s", tasks.len(), started.elapsed().as_secs_f64());
    let (found, unreached) = log.print(args.verbose);
    let whole = args.only.is_none() && args.subgroup.is_none() && args.every == 1;
    Ok(found == 0 && (!whole || unreached == 0))
}

/// Returns problems that together need every kernel, those with `only` in their names, and some random ones.
pub(crate) fn tasks(seed: u64, only: Option<&str>, random_tasks: u64) -> Result<Vec<Task>, Error> {
    let mut tasks = Vec::new();
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    for (at, (name, problem, algorithm, specialise)) in kernels::cases(&SHORT).into_iter().enumerate() {
        let others = variants(&problem, algorithm).into_iter().map(|(what, problem)| (format!("{name}, {what}"), problem));
        for (name, problem) in std::iter::once((name.clone(), problem)).chain(others).filter(|(name, _)| wanted(name)) {
            // Kernels have a slow path for a visible NaN.
            for nan in [false, true] {
                let fill = Fill { nan, ..Fill::seed(seed.wrapping_add(at as u64)) };
                let case = Case::new(name.clone(), problem.clone(), fill)?;
                // The cases ask for specialised variants of gradients alone.
                if algorithm.is_none() && problem.dims.head_dim < 80 {
                    tasks.push(Task { case: case.clone(), algorithm, specialise: Specialise::Never });
                }
                tasks.push(Task { case, algorithm, specialise });
            }
        }
    }
    let drawn = (0..random_tasks).map(|at| random(seed.wrapping_add(at))).collect::<Result<Vec<_>, _>>()?;
    for (at, case) in table()?.into_iter().chain(drawn).enumerate().filter(|(_, case)| wanted(&case.name)) {
        let computed: &[(Option<Algorithm>, Specialise)] = &[
            (Some(Algorithm::Auto), Specialise::Always),
            (None, Specialise::Always),
            (Some(Algorithm::Staged), Specialise::Always),
            (Some(Algorithm::Fused), Specialise::Never),
            (None, Specialise::Never),
        ];
        // Every problem as it is planned by default, every third one in other ways too.
        let computed = if at % 3 == 0 { computed } else { &computed[..2] };
        for &(algorithm, specialise) in computed {
            // No rows, or gradients without keys: answered without a plan.
            let nothing = case.problem.lse_len() == 0 || (algorithm.is_none() && case.problem.dims.seq_len_kv == 0);
            if !nothing {
                tasks.push(Task { case: case.clone(), algorithm, specialise });
            }
        }
    }
    Ok(tasks)
}

/// Runs a task on every device that has a plan of its own for it. Returns the number of runs.
fn simulate(args: &Args, task: &Task, shaders: &Shaders, log: &Log) -> usize {
    let (devices, refusals) = devices(args, task);
    refusals.into_iter().for_each(|refusal| log.complain(refusal));
    let device = |Planned { caps, lanes, .. }| Device {
        caps,
        subgroup_size: lanes,
        seed: args.seed,
        lanes: lane_order(args),
        shaders,
        log,
        edit: None,
        most_iterations: 10_000_000,
    };
    let devices: Vec<Device<'_>> = devices.into_iter().map(device).collect();
    for (device, verdict) in devices.iter().zip(verdicts(task, &devices)) {
        if let Verdict::Failed(why) = verdict {
            let caps = &device.caps;
            log.complain(format!("{} on {:?}, subgroups of {}: {why}", task.case.name, caps.class, device.subgroup_size));
        }
    }
    devices.len()
}

fn lane_order(args: &Args) -> LaneOrder {
    if args.lanes_in_order { LaneOrder::InOrder } else { LaneOrder::Shuffled }
}

/// Device that has a plan of its own for a task.
struct Planned {
    caps: DeviceCaps,
    plan: PlanExport,
    /// Lanes per subgroup in the simulation; may differ from what `caps` reports.
    lanes: u32,
}

/// Returns the devices that have plans of their own for a task, and the refusals.
fn devices(args: &Args, task: &Task) -> (Vec<Planned>, Vec<String>) {
    let sizes: Vec<u32> = SUBGROUPS.into_iter().filter(|&size| args.subgroup.is_none_or(|only| only == size)).collect();
    let mut seen = HashSet::new();
    let (mut devices, mut refusals) = (Vec::new(), Vec::new());
    let roomy = CLASSES.into_iter().flat_map(|class| sizes.iter().map(move |&size| caps(class, size, task.specialise)));
    // Joins of so few keys each lose digits where they are very many.
    let joins_few = task.case.problem.dims.seq_len_kv <= 1024;
    let bounded = roomy.clone().filter(|caps| joins_few && [0, 8, 32].contains(&caps.subgroup_size));
    let bounded = bounded.map(|caps| bounded_of(caps, task));
    for caps in roomy.chain(bounded) {
        match plan(&task.case.problem, &caps, task.algorithm).and_then(|plan| plan.export()) {
            Ok(plan) => {
                let shuffles = plan.kernels.iter().any(|kernel| kernel.text.contains("subgroup"));
                let size = if shuffles { caps.subgroup_size } else { 0 };
                let texts: Vec<String> = plan.kernels.iter().map(|kernel| kernel.text.clone()).collect();
                if !seen.insert((texts, plan.dispatches.len(), size)) {
                    continue;
                }
                // Kernels that count their lanes must also work with subgroups that are too small, or not full.
                let counts_lanes = plan.kernels.iter().any(|kernel| kernel.text.contains("fn thread_of("));
                let unsaid: &[u32] =
                    if counts_lanes && !plan.kernels[0].name.starts_with("matrix") && size == 32 { &[4, 128] } else { &[] };
                for &lanes in std::iter::once(&caps.subgroup_size).chain(unsaid) {
                    devices.push(Planned { caps: caps.clone(), plan: plan.clone(), lanes: lanes.max(1) });
                }
            }
            // Unsupported on every device.
            Err(Error::Unsupported { .. }) => {}
            Err(Error::Limit { .. }) if caps.loop_iterations.is_some() => {}
            Err(error) => refusals.push(format!("{} on {:?}: {error}", task.case.name, caps.class)),
        }
    }
    (devices, refusals)
}

fn caps(class: DeviceClass, size: u32, specialise: Specialise) -> DeviceCaps {
    // Few workgroups per dimension: grids have several lines, and the last is not full.
    let roomy = DeviceCaps { workgroup_bytes: 49152, workgroups_per_dimension: 5, ..DeviceCaps::webgpu_defaults() };
    let slow_barriers = class == DeviceClass::Software;
    DeviceCaps { class, slow_barriers, subgroup_size: size, subgroup_max: size, specialise, ..roomy }
}

/// A device like `caps` on which an invocation may go over one block of keys only, and on which few parts fit a binding: it goes over the keys
/// in many steps. Forward keys and values may not fit one binding.
fn bounded_of(caps: DeviceCaps, task: &Task) -> DeviceCaps {
    let problem = &task.case.problem;
    // The backward pass binds keys, values and biases whole.
    let keys = if task.algorithm.is_none() { problem.key_len().max(problem.value_len()).max(problem.scores_len()) } else { 0 };
    let longest = problem.query_len().max(problem.output_len()).max(4 * problem.lse_len()).max(keys);
    // Steps that are not cut, such as the ends of rows and the reductions, need some iterations.
    let loop_iterations = Some(if task.algorithm.is_none() { 2000 } else { 1 });
    DeviceCaps { loop_iterations, binding_bytes: 8 * longest as u64 + 1024, ..caps }
}

pub(crate) fn plan(problem: &Problem, caps: &DeviceCaps, algorithm: Option<Algorithm>) -> Result<Plan, Error> {
    match algorithm {
        Some(algorithm) => Plan::new(problem, caps, algorithm),
        None => Plan::backward(problem, &WantGradients::all(problem), caps),
    }
}

fn verdicts(task: &Task, devices: &[Device<'_>]) -> Vec<Verdict> {
    let case = &task.case;
    let refused = |error: Error| vec![Verdict::Failed(format!("the oracle refused it: {error}")); devices.len()];
    if devices.is_empty() {
        return Vec::new();
    }
    match task.algorithm {
        Some(algorithm) => match Expected::of(&case.problem, &case.data.inputs()) {
            Ok(expected) => {
                let check =
                    |device: &Device<'_>| check_against(case, &expected, &|problem, inputs| device.attention(problem, inputs, algorithm));
                devices.iter().map(check).collect()
            }
            Err(error) => refused(error),
        },
        None => match ExpectedGradients::of(case) {
            Ok(expected) => {
                let check = |device: &Device<'_>| {
                    check_backward_against(case, &expected, &|problem, inputs, backward, want| {
                        device.backward(problem, inputs, backward, want)
                    })
                };
                devices.iter().map(check).collect()
            }
            Err(error) => refused(error),
        },
    }
}
