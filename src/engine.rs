//! One front for GPU and CPU: choose where to run, plan, run.

use crate::gpu::{self, Gpu, ShaderOptions, Waiting};
use crate::{Algorithm, Backend, BackwardInputs, Control, Error, Gradients, Inputs, Outputs, Problem, Result, WantGradients, canary, cpu};

/// How to make an [`Engine`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Where to run.
    pub backend: Backend,
    /// Which way to compute.
    pub algorithm: Algorithm,
    /// How shaders are made.
    pub shaders: ShaderOptions,
}

/// Computes attention where it was told to. Cheap to clone; clones share the device.
#[derive(Clone, Debug)]
pub struct Engine {
    place: Place,
    algorithm: Algorithm,
    chosen: String,
    why: String,
    /// Whether the CPU path may stand in for a device whose kernels are wrong.
    falls_back: bool,
}

#[derive(Clone, Debug)]
enum Place {
    Cpu,
    Oracle,
    Gpu(Gpu),
}

impl Engine {
    /// Chooses a backend and makes it ready.
    pub fn new(options: EngineOptions) -> Result<Self> {
        pollster::block_on(Self::new_async(options))
    }

    /// As [`Self::new`], without blocking.
    pub async fn new_async(options: EngineOptions) -> Result<Self> {
        let (place, chosen, why) = match (gpu::choose(&options.backend).await?, &options.backend) {
            (Some(chosen), _) => {
                let gpu = Gpu::open(&chosen, options.shaders).await?;
                let name = gpu.name().to_string();
                (Place::Gpu(gpu), name, chosen.why)
            }
            (None, Backend::Oracle) => (Place::Oracle, "oracle (f64)".into(), "it was asked for".into()),
            (None, Backend::Auto) => (Place::Cpu, "cpu".into(), "there is no GPU; software adapters are taken only when asked for".into()),
            (None, _) => (Place::Cpu, "cpu".into(), "it was asked for".into()),
        };
        log::info!("running on {chosen}: {why}");
        Ok(Self { place, algorithm: options.algorithm, chosen, why, falls_back: options.backend == Backend::Auto })
    }

    /// The CPU path, and every adapter that can compute, each once; and why an adapter is left out.
    pub fn every(shaders: ShaderOptions) -> (Vec<Self>, Vec<String>) {
        let cpu = Self {
            place: Place::Cpu,
            algorithm: Algorithm::Auto,
            chosen: "cpu".into(),
            why: "every backend was asked for".into(),
            falls_back: false,
        };
        let (mut engines, mut left_out) = (vec![cpu], Vec::new());
        for chosen in pollster::block_on(gpu::choose_every()) {
            match pollster::block_on(Gpu::open(&chosen, shaders)) {
                Ok(gpu) => engines.push(Self { why: chosen.why, ..Self::on_gpu(gpu) }),
                Err(error) => left_out.push(error.to_string()),
            }
        }
        (engines, left_out)
    }

    /// Runs on an app's own device.
    pub fn on_gpu(gpu: Gpu) -> Self {
        Self {
            chosen: gpu.name().to_string(),
            why: "the app's own device".into(),
            algorithm: Algorithm::Auto,
            place: Place::Gpu(gpu),
            falls_back: false,
        }
    }

    /// What runs the work: `cpu`, `oracle`, or the adapter's name, backend and driver.
    pub fn chosen(&self) -> &str {
        &self.chosen
    }

