//! Examination of one problem on one backend: configurations, comparison with the oracle, shrinking of failures.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::plan::{DeviceClass, Specialise};
use wgpu_attention::verify::{Case, Verdict, check, check_backward, minimise, random_large_of, random_of, random_text_of};
use wgpu_attention::{
    Algorithm, Backend, BackwardInputs, Engine, EngineOptions, Error, HostVec, Inputs, Outputs, Problem, Result as Answer, WantGradients,
};

use super::cached;
use super::state::Kind;

/// Time limit for making a failing problem smaller.
const SHRINKING: Duration = Duration::from_secs(120);

/// Mistakes for the tests of the fuzz, made on problems with more than [`Plant::KEYS`] keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Plant {
    Wrong,
    Panic,
    Hang,
    Crash,
}

impl Plant {
    const KEYS: usize = 4;

    fn spoil(self, problem: &Problem, outputs: &mut Outputs) {
        if problem.dims.seq_len_kv <= Self::KEYS {
            return;
        }
        match self {
            Self::Wrong => {
                let mut numbers = outputs.output.to_f32();
                numbers.iter_mut().for_each(|x| *x += 1.0);
                outputs.output = HostVec::from_f32(problem.output.dtype, &numbers);
            }
            Self::Panic => panic!("planted"),
            Self::Hang => std::thread::sleep(Duration::from_secs(3600)),
            Self::Crash => std::process::abort(),
        }
    }
}

/// Draws the problem of a seed, or the reason why its user's term is refused. Every sixth one is large, which takes the
/// oracle ten times as long. `terms`: each has a random text as its user's term.
pub(super) fn draw(backend: &str, terms: bool, seed: u64) -> Answer<Result<Case, Error>> {
    let (kind, is_large) = (kind_of(backend, terms, seed), seed.is_multiple_of(6));
    match (terms, is_large) {
        (true, _) => random_text_of(kind, seed, is_large),
        (_, true) => random_large_of(kind, seed).map(Ok),
        _ => random_of(kind, seed).map(Ok),
    }
}

/// Returns the kind of a problem. On an adapter, consecutive problems share a kind and its kernels: compiling is slow.
fn kind_of(backend: &str, terms: bool, seed: u64) -> u64 {
    const ALIKE: u64 = 128;
    const OF_ONE_TEXT: u64 = 2;
    match (is_cpu(backend), terms) {
        (true, _) => seed,
        (_, true) => seed / OF_ONE_TEXT,
        _ => seed / ALIKE,
    }
}

fn is_cpu(backend: &str) -> bool {
    backend.parse() == Ok(Backend::Cpu)
}

/// Configurations in which a backend computes.
pub(super) struct Engines {
    backend: String,
    terms: bool,
    engines: Vec<Way>,
    plant: Option<Plant>,
}

/// One configuration, and how many of [`Engines::ROUND`] kinds of problems get it.
struct Way {
    name: &'static str,
    engine: Engine,
    share: usize,
}

/// Configuration that examines a problem.
pub(super) struct Examined<'a> {
    pub(super) name: &'static str,
    engine: &'a Engine,
    plant: Option<Plant>,
    /// True if gradients are examined too.
    backward: bool,
}

impl Engines {
    const ROUND: u64 = 61;

    /// Opens the configurations. Most problems get generic kernels, each compiled once.
    pub(super) fn open(backend: &str, terms: bool, plant: Option<Plant>) -> Result<Self, String> {
        let place: Backend = backend.parse().map_err(|error| format!("--backend: {error}"))?;
        let generic = ShaderOptions { specialise: Specialise::Never, ..Default::default() };
        let specialised = ShaderOptions { specialise: Specialise::Always, prefer_matrices: true, ..Default::default() };
        let as_card = |shaders| ShaderOptions { pretend: Some(DeviceClass::Discrete), ..shaders };
        let ways = [
            ("generic kernels", Algorithm::Auto, generic, 27),
            ("generic staged kernels", Algorithm::Staged, generic, 12),
            ("generic kernels of a graphics card", Algorithm::Auto, as_card(generic), 20),
            ("specialised kernels", Algorithm::Auto, specialised, 1),
            ("specialised kernels of a graphics card", Algorithm::Auto, as_card(specialised), 1),
        ];
        let ways = if is_cpu(backend) { vec![("CPU path", Algorithm::Auto, generic, 61)] } else { ways.to_vec() };
        let open = |(name, algorithm, shaders, share)| {
            let engine = Engine::new(EngineOptions { backend: place.clone(), algorithm, shaders, ..Default::default() });
            engine.map(|engine| Way { name, engine, share })
        };
        let engines: Vec<Way> = ways.into_iter().map(open).collect::<Answer<_>>().map_err(|error| error.to_string())?;
        Ok(Self { backend: backend.to_string(), terms, engines, plant })
    }

