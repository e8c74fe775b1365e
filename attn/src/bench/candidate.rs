//! Candidates to time: our own implementations and peers.

use std::path::Path;
use std::time::{Duration, Instant};

use wgpu_attention::{Algorithm, Backend, BackwardInputs, Engine, Error, Gradients, Outputs, WantGradients};

use super::check::{Tensors, check, check_gradients};
use super::machine;
use super::peer::Peer;
use super::task::Task;
use crate::backend;
use crate::failure::Failure;
use crate::terminal::{ProgressBar, note};

/// One implementation to time.
pub(super) struct Candidate {
    runner: Runner,
    outputs: Outputs,
    /// Device it runs on; `op` is the name of the implementation.
    pub(super) adapter: String,
    pub(super) op: String,
    /// Mismatch with the oracle. Recorded for peers only; a wrong answer of our own stops the run.
    pub(super) wrong: Option<String>,
    /// Plan that the engine chose; empty for peers.
    pub(super) kernel: String,
    /// Wall time of each run, in ms.
    pub(super) times: Vec<f64>,
    /// Wall time of the first call, in seconds, including the compilation of kernels that are not cached.
    pub(super) first: f64,
    /// Peak memory of the process, in bytes, while this candidate computed alone.
    pub(super) peak_bytes: Option<u64>,
}

enum Runner {
    Engine(Engine),
    Peer(Peer),
}

/// Collects the candidates: fused on every adapter and on the CPU, staged on adapters if `staged`, each once; then the
/// peers. `tuned` is a file of tuned kernels to load.
pub(super) fn all(backends: &[Backend], peers: &[String], tuned: Option<&Path>, staged: bool) -> Result<Vec<Candidate>, Failure> {
    let mut found: Vec<Candidate> = Vec::new();
    for (backend, engine) in backend::open_each(backends, tuned.is_some())? {
        if let (Some(_), Some(path)) = (engine.gpu(), tuned) {
            let text = std::fs::read_to_string(path).map_err(|error| Failure::input(format!("--tuned {}: {error}", path.display())))?;
            let count = engine.load_tuned(&text)?;
            note(format_args!("{}: {count} tuned kernels", engine.chosen()));
        }
        if engine.gpu().is_some() && staged {
            found.push(Candidate::ours(engine.clone().with_algorithm(Algorithm::Staged), "staged"));
        }
        found.push(Candidate::ours(engine, if *backend == Backend::Oracle { "naive" } else { "fused" }));
    }
    for (number, command) in peers.iter().enumerate() {
        found.push(Candidate::new(Runner::Peer(Peer::start(command, number)?), command.clone(), String::new()));
    }
    Ok(found)
}

/// Computes the forward pass and the gradients of query, key and value.
fn both(engine: &Engine, task: &Task, tensors: &Tensors, outputs: &mut Outputs) -> Result<Gradients, Error> {
    let mut problem = task.problem;
    problem.want.stats = true;
    engine.attention_into(&problem, &tensors.inputs(), outputs)?;
    let backward =
        BackwardInputs { output: outputs.output.as_slice(), stats: outputs.stats.as_deref(), d_output: tensors.d_output.as_slice() };
    engine.backward(&problem, &tensors.inputs(), &backward, &WantGradients::default())
}

impl Candidate {
    fn new(runner: Runner, adapter: String, op: String) -> Self {
        Self {
            runner,
            outputs: Outputs::default(),
            adapter,
            op,
            wrong: None,
            kernel: String::new(),
            times: Vec::new(),
            first: 0.0,
            peak_bytes: None,
        }
    }

    fn ours(engine: Engine, op: &str) -> Self {
        let adapter = engine.chosen().to_string();
        Self::new(Runner::Engine(engine), adapter, op.into())
    }

    pub(super) fn is_peer(&self) -> bool {
        matches!(self.runner, Runner::Peer(_))
    }

    /// Checks the answer, then runs once more: the first call creates pipelines and buffers, the second is typical.
    /// Returns false if this candidate does not support the problem.
    pub(super) fn warm_up(&mut self, task: &Task, tensors: &Tensors) -> Result<bool, Failure> {
        self.times.clear();
        self.wrong = None;
        let mut progress = ProgressBar::new(format!("{}: checking {} on {}", task.name, self.op, self.adapter));
        progress.report(0.0);
        match &mut self.runner {
            Runner::Engine(engine) => {
                machine::reset_peak();
                let started = Instant::now();
                let outputs = match engine.attention(&task.problem, &tensors.inputs()) {
                    Err(error @ (Error::Unsupported { .. } | Error::Limit { .. })) => {
                        note(format_args!("{}: {} on {} left out: {error}", task.name, self.op, self.adapter));
                        return Ok(false);
                    }
                    other => other?,
                };
                self.first = started.elapsed().as_secs_f64();
                self.peak_bytes = machine::peak_bytes();
                let wrong = |why| Failure::Check(format!("{}: {} on {} is wrong: {why}", task.name, self.op, self.adapter));
                check(&task.problem, tensors, &outputs.output, &mut progress).map_err(wrong)?;
                if task.backward {
                    let gradients = both(engine, task, tensors, &mut self.outputs)?;
                    self.first = started.elapsed().as_secs_f64();
                    self.peak_bytes = machine::peak_bytes();
                    check_gradients(&task.problem, tensors, &gradients).map_err(wrong)?;
                }
                self.kernel = engine.explain(&task.problem)?;
            }
            Runner::Peer(peer) => {
                let ready = match peer.prepare(task, tensors)? {
                    Err(why) => {
                        note(format_args!("{}: {} left out: {why}", task.name, self.adapter));
                        return Ok(false);
                    }
                    Ok(ready) => ready,
                };
                (self.adapter, self.op) = (ready.adapter, ready.op);
                self.wrong = check(&task.problem, tensors, &ready.output, &mut progress).err();
                if let Some(why) = &self.wrong {
                    note(format_args!("{}: {} on {} is wrong: {why}", task.name, self.op, self.adapter));
                }
            }
        }
        self.visit(task, tensors, Duration::ZERO)?;
        Ok(true)
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
                        both(engine, task, tensors, outputs)?;
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

    /// Returns the minimum, median and maximum of `times`, in ms.
    pub(super) fn spread(&self) -> Option<[f64; 3]> {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let (&min, &max) = (times.first()?, times.last()?);
        Some([min, (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0, max])
    }
}
