//! Front end for GPU and CPU: choose a backend, plan, run.

mod agreement;
pub(crate) mod canary;
mod device_time;
mod tiny;
mod tune;

pub use tiny::{Canary, TriedKernels};
pub use tune::{Tuned, TunedKernel};

use std::path::PathBuf;
use std::sync::Arc;

use crate::cpu;
use crate::error::{Error, Result};
use crate::gpu::{self, Asked, Calls, Gpu, ShaderOptions, Waiting, block_on};
use crate::oracle;
use crate::problem::{Algorithm, Backend, BackwardInputs, Gradients, Inputs, Outputs, Problem, WantGradients};
use crate::progress::Progress;

/// Options of an [`Engine`]. The default chooses backend and algorithm automatically. Later versions may add fields: end
/// a literal with `..Default::default()`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Backend to run on.
    pub backend: Backend,
    /// Algorithm to compute with.
    pub algorithm: Algorithm,
    /// Options of devices and their shaders.
    pub shaders: ShaderOptions,
    /// Folder in which compiled kernels are kept for the next process, as [`Gpu::keep_pipelines`] says; `None` for the one
    /// that the environment variable `WGPU_ATTENTION_PIPELINE_CACHE` names, if any.
    pub pipeline_cache: Option<PathBuf>,
}

/// Attention engine on one backend. Cheap to clone; clones share the device.
#[derive(Clone, Debug)]
pub struct Engine {
    place: Runner,
    algorithm: Algorithm,
    chosen: String,
    why: String,
    /// True if the CPU path may replace a device whose kernels are wrong.
    falls_back: bool,
    /// True if `status` functions of users' terms are checked: [`ShaderOptions::checked`].
    checked: bool,
}

#[derive(Clone, Debug)]
enum Runner {
    Cpu,
    Oracle,
    Gpu(Arc<Calls>),
}

impl Engine {
    /// Chooses a backend and prepares it, blocking. Errors: no adapter fits, or its device cannot be opened; in
    /// browsers, any backend but the CPU path and the oracle.
    pub fn new(options: EngineOptions) -> Result<Self> {
        block_on(Self::new_async(options), "Engine::new_async")
    }

    /// [`Self::new`] without blocking.
    pub async fn new_async(options: EngineOptions) -> Result<Self> {
        let (place, chosen, why) = match (gpu::choose(&options.backend).await?, &options.backend) {
            (Some(chosen), _) => {
                let gpu = Gpu::open(&chosen, options.shaders).await?.keep_pipelines_if_asked(options.pipeline_cache.as_deref());
                let name = gpu.name().to_string();
                (Runner::Gpu(Arc::new(Calls::new(gpu))), name, chosen.why)
            }
            (None, Backend::Oracle) => (Runner::Oracle, "oracle (f64)".into(), "it was asked for".into()),
            (None, Backend::Auto) => (Runner::Cpu, "cpu".into(), "there is no GPU; software adapters are taken only when asked for".into()),
            (None, _) => (Runner::Cpu, "cpu".into(), "it was asked for".into()),
        };
        log::info!("running on {chosen}: {why}");
        Ok(Self {
            place,
            algorithm: options.algorithm,
            chosen,
            why,
            falls_back: options.backend == Backend::Auto,
            checked: options.shaders.checked,
        })
    }

    /// [`Self::every_async`], blocking. Not in browsers.
    #[cfg(not(target_family = "wasm"))]
    pub fn every(shaders: ShaderOptions) -> (Vec<Self>, Vec<String>) {
        pollster::block_on(Self::every_async(shaders))
    }

    /// Creates engines for the CPU path and every adapter that can compute. Also returns why others were left out.
    pub async fn every_async(shaders: ShaderOptions) -> (Vec<Self>, Vec<String>) {
        let cpu = Self { checked: shaders.checked, ..Self::of(Runner::Cpu, "cpu".into(), "every backend was asked for".into()) };
        let (mut engines, mut left_out) = (vec![cpu], Vec::new());
        for chosen in gpu::choose_every().await {
            match Gpu::open(&chosen, shaders).await {
                Ok(gpu) => engines.push(Self { why: chosen.why, ..Self::on_gpu(gpu.keep_pipelines_if_asked(None)) }),
                Err(error) => left_out.push(error.to_string()),
            }
        }
        (engines, left_out)
    }

    /// Creates an engine on an app's own device, without a fallback to the CPU path.
    pub fn on_gpu(gpu: Gpu) -> Self {
        let name = gpu.name().to_string();
        let checked = gpu.is_checked();
        Self { checked, ..Self::of(Runner::Gpu(Arc::new(Calls::new(gpu))), name, "the app's own device".into()) }
    }

    fn of(place: Runner, chosen: String, why: String) -> Self {
        Self { place, algorithm: Algorithm::Auto, chosen, why, falls_back: false, checked: false }
    }