    /// Returns the configuration of a seed, always the same. Every second kind has gradients; on adapters every
    /// fourth, and of random texts all or, on adapters, every second.
    pub(super) fn of(&self, seed: u64) -> Examined<'_> {
        let kind = kind_of(&self.backend, self.terms, seed);
        let turns = self.engines.iter().flat_map(|way| std::iter::repeat_n(way, way.share));
        let way = turns.cycle().nth((kind % Self::ROUND) as usize).unwrap_or(&self.engines[0]);
        // A round is prime, so that each configuration has kinds with and without gradients.
        let nth = match (way.engine.gpu().is_some(), self.terms) {
            (true, false) => 4,
            (false, true) => 1,
            _ => 2,
        };
        Examined { name: way.name, engine: &way.engine, plant: self.plant, backward: kind.is_multiple_of(nth) }
    }
}

impl Examined<'_> {
    fn forward(&self, problem: &Problem, inputs: &Inputs<'_>) -> Answer<Outputs> {
        // The outputs have old contents, which must not matter.
        let mut outputs = Outputs::default();
        (outputs.output, outputs.lse) = (HostVec::F32(vec![0.0; 7]), Some(vec![f32::NAN; 5]));
        self.engine.attention_into(problem, inputs, &mut outputs)?;
        if let Some(plant) = self.plant {
            plant.spoil(problem, &mut outputs);
        }
        Ok(outputs)
    }
}

/// Result of examining a problem.
pub(super) enum Outcome {
    /// Passed, and if it is `cached` also from a cache on the device.
    Passed {
        cached: bool,
    },
    /// Neither outputs nor gradients are supported, for this reason.
    Skipped(String),
    Failed(Kind, String),
}

/// Computes a problem and compares the results with the oracle's.
pub(super) fn examine(case: &Case, way: &Examined<'_>) -> Outcome {
    let mut forward = caught(|| check(case, &|problem, inputs| way.forward(problem, inputs)));
    if let (Outcome::Passed { cached }, Some(gpu)) = (&mut forward, way.engine.gpu()) {
        match caught(|| check(case, &|problem, inputs| cached::attention(gpu, problem, inputs))) {
            Outcome::Failed(kind, report) => return Outcome::Failed(kind, format!("from a cache: {report}")),
            outcome => *cached = matches!(outcome, Outcome::Passed { .. }),
        }
    }
    if !way.backward || matches!(forward, Outcome::Failed(..)) {
        return forward;
    }
    let backward = |problem: &Problem, inputs: &Inputs<'_>, given: &BackwardInputs<'_>, want: &WantGradients| {
        way.engine.backward(problem, inputs, given, want)
    };
    match caught(|| check_backward(case, &backward)) {
        Outcome::Failed(kind, report) => Outcome::Failed(kind, format!("gradients: {report}")),
        Outcome::Passed { .. } if matches!(forward, Outcome::Skipped(_)) => Outcome::Passed { cached: false },
        Outcome::Passed { .. } | Outcome::Skipped(_) => forward,
    }
}

/// Shrinks `case` while it fails; returns the last failure and its problem. `beat` is called before each attempt.
pub(super) fn smallest(case: Case, way: &Examined<'_>, beat: impl Fn() -> Result<(), String>) -> String {
    let started = Instant::now();
    let last = Cell::new(String::new());
    let smallest = minimise(case, |case| {
        if started.elapsed() > SHRINKING || beat().is_err() {
            return false;
        }
        let Outcome::Failed(_, report) = examine(case, way) else { return false };
        last.set(report);
        true
    });
    format!("{} {:?} {:?}", last.into_inner(), smallest.problem, smallest.fill)
}

/// Message of the last panic.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn last_panic() -> MutexGuard<'static, String> {
    PANIC.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the message and the place of panics instead of printing them.
pub(super) fn remember_panics() {
    std::panic::set_hook(Box::new(|info| *last_panic() = info.to_string()));
}

/// Expected refusals: positions in shaders are below 2^29 (`src/plan`), and the generator draws larger offsets.
const REFUSED: &str = "over the limit `positions in a shader`";

/// Runs a check; a panic counts as a failure.
fn caught(check: impl FnOnce() -> Verdict) -> Outcome {
    match catch_unwind(AssertUnwindSafe(check)) {
        Ok(Verdict::Passed) => Outcome::Passed { cached: false },
        Ok(Verdict::Skipped(reason)) => Outcome::Skipped(reason),
        Ok(Verdict::Failed(report)) if report.starts_with(REFUSED) => Outcome::Skipped(REFUSED.into()),
        Ok(Verdict::Failed(report)) => Outcome::Failed(Kind::Wrong, report),
        Err(_) => Outcome::Failed(Kind::Panic, last_panic().clone()),
    }
}
