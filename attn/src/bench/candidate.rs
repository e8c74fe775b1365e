//! Candidates to time: our own implementations and peers.

use std::path::Path;
use std::time::{Duration, Instant};

use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::{Algorithm, Backend, BackwardInputs, Engine, Error, Gradients, Outputs, Problem, WantGradients};

use super::check::{Deviation, Tensors, check_gradients, deviation};
use super::machine::{self, MemoryWatch, PeakMemory};
use super::peer::Peer;
use super::task::Task;
use crate::backend;
use crate::failure::Failure;
use crate::terminal::{ProgressBar, note, two_digits};

/// One implementation to time.
pub(super) struct Candidate {
    runner: Runner,
    outputs: Outputs,
    /// Device it runs on; `op` is the name of the implementation.
    pub(super) adapter: String,
    pub(super) op: String,
    /// Error of the answer. More than the bound stops the run if the answer is ours.
    pub(super) deviation: Deviation,
    /// Plan that the engine chose; empty for peers.
    pub(super) kernel: String,
    /// Wall time of each run, in ms.
    pub(super) times: Vec<f64>,
    /// Time on the device alone, in ms, of each batch of runs; empty on the CPU and for peers.
    pub(super) device_times: Vec<f64>,
    /// Wall time of the first call, in seconds, including the compilation of kernels that are not cached.
    pub(super) first: f64,
    /// Peak memory of the process while this candidate computed once, alone.
    pub(super) peak: PeakMemory,
}

/// Error, over its bound, beyond which an answer is wrong. Up to here a peer is merely less exact.
const WRONG: f64 = 8.0;

enum Runner {
    Engine(Engine),
    Peer(Peer),
}

/// Choice of a device's kernels.
#[derive(Clone, Copy)]
pub(super) enum Kernels<'a> {
    /// The planner's.
    Planned,
    /// Those that `attn tune` has found, from a file.
    Tuned(&'a Path),
    /// Cooperative matrices where the device has them.
    Matrices,
}

/// Collects the candidates: fused on every adapter and on the CPU, staged on adapters if `staged`, each once; then the
/// peers.
pub(super) fn all(backends: &[Backend], peers: &[String], kernels: Kernels<'_>, staged: bool) -> Result<Vec<Candidate>, Failure> {
    let mut found: Vec<Candidate> = Vec::new();
    let (tune_matrices, prefer_matrices) = (matches!(kernels, Kernels::Tuned(_)), matches!(kernels, Kernels::Matrices));
    let shaders = ShaderOptions { tune_matrices, prefer_matrices, ..Default::default() };
    let engines = backend::open_each(backends, shaders)?;
    let option = if prefer_matrices { "--matrices" } else { "--tuned" };
    if !matches!(kernels, Kernels::Planned) && !engines.iter().any(|engine| engine.gpu().is_some()) {
        return Err(Failure::at(option, "no backend here has kernels to choose: add a GPU by --backend"));
    }
    let tuned = if let Kernels::Tuned(path) = kernels { crate::tune::read(path, true)? } else { String::new() };
    for engine in engines {
        let mut fused = "fused";
        if let Some(gpu) = engine.gpu() {
            match kernels {
                Kernels::Planned => {}
                Kernels::Tuned(_) => {
                    note(format_args!("{}: {} tuned kernels", engine.chosen(), engine.load_tuned(&tuned)?));
                    fused = "fused, tuned";
                }
                Kernels::Matrices if gpu.caps().matrix_size == 0 => {
                    note(format_args!("{}: no cooperative matrices here; its other kernels are timed", engine.chosen()));
                }
                Kernels::Matrices => fused = "fused, matrices",
            }
        }
        if engine.gpu().is_some() && staged {
            found.push(Candidate::ours(engine.clone().with_algorithm(Algorithm::Staged), "staged"));
        }
        let op = if engine.gpu().is_none() && engine.chosen() != Backend::Cpu.to_string() { "naive" } else { fused };
        found.push(Candidate::ours(engine, op));
    }
    for (number, command) in peers.iter().enumerate() {
        found.push(Candidate::new(Runner::Peer(Peer::start(command, number)?), command.clone(), ""));
    }
    Ok(found)
}

/// Computes the forward pass and the gradients of query, key and value.
pub(super) fn both(
    engine: &Engine,
    problem: &Problem,
    want: &WantGradients,
    tensors: &Tensors,
    outputs: &mut Outputs,
) -> Result<Gradients, Error> {
    let problem = problem.clone().with_stats();
    engine.attention_into(&problem, &tensors.inputs(), outputs)?;
    let backward = BackwardInputs { stats: outputs.stats.as_deref(), ..BackwardInputs::new(&outputs.output, &tensors.d_output) };
    engine.backward(&problem, &tensors.inputs(), &backward, want)
}

impl Candidate {
    fn new(runner: Runner, adapter: String, op: &str) -> Self {
        let (outputs, deviation, kernel, times, device_times) = Default::default();
        Self { runner, outputs, adapter, op: op.into(), deviation, kernel, times, device_times, first: 0.0, peak: PeakMemory::default() }
    }

    fn ours(engine: Engine, op: &str) -> Self {
        let adapter = engine.chosen().to_string();
        Self::new(Runner::Engine(engine), adapter, op)
    }

    /// Names the implementation and its device. A peer names its own once it has answered.
    pub(super) fn who(&self) -> String {
        if self.op.is_empty() { self.adapter.clone() } else { format!("{} on {}", self.op, self.adapter) }
    }

