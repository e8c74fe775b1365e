//! Autotuning: finds the fastest kernel on this device by measuring. Never needed for correctness.

use std::time::Duration;

use web_time::Instant;

use super::Engine;
use super::agreement::agrees;
use crate::cpu;
use crate::error::{Error, Result};
use crate::gpu::{Gpu, Trial, Waiting, block_on};
use crate::plan::{Plan, candidates, class_of, kernel_text, read_kernel};
use crate::problem::{Algorithm, Inputs, Problem};
use crate::progress::Progress;

/// Shortest duration of a batch: browsers round their clocks to 65 microseconds or worse.
const BATCH_SECONDS: f64 = 5e-3;
/// Share of the planned kernel's time that another kernel must stay below to replace it: a smaller gain is noise.
const WORTH: f64 = 0.97;
/// Number of rounds, if time allows: the least time of several is robust against other load on the machine.
const ROUNDS: usize = 7;

/// Result of tuning a class of problems.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tuned {
    /// Class of problems: sizes rounded up to powers of two, widths, types, options.
    pub class: String,
    /// Kernel that problems of the class use from now on.
    pub winner: String,
    /// Kernel that the planner had chosen.
    pub planned: String,
    /// Kernels that were tried, the planner's first.
    pub trials: Vec<TunedKernel>,
    /// Number of kernels for which no time was left.
    pub untried: usize,
}

/// Kernel that was tried.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TunedKernel {
    /// Name and shape of the kernel.
    pub kernel: String,
    /// Least time of one attention, copies excluded; `None` if its answer was wrong or the device refused it.
    pub milliseconds: Option<f64>,
}

impl Engine {
    /// Tries the fused kernels that can compute `problem` on the device and keeps the fastest for all problems of its
    /// class. Each answer is checked against the CPU path before it is timed. Stops after `budget`, but always tries
    /// the planner's choice.
    /// Needs an engine on a GPU. [`Self::tuned`] saves the results. Cooperative matrices are tried with
    /// [`ShaderOptions::tune_matrices`](crate::gpu::ShaderOptions::tune_matrices).
    pub fn tune(&self, problem: &Problem, inputs: &Inputs<'_>, budget: Duration) -> Result<Tuned> {
        block_on(self.run_tune(problem, inputs, budget, Waiting::Blocking, &mut Progress::default()), "Engine::tune_async")
    }

    /// [`Self::tune`] without blocking, with progress, as a share of `budget`, and cancellation, which keeps the
    /// former kernel. Only the check against the CPU path, at the start, computes inside a poll.
    pub async fn tune_async(&self, problem: &Problem, inputs: &Inputs<'_>, budget: Duration, control: &mut Progress<'_>) -> Result<Tuned> {
        self.run_tune(problem, inputs, budget, Waiting::Async, control).await
    }

    async fn run_tune(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        budget: Duration,
        waiting: Waiting,
        control: &mut Progress<'_>,
    ) -> Result<Tuned> {
        problem.check()?;
        inputs.check(problem)?;
        let gpu = self.tunable()?;
        let started = Instant::now();
        let share = || (started.elapsed().as_secs_f64() / budget.as_secs_f64()).min(1.0);
        let expected = cpu::tiled::attention(problem, inputs, &mut Progress::default())?.output;
        let planned = Plan::of(problem, gpu.caps(), Algorithm::Fused, None)?.kernel();
        let mut kernels = candidates(problem, gpu.caps());
        kernels.retain(|&kernel| kernel != planned);
        kernels.insert(0, planned);

        let mut trials = Vec::new();
        let mut best = f64::INFINITY;
        let mut tried = Vec::new();
        for &kernel in &kernels {
            if !trials.is_empty() && started.elapsed() > budget / 2 {
                break;
            }
            let plan = Plan::of(problem, gpu.caps(), Algorithm::Fused, Some(kernel));
            let answered = match plan.and_then(|plan| Trial::new(gpu, problem, inputs, plan)) {
                Ok(trial) => trial.answer(waiting).await.map(|answer| (trial, answer)),
                Err(error) => Err(error),
            };
            let mut seconds = None;
            if let Err(lost @ Error::Lost { .. }) = answered {
                return Err(lost);
            }
            let right = answered.ok().filter(|(_, answer)| agrees(&answer.output, &expected));
            if let Some((trial, _)) = right {
                let once = trial.seconds(1, waiting).await?;
                seconds = Some(once);
                best = best.min(once);
                let batch = (BATCH_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 1000.0) as u32;
                tried.push((trials.len(), trial, batch));
            } else {
                log::warn!("{}: left out of tuning: wrong, or refused by the device", kernel_text(kernel));
            }
            trials.push((kernel, seconds));
            control.report(share())?;
        }
        for round in 0..ROUNDS {
            // Kernels that are far behind are not worth the time.
            tried.retain(|&(at, ..)| trials[at].1.is_some_and(|seconds| seconds < best * if round == 0 { 3.0 } else { 1.3 }));
            for (at, trial, batch) in &tried {
                if round > 0 && started.elapsed() > budget {
                    break;
                }
                let seconds = trial.seconds(*batch, waiting).await?;
                trials[*at].1 = trials[*at].1.map(|least| least.min(seconds));
                best = best.min(seconds);
                control.report(share())?;
            }
        }
        control.report(1.0)?;
        let of = |seconds: Option<f64>| seconds.unwrap_or(f64::INFINITY);
        let fastest = trials.iter().min_by(|a, b| of(a.1).total_cmp(&of(b.1))).copied().unwrap_or((planned, None));
        let winner = if of(fastest.1) < WORTH * of(trials[0].1) { fastest.0 } else { planned };
        let class = class_of(problem);
        gpu.tuned().insert(class.clone(), winner);
        Ok(Tuned {
            class,
            winner: kernel_text(winner),
            planned: kernel_text(planned),
            untried: kernels.len() - trials.len(),
            trials: trials
                .into_iter()
                .map(|(kernel, seconds)| TunedKernel { kernel: kernel_text(kernel), milliseconds: seconds.map(|seconds| seconds * 1e3) })
                .collect(),
        })
    }

    /// Results of tuning as text, a line per class: adapter with driver, crate version, class and kernel, between tabs.
    pub fn tuned(&self) -> Result<String> {
        let gpu = self.tunable()?;
        let tuned = gpu.tuned();
        Ok(tuned.iter().map(|(class, &kernel)| format!("{}\t{class}\t{}\n", origin(gpu), kernel_text(kernel))).collect())
    }

    /// Loads the lines of [`Self::tuned`] that are of this adapter, driver and crate version, and ignores the others. A
    /// kernel that does not work here is never used. Returns the number of loaded lines.
    pub fn load_tuned(&self, text: &str) -> Result<usize> {
        let gpu = self.tunable()?;
        let own = format!("{}\t", origin(gpu));
        let mut count = 0;
        for (class, kernel) in text.lines().filter_map(|line| line.strip_prefix(&own)?.split_once('\t')) {
            if let Some(kernel) = read_kernel(kernel) {
                gpu.tuned().insert(class.to_string(), kernel);
                count += 1;
            }
        }
        Ok(count)
    }

    fn tunable(&self) -> Result<&Gpu> {
        self.gpu()
            .ok_or_else(|| Error::unsupported("tuning the CPU path, which has one kernel", "choose a GPU, or a software adapter by name"))
    }
}

/// Origin of tuning results: adapter with driver, and version of this crate.
fn origin(gpu: &Gpu) -> String {
    format!("{}\t{}", gpu.name(), env!("CARGO_PKG_VERSION"))
}