    /// Name of the backend: `cpu`, `oracle (f64)`, or the adapter's name, backend and driver.
    pub fn chosen(&self) -> &str {
        &self.chosen
    }

    /// Reason for the choice of backend.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The GPU, if the engine runs on one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.place {
            Runner::Gpu(calls) => Some(calls.gpu()),
            Runner::Cpu | Runner::Oracle => None,
        }
    }

    /// Algorithm that the engine computes with.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the engine with another algorithm.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Describes the plan for `problem`: kernel, tiles, grid, memory.
    pub fn explain(&self, problem: &Problem) -> Result<String> {
        problem.check()?;
        Ok(match &self.place {
            Runner::Oracle => "naive f64, every matrix written out".into(),
            Runner::Cpu => cpu::tiled::summary(problem),
            Runner::Gpu(calls) => calls.gpu().plan(problem, self.algorithm)?.summary().into(),
        })
    }

    /// Device memory of a call for `problem`, or for gradients of it, in bytes: a copy of its inputs, twice its results
    /// (one copy to read back), and the plan's scratch. The buffers stay for the next call of the same problem; of many
    /// problems, the last 32 or 1 GiB. Uploads may need the inputs' bytes once more while they run. 0 without a GPU.
    pub fn device_bytes(&self, problem: &Problem, gradients: Option<&WantGradients>) -> Result<u64> {
        problem.check()?;
        gradients.map_or(Ok(()), |want| want.check(problem))?;
        match &self.place {
            Runner::Gpu(calls) if !is_empty(problem) => calls.bytes(problem, self.algorithm, gradients),
            _ => Ok(0),
        }
    }

    /// Lets each kernel of `problem` that this process has not tried on this device yet compute a tiny problem, and
    /// compares the answer with the CPU's. It submits and waits: about a millisecond, besides compiling what the
    /// problem needs anyway. [`Self::attention`] does so by itself; an app that records [`crate::gpu::Attention`]s can
    /// call it once at startup.
    /// A wrong answer is [`Error::Miscomputed`]; with [`Backend::Auto`], attention and gradients are then computed by
    /// the CPU path. Gradients and layers try their kernels too, except projections. Appending to caches is not tried.
    pub fn check_kernels(&self, problem: &Problem) -> Result<()> {
        block_on(self.check_kernels_of(problem, Waiting::Blocking), "Engine::check_kernels_async")
    }

    /// [`Self::check_kernels`] without blocking.
    pub async fn check_kernels_async(&self, problem: &Problem) -> Result<()> {
        self.check_kernels_of(problem, Waiting::Async).await
    }

    async fn check_kernels_of(&self, problem: &Problem, waiting: Waiting) -> Result<()> {
        problem.check()?;
        match &self.place {
            Runner::Gpu(calls) if !is_empty(problem) => canary::check(calls.gpu(), problem, self.algorithm, waiting).await,
            _ => Ok(()),
        }
    }

    /// Compiles the kernels of `problem`, or of gradients of it, one by one, and tries them as [`Self::check_kernels`]
    /// does, so that the first call need not. The future yields after each kernel in browsers, which stay responsive;
    /// elsewhere compiling blocks. `control` sees each kernel. Nothing to do without a GPU.
    ///
    /// Errors: those of a call, except of its data; `Cancelled` keeps what has been compiled.
    pub async fn warm_up(&self, problem: &Problem, gradients: Option<&WantGradients>, control: &mut Progress<'_>) -> Result<()> {
        problem.check()?;
        gradients.map_or(Ok(()), |want| want.check(problem))?;
        let Runner::Gpu(calls) = &self.place else { return control.report(1.0) };
        if is_empty(problem) {
            return control.report(1.0);
        }
        calls.compile(problem, self.algorithm, gradients, control).await?;
        match gradients {
            None => canary::check(calls.gpu(), problem, self.algorithm, Waiting::Async).await,
            Some(want) => canary::check_backward(calls.gpu(), problem, want, Waiting::Async).await,
        }?;
        control.report(1.0)
    }

    /// Frees the device memory that is kept for the next calls of the same problems. Kernels stay compiled.
    pub fn clear(&self) {
        if let Runner::Gpu(calls) = &self.place {
            calls.clear();
        }
    }

    /// Computes `problem` and blocks until the answer is there. See [`Problem`] for the formulas. In browsers only the
    /// CPU path and the oracle can: a device answers [`Self::attention_async`].
    pub fn attention(&self, problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
        self.attention_controlled(problem, inputs, &mut Progress::default())
    }

    /// [`Self::attention`] with progress and cancellation.
    pub fn attention_controlled(&self, problem: &Problem, inputs: &Inputs<'_>, control: &mut Progress<'_>) -> Result<Outputs> {
        block_on(self.run(problem, inputs, Waiting::Blocking, control), "Engine::attention_async")
    }

    /// [`Self::attention`] into existing `outputs`. On the CPU path, repeated calls of a problem allocate nothing, and
    /// gaps between strided elements stay as they are. After an error, `outputs` is unspecified.
    pub fn attention_into(&self, problem: &Problem, inputs: &Inputs<'_>, outputs: &mut Outputs) -> Result<()> {
        match self.place {
            Runner::Cpu => {
                self.check_status(problem, inputs)?;
                cpu::tiled::attention_into(problem, inputs, outputs, &mut Progress::default())
            }
            _ => self.attention(problem, inputs).map(|new| *outputs = new),
        }
    }

    /// [`Self::attention_controlled`] without blocking: a thread of its own polls the device; in a browser the event
    /// loop does. The CPU path computes inside the first poll.
    pub async fn attention_async(&self, problem: &Problem, inputs: &Inputs<'_>, control: &mut Progress<'_>) -> Result<Outputs> {
        self.run(problem, inputs, Waiting::Async, control).await
    }

    /// Computes the wanted gradients of `problem` from its inputs, the forward pass's results and the gradient of the
    /// output, and blocks until they are there. See [`Gradients`] for the formulas.
    pub fn backward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
    ) -> Result<Gradients> {
        self.backward_controlled(problem, inputs, backward, want, &mut Progress::default())
    }

    /// [`Self::backward`] with progress and cancellation.
    pub fn backward_controlled(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        control: &mut Progress<'_>,
    ) -> Result<Gradients> {
        let asked = Asked { problem, inputs, backward, want };
        block_on(self.run_backward(asked, Waiting::Blocking, control), "Engine::backward_async")
    }

    /// [`Self::backward_controlled`] without blocking; see [`Self::attention_async`].
    pub async fn backward_async(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        control: &mut Progress<'_>,
    ) -> Result<Gradients> {
        self.run_backward(Asked { problem, inputs, backward, want }, Waiting::Async, control).await
    }

    /// Lets the CPU path replace wrong kernels, as [`Backend::Auto`] does.
    #[cfg(test)]
    pub(crate) fn falling_back(self) -> Self {
        Self { falls_back: true, ..self }
    }

    pub(crate) async fn run_backward(&self, asked: Asked<'_>, waiting: Waiting, control: &mut Progress<'_>) -> Result<Gradients> {
        let Asked { problem, inputs, backward, want } = asked;
        self.check_status(problem, inputs)?;
        if let Runner::Gpu(calls) = &self.place {
            problem.check()?;
            inputs.check(problem)?;
            want.check(problem)?;
            backward.check(problem, want)?;
            let is_tried = || calls.is_prepared(problem, self.algorithm, Some(want));
            if !is_empty(problem) && (is_tried() || self.may_run(canary::check_backward(calls.gpu(), problem, want, waiting).await)?) {
                return calls.backward(asked, waiting, control).await;
            }
        }
        match &self.place {
            Runner::Oracle => {
                problem.check()?;
                want.check(problem)?;
                backward.check(problem, want)?;
                oracle::gradients(problem, inputs, backward.d_output, backward.d_lse).map(|oracle| oracle.into_gradients(problem, want))
            }
            Runner::Cpu | Runner::Gpu(_) => cpu::backward::attention(problem, inputs, backward, want, control),
        }
    }

    pub(crate) async fn run(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        waiting: Waiting,
        control: &mut Progress<'_>,
    ) -> Result<Outputs> {
        self.check_status(problem, inputs)?;
        if let Runner::Gpu(calls) = &self.place {
            problem.check()?;
            inputs.check(problem)?;
            let is_tried = || calls.is_prepared(problem, self.algorithm, None);
            if !is_empty(problem) && (is_tried() || self.may_run(canary::check(calls.gpu(), problem, self.algorithm, waiting).await)?) {
                return calls.attention(problem, inputs, self.algorithm, waiting, control).await;
            }
        }
        match &self.place {
            Runner::Oracle => oracle::attention(problem, inputs).map(|reference| reference.into_outputs(problem, inputs)),
            Runner::Cpu | Runner::Gpu(_) => cpu::tiled::attention(problem, inputs, control),
        }
    }

    /// Checks the `status` functions of users' terms, if the engine is a checked one.
    fn check_status(&self, problem: &Problem, inputs: &Inputs<'_>) -> Result<()> {
        if self.checked { cpu::check_status(problem, inputs) } else { Ok(()) }
    }

    /// True if the device may compute after the canary's verdict, false if the CPU path stands in for it.
    pub(crate) fn may_run(&self, checked: Result<()>) -> Result<bool> {
        match checked {
            Err(error @ Error::Miscomputed { .. }) if self.falls_back => {
                log::warn!("{error}; the CPU path computes it");
                Ok(false)
            }
            checked => checked.map(|()| true),
        }
    }
}

/// True if an operand or the score matrix is empty. Empty buffers cannot be bound, so the CPU path answers.
fn is_empty(problem: &Problem) -> bool {
    [problem.query_len(), problem.key_len(), problem.scores_len()].contains(&0)
}
