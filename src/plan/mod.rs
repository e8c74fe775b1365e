//! Planner: (problem, device capabilities) -> kernels, their tiles and their buffers. Pure: no device is touched.

mod backward;
mod builder;
mod cache_export;
mod cache_step;
mod cache_words;
mod contents;
mod export;
mod fused;
mod gradient_shapes;
mod json;
mod key_sums;
mod limits;
mod loops;
mod matrix;
mod ranges;
mod shader;
mod software;
mod staged;
mod step;
mod suited;
mod tensor;
mod tensors;
mod term_tables;
mod tile_list;
mod tune;

pub(crate) use cache_step::CacheStep;
pub(crate) use cache_words::CacheWords;
pub(crate) use fused::{candidates, merge_steps};
pub(crate) use limits::{CHAIN, Piece, check_bytes, grid, pieces};
pub(crate) use ranges::{BindingRange, of_slot};
pub(crate) use step::{BufferRef, Step};
pub(crate) use tune::{class_of, kernel_text, read_kernel};

pub use crate::wgsl::{DeviceCaps, DeviceClass, Specialise};
pub use contents::{TensorBytes, gradients_of, outputs_of};
pub use export::{BindingExport, BufferExport, DispatchExport, KernelExport, PlanExport, RequiredExport};
pub use shader::{Shader, cache_shaders, linear_shaders};
pub use step::Plan;
pub use tensor::{TensorExport, VectorExport};

use crate::error::{Error, Result};
use crate::problem::{Algorithm, Problem};
use crate::wgsl::{Kernel, KernelKey, compose};
use builder::Builder;

impl Plan {
    /// Plans `problem` for a device with `caps`.
    ///
    /// Errors name the limit that is exceeded, what the problem needs and what would help.
    pub fn new(problem: &Problem, caps: &DeviceCaps, algorithm: Algorithm) -> Result<Self> {
        problem.check()?;
        Self::of(problem, caps, algorithm, None)
    }

    /// [`Self::new`] for a problem that has been checked. Prefers `kernel`, found fastest by autotuning, where it works.
    pub(crate) fn of(problem: &Problem, caps: &DeviceCaps, algorithm: Algorithm, kernel: Option<Kernel>) -> Result<Self> {
        Self::build(Builder::new(problem, caps, None)?, algorithm, kernel)
    }

    /// [`Self::of`] for lengths and page table in a cache's state; the tables buffer has neither. The grid covers the
    /// longest possible sequences; workgroups that find no keys end at once.
    pub(crate) fn on_cache(
        problem: &Problem,
        caps: &DeviceCaps,
        algorithm: Algorithm,
        kernel: Option<Kernel>,
        words: CacheWords,
    ) -> Result<Self> {
        Self::build(Builder::new(problem, &caps.for_replays(problem.flops()), Some(words))?, algorithm, kernel)
    }

    fn build(plan: Builder<'_>, algorithm: Algorithm, kernel: Option<Kernel>) -> Result<Self> {
        let (problem, caps) = (plan.problem, plan.caps);
        let wants_matrix = problem.want.scores.is_some() || problem.want.weights;
        match algorithm {
            Algorithm::Staged => return staged::plan(plan, "asked for"),
            Algorithm::Auto if wants_matrix => return staged::plan(plan, "scores or weights are wanted"),
            Algorithm::Fused if wants_matrix => {
                return Err(Error::unsupported(
                    "scores or weights from the fused algorithm, which never has them in memory",
                    "ask for Algorithm::Staged or Auto",
                ));
            }
            Algorithm::Auto | Algorithm::Fused => {}
        }
        match fused::choose(&plan, kernel) {
            Some(key) => fused::plan(plan, key),
            None if algorithm == Algorithm::Auto => staged::plan(plan, "the head is too wide for the fused kernel's workgroup memory"),
            None => Err(fused::too_wide(problem, caps)),
        }
    }

    /// Returns each kernel of the plan once, with its WGSL.
    pub fn shaders(&self) -> Vec<Shader> {
        self.keys().into_iter().map(|key| Shader::new(key.kernel.to_string(), compose(key), key.threads(), key.workgroup_bytes())).collect()
    }

    /// Variants of the plan's kernels, each once, in the order in which they run first.
    fn keys(&self) -> Vec<&KernelKey> {
        let mut keys: Vec<&KernelKey> = Vec::new();
        for step in &self.steps {
            if !keys.contains(&&step.key) {
                keys.push(&step.key);
            }
        }
        keys
    }
}