    /// Why that was chosen.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The device, where it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.place {
            Place::Gpu(gpu) => Some(gpu),
            Place::Cpu | Place::Oracle => None,
        }
    }

    /// Which way to compute.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The same engine, computing the other way.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// What would be done for `problem`: kernel, tiles, grid, memory.
    pub fn explain(&self, problem: &Problem) -> Result<String> {
        problem.check()?;
        Ok(match &self.place {
            Place::Oracle => "naive f64, every matrix written out".into(),
            Place::Cpu => "cpu path".into(),
            Place::Gpu(gpu) => gpu.plan(problem, self.algorithm)?.summary().into(),
        })
    }

    /// Lets each kernel that `problem` takes, and that was not tried yet in this process on such a device, compute a tiny problem, and holds the
    /// answer against the CPU's. [`Self::attention`] does so by itself, and with [`Backend::Auto`] the CPU path stands in for what is wrong; an
    /// app that records [`crate::gpu::Attention`]s on its own device can call it once when it starts: it submits and waits.
    ///
    /// It takes a millisecond or so besides compiling what the problem needs in any case. Gradients and layers try theirs in the same way; what
    /// appends to caches and what projects in layers is not tried.
    pub fn check_kernels(&self, problem: &Problem) -> Result<()> {
        problem.check()?;
        match &self.place {
            Place::Gpu(gpu) if !is_empty(problem) => canary::check(gpu, problem, self.algorithm),
            _ => Ok(()),
        }
    }

    /// Computes `problem`, blocking until the answer is there.
    pub fn attention(&self, problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
        self.attention_controlled(problem, inputs, &mut Control::default())
    }

    /// As [`Self::attention`], with progress and cancellation.
    pub fn attention_controlled(&self, problem: &Problem, inputs: &Inputs<'_>, control: &mut Control<'_>) -> Result<Outputs> {
        pollster::block_on(self.run(problem, inputs, Waiting::Blocking, control))
    }

    /// As [`Self::attention`], into `outputs` that were there before. On the CPU path nothing is allocated from the second call of a
    /// problem on, and what lies between strided elements keeps what it held. After an error the outputs hold nothing of use.
    pub fn attention_into(&self, problem: &Problem, inputs: &Inputs<'_>, outputs: &mut Outputs) -> Result<()> {
        match self.place {
            Place::Cpu => cpu::tiled::attention_into(problem, inputs, outputs, &mut Control::default()),
            _ => self.attention(problem, inputs).map(|new| *outputs = new),
        }
    }

    /// As [`Self::attention_controlled`], without blocking: a thread of its own polls the device, in a browser the event loop does.
    /// The CPU path computes inside the first poll.
    pub async fn attention_async(&self, problem: &Problem, inputs: &Inputs<'_>, control: &mut Control<'_>) -> Result<Outputs> {
        self.run(problem, inputs, Waiting::Async, control).await
    }

    /// Computes the gradients of `problem` that are wanted, from its inputs, what its forward pass gave, and the gradient of the output,
    /// blocking until they are there. See [`Gradients`] for the formulas.
    pub fn backward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
    ) -> Result<Gradients> {
        self.backward_controlled(problem, inputs, backward, want, &mut Control::default())
    }

    /// As [`Self::backward`], with progress and cancellation.
    pub fn backward_controlled(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        control: &mut Control<'_>,
    ) -> Result<Gradients> {
        pollster::block_on(self.run_backward(problem, inputs, backward, want, Waiting::Blocking, control))
    }

    /// As [`Self::backward_controlled`], without blocking, as [`Self::attention_async`] does.
    pub async fn backward_async(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        control: &mut Control<'_>,
    ) -> Result<Gradients> {
        self.run_backward(problem, inputs, backward, want, Waiting::Async, control).await
    }

    /// As with [`Backend::Auto`]: the CPU path stands in for kernels that the device gets wrong.
    #[cfg(test)]
    pub(crate) fn falling_back(self) -> Self {
        Self { falls_back: true, ..self }
    }

    async fn run_backward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        waiting: Waiting,
        control: &mut Control<'_>,
    ) -> Result<Gradients> {
        problem.check()?;
        inputs.check(problem)?;
        want.check(problem)?;
        backward.check(problem)?;
        match &self.place {
            Place::Gpu(gpu) if !is_empty(problem) && self.may_run(canary::check_backward(gpu, problem, want))? => {
                gpu.backward(problem, inputs, backward, want, waiting, control).await
            }
            Place::Oracle => {
                cpu::naive_backward::attention(problem, inputs, backward.d_output).map(|oracle| oracle.into_gradients(problem, want))
            }
            Place::Cpu | Place::Gpu(_) => cpu::backward::attention(problem, inputs, backward, want, control),
        }
    }

    async fn run(&self, problem: &Problem, inputs: &Inputs<'_>, waiting: Waiting, control: &mut Control<'_>) -> Result<Outputs> {
        problem.check()?;
        inputs.check(problem)?;
        match &self.place {
            Place::Oracle => cpu::naive::attention(problem, inputs).map(|reference| reference.into_outputs(problem, inputs)),
            Place::Gpu(gpu) if !is_empty(problem) && self.may_run(canary::check(gpu, problem, self.algorithm))? => {
                gpu.attention(problem, inputs, self.algorithm, waiting, control).await
            }
            Place::Cpu | Place::Gpu(_) => cpu::tiled::attention(problem, inputs, control),
        }
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

/// Whether there is nothing to compute. Buffers of no size cannot be bound: the CPU answers.
fn is_empty(problem: &Problem) -> bool {
    [problem.query_len(), problem.key_len(), problem.scores_len()].contains(&0)
}
