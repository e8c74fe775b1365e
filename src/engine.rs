//! One front for GPU and CPU: choose where to run, plan, run.

use std::fmt;
use std::str::FromStr;

use crate::{Control, Error, Inputs, Outputs, Problem, Result, cpu};

/// Where to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// A real GPU if there is one, else the CPU path. wgpu's variables (`WGPU_BACKEND`, `WGPU_ADAPTER_NAME`, `WGPU_POWER_PREF`)
    /// are obeyed; a software adapter is taken only if one of the first two asks for it.
    #[default]
    Auto,
    /// The CPU path.
    Cpu,
    /// The f64 oracle: slow, right.
    Oracle,
    /// An adapter of this wgpu backend or with this text in its name, software or not: `vulkan`, `gl`, `metal`, `dx12`, `llvmpipe`.
    Adapter(String),
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.trim() {
            "" => {
                return Err(Error::invalid(
                    "backend",
                    "is empty: say auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name",
                ));
            }
            "auto" => Self::Auto,
            "cpu" => Self::Cpu,
            "oracle" => Self::Oracle,
            name => Self::Adapter(name.to_string()),
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::Cpu => f.pad("cpu"),
            Self::Oracle => f.pad("oracle"),
            Self::Adapter(name) => f.pad(name),
        }
    }
}

/// Which of the two ways to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Fused, unless scores or weights are asked for.
    #[default]
    Auto,
    /// One pass over the keys with a running maximum and sum; memory grows with seq_len.
    Fused,
    /// QKᵀ, softmax, weighted V, one after the other; memory grows with seq_len_q x seq_len_kv.
    Staged,
}

/// How to make an [`Engine`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Where to run.
    pub backend: Backend,
    /// Which way to compute.
    pub algorithm: Algorithm,
    /// Run the shaders with every runtime check on (bounds, loops, divisions): slow; to find bugs.
    pub checked: bool,
}

/// Computes attention where it was told to.
#[derive(Clone, Debug)]
pub struct Engine {
    options: EngineOptions,
    chosen: String,
    why: String,
}

impl Engine {
    /// Chooses a backend and makes it ready.
    pub fn new(options: EngineOptions) -> Result<Self> {
        pollster::block_on(Self::new_async(options))
    }

    /// As [`Self::new`], without blocking.
    pub async fn new_async(options: EngineOptions) -> Result<Self> {
        Ok(Self { chosen: options.backend.to_string(), why: "skeleton".into(), options })
    }

    /// What runs the work: `cpu`, `oracle`, or the adapter's name and backend.
    pub fn chosen(&self) -> &str {
        &self.chosen
    }

    /// Why that was chosen.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// The same engine, computing the other way.
    #[must_use]
    pub fn with_algorithm(mut self, algorithm: Algorithm) -> Self {
        self.options.algorithm = algorithm;
        self
    }

    /// Computes `problem`, blocking until the answer is there.
    pub fn attention(&self, problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
        self.attention_controlled(problem, inputs, &mut Control::default())
    }

    /// As [`Self::attention`], with progress and cancellation.
    pub fn attention_controlled(&self, problem: &Problem, inputs: &Inputs<'_>, control: &mut Control<'_>) -> Result<Outputs> {
        problem.check()?;
        inputs.check(problem)?;
        cpu::tiled::attention(problem, inputs, control)
    }
}