    pub(super) fn is_peer(&self) -> bool {
        matches!(self.runner, Runner::Peer(_))
    }

    /// Checks the answer, then runs once more: the first call creates pipelines and buffers, the second is typical.
    /// Returns false if this candidate does not support the problem.
    pub(super) fn warm_up(&mut self, task: &Task, tensors: &Tensors) -> Result<bool, Failure> {
        self.times.clear();
        self.device_times.clear();
        let who = format!("{}: {}", task.name, self.who());
        let mut progress = ProgressBar::new(format!("{who}: checking"));
        progress.report(0.0);
        let left_out = |why: &dyn std::fmt::Display| {
            note(format_args!("{who} left out: {why}"));
            Ok(false)
        };
        match &mut self.runner {
            Runner::Engine(engine) => {
                let memory = MemoryWatch::start("self");
                let started = Instant::now();
                let outputs = match engine.attention(&task.problem, &tensors.inputs()) {
                    Err(error @ (Error::Unsupported { .. } | Error::Limit { .. })) => return left_out(&error),
                    other => other?,
                };
                self.first = started.elapsed().as_secs_f64();
                self.peak = memory.peak();
                let wrong = |why: &str| Failure::Check(format!("{who} is wrong: {why}"));
                self.deviation = deviation(&task.problem, tensors, &outputs.output, &mut progress)?;
                if self.deviation.of_bound > 1.0 {
                    return Err(wrong(&self.deviation.why));
                }
                if task.backward {
                    let gradients = both(engine, &task.problem, &task.want(), tensors, &mut self.outputs)?;
                    self.first = started.elapsed().as_secs_f64();
                    self.peak = memory.peak();
                    check_gradients(&task.problem, tensors, &outputs.output, (&gradients, &task.want())).map_err(|why| wrong(&why))?;
                }
                self.kernel = engine.explain(&task.problem)?;
            }
            Runner::Peer(peer) => {
                let ready = match peer.prepare(task, tensors)? {
                    Err(why) => return left_out(&why),
                    Ok(ready) => ready,
                };
                (self.adapter, self.op) = (ready.adapter, ready.op);
                let memory = MemoryWatch::start(&peer.process());
                peer.run(1)?;
                self.peak = memory.peak();
                self.deviation = deviation(&task.problem, tensors, &ready.output, &mut progress)?;
                if let Some(exactness) = self.exactness(task) {
                    note(format_args!("{}: {}: {exactness}: {}", task.name, self.who(), self.deviation.why));
                }
            }
        }
        self.visit(task, tensors, Duration::ZERO)?;
        Ok(true)
    }

    /// True if the answer is not merely less exact than ours.
    pub(super) fn is_wrong(&self) -> bool {
        self.deviation.of_bound > WRONG
    }

    /// Describes an error beyond the bound.
    pub(super) fn exactness(&self, task: &Task) -> Option<String> {
        let Deviation { of_bound, .. } = self.deviation;
        let less_exact = || format!("error {} x the {} bound", two_digits(of_bound), task.problem.output.dtype);
        if self.is_wrong() { Some("WRONG".into()) } else { (of_bound > 1.0).then(less_exact) }
    }

    /// Times an engine on its device alone for the time `long`.
    pub(super) fn visit_device(&mut self, task: &Task, tensors: &Tensors, long: Duration) -> Result<(), Failure> {
        let Runner::Engine(engine) = &self.runner else { return Ok(()) };
        let inputs = &tensors.inputs();
        self.device_times = if task.backward {
            let problem = &task.problem.clone().with_stats();
            let stats = engine.attention(problem, inputs)?.stats;
            let backward = BackwardInputs { stats: stats.as_deref(), ..BackwardInputs::new(&self.outputs.output, &tensors.d_output) };
            let forward = engine.device_times(problem, inputs, long / 2)?;
            let gradients = engine.backward_device_times(problem, inputs, &backward, &task.want(), long / 2)?;
            // Both passes of a step belong together: the fastest to the fastest.
            let [forward, gradients] = [forward, gradients].map(machine::sorted);
            forward.iter().zip(&gradients).map(|(forward, gradients)| forward + gradients).collect()
        } else {
            engine.device_times(&task.problem, inputs, long)?
        };
        self.device_times.iter_mut().for_each(|seconds| *seconds *= 1e3);
        Ok(())
    }

    /// Runs for the time `long`, at least once.
    pub(super) fn visit(&mut self, task: &Task, tensors: &Tensors, long: Duration) -> Result<(), Failure> {
        match &mut self.runner {
            Runner::Engine(engine) => {
                let visit = Instant::now();
                // The caller keeps the outputs, as the peers keep theirs.
                let outputs = &mut self.outputs;
                loop {
                    let started = Instant::now();
                    if task.backward {
                        both(engine, &task.problem, &task.want(), tensors, outputs)?;
                    } else {
                        engine.attention_into(&task.problem, &tensors.inputs(), outputs)?;
                    }
                    self.times.push(started.elapsed().as_secs_f64() * 1e3);
                    if visit.elapsed() >= long {
                        return Ok(());
                    }
                }
            }
            Runner::Peer(peer) => {
                let last = self.times.last().copied().unwrap_or(f64::INFINITY);
                let times = (long.as_secs_f64() * 1e3 / last.max(1e-3)).clamp(1.0, 1000.0) as usize;
                self.times.extend(peer.run(times)?);
                // The threads of some peers spin for a while before they sleep.
                std::thread::sleep(Duration::from_millis(50));
                Ok(())
            }
        }
    }
}
