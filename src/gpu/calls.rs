//! Calls from host memory, whose buffers are kept for the next call of the same problem.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::host::{Prepared, call_bytes};
use super::pipeline::PipelineKey;
use super::{Gpu, Waiting};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::problem::{Algorithm, BackwardInputs, Gradients, Inputs, Outputs, Problem, WantGradients};
use crate::progress::Progress;
use crate::wgsl::Kernel;

/// Number of prepared calls that are kept; the least recently used are dropped first.
const KEPT: usize = 32;
/// Bytes of buffers kept for prepared calls; the most recent call is kept even if it has more.
const KEPT_BYTES: u64 = 1 << 30;

/// Identity of a call, by which it finds its buffers.
#[derive(Clone, PartialEq)]
struct CallKey {
    problem: Problem,
    /// Wanted gradients, if it is a backward pass.
    want: Option<WantGradients>,
    algorithm: Algorithm,
    /// Kernel that tuning has found.
    kernel: Option<Kernel>,
}

impl CallKey {
    /// Key of attention, or of the wanted gradients.
    fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm, want: Option<&WantGradients>) -> Self {
        match want {
            None => Self { problem: problem.clone(), want: None, algorithm, kernel: gpu.fastest(problem) },
            Some(want) => Self { problem: problem.clone(), want: Some(*want), algorithm: Algorithm::Auto, kernel: None },
        }
    }
}

/// Gradients that are asked for, and what they are computed from.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) problem: &'a Problem,
    pub(crate) inputs: &'a Inputs<'a>,
    pub(crate) backward: &'a BackwardInputs<'a>,
    pub(crate) want: &'a WantGradients,
}

/// Device with the prepared calls of an engine, least recently used first.
pub(crate) struct Calls {
    gpu: Gpu,
    kept: Mutex<Vec<(CallKey, Prepared)>>,
}

impl std::fmt::Debug for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Calls").field("gpu", &self.gpu).finish_non_exhaustive()
    }
}

impl Calls {
    pub(crate) fn new(gpu: Gpu) -> Self {
        Self { gpu, kept: Mutex::default() }
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Computes `problem` on host data. Both have been checked.
    pub(crate) async fn attention(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        algorithm: Algorithm,
        waiting: Waiting,
        control: &mut Progress<'_>,
    ) -> Result<Outputs> {
        let key = CallKey::new(&self.gpu, problem, algorithm, None);
        let call = self.take(&key, || Prepared::forward(&self.gpu.for_call(), problem, algorithm))?;
        call.upload(inputs)?;
        let outputs = call.outputs(&call.bound, control, waiting, |_| {}).await;
        self.keep(key, call, outputs)
    }

    /// Computes the wanted gradients of `problem` on host data. Everything has been checked.
    pub(crate) async fn backward(&self, asked: Asked<'_>, waiting: Waiting, control: &mut Progress<'_>) -> Result<Gradients> {
        let Asked { problem, inputs, backward, want } = asked;
        let mut computed = None;
        if backward.stats.is_none() {
            let forward = problem.for_stats();
            computed = self.attention(&forward, inputs, Algorithm::Auto, waiting, &mut Progress::default()).await?.stats;
        }
        let stats = backward.stats.or(computed.as_deref()).unwrap_or_default();
        let key = CallKey::new(&self.gpu, problem, Algorithm::Auto, Some(want));
        let call = self.take(&key, || Prepared::backward(&self.gpu.for_call(), problem, want))?;
        call.upload_backward(inputs, backward, stats)?;
        let gradients = call.gradients(control, waiting).await;
        self.keep(key, call, gradients)
    }

    /// Bytes of the buffers of a call: of attention, or of the wanted gradients.
    pub(crate) fn bytes(&self, problem: &Problem, algorithm: Algorithm, want: Option<&WantGradients>) -> Result<u64> {
        Ok(call_bytes(&self.plan(problem, algorithm, want)?))
    }

    fn plan(&self, problem: &Problem, algorithm: Algorithm, want: Option<&WantGradients>) -> Result<Plan> {
        match want {
            None => self.gpu.plan(problem, algorithm),
            Some(want) => self.gpu.plan_backward(problem, want),
        }
    }

    /// Compiles the kernels of a call of attention, or of the wanted gradients, one by one.
    pub(crate) async fn compile(
        &self,
        problem: &Problem,
        algorithm: Algorithm,
        want: Option<&WantGradients>,
        control: &mut Progress<'_>,
    ) -> Result<()> {
        let plan = self.plan(problem, algorithm, want)?;
        let gpu = self.gpu.for_call();
        for (at, step) in plan.steps.iter().enumerate() {
            gpu.pipeline(PipelineKey::Attention(step.key.clone()))?;
            gpu.settled().await?;
            // The last share is for trying them.
            control.report((at + 1) as f64 / (plan.steps.len() + 1) as f64)?;
        }
        Ok(())
    }

    /// Drops the kept calls with their buffers.
    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    /// True if a call of attention, or of the wanted gradients, is prepared and not running.
    pub(crate) fn is_prepared(&self, problem: &Problem, algorithm: Algorithm, want: Option<&WantGradients>) -> bool {
        let key = CallKey::new(&self.gpu, problem, algorithm, want);
        self.lock().iter().any(|(kept, _)| *kept == key)
    }

    /// Takes a call out, so that no other caller can use it while it runs, or prepares it.
    fn take(&self, key: &CallKey, prepare: impl FnOnce() -> Result<Prepared>) -> Result<Prepared> {
        let kept = {
            let mut kept = self.lock();
            let found = kept.iter().position(|(kept, _)| kept == key);
            found.map(|at| kept.remove(at).1)
        };
        kept.map_or_else(prepare, Ok)
    }

    /// Keeps a call, unless the device failed, and drops the oldest ones beyond the limits. Returns its result.
    fn keep<T>(&self, key: CallKey, call: Prepared, result: Result<T>) -> Result<T> {
        if !matches!(result, Err(Error::Device { .. } | Error::Lost { .. } | Error::Shader { .. })) {
            let mut kept = self.lock();
            kept.push((key, call));
            let mut bytes: u64 = kept.iter().map(|(_, call)| call.bytes()).sum();
            while kept.len() > KEPT || (kept.len() > 1 && bytes > KEPT_BYTES) {
                bytes -= kept.remove(0).1.bytes();
            }
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(CallKey, Prepared)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ShaderOptions, choose_every};
    use super::*;
    use crate::problem::{BroadcastShape, Dims};

    #[test]
    fn calls_need_the_bytes_that_were_promised() {
        let mut problem = Problem::new(Dims { head_dim_v: 20, ..Dims::self_attention(1, 2, 33, 12) });
        (problem.bias, problem.sinks, problem.want.lse) = (Some(BroadcastShape([1, 1, 33, 33])), true, true);
        let want = WantGradients::all(&problem);
        for chosen in pollster::block_on(choose_every()) {
            let calls = Calls::new(pollster::block_on(Gpu::open(&chosen, ShaderOptions::default())).expect("it opens"));
            let made = Prepared::forward(&calls.gpu, &problem, Algorithm::Auto).expect("it fits");
            assert_eq!(calls.bytes(&problem, Algorithm::Auto, None), Ok(made.bytes()));
            let made = Prepared::backward(&calls.gpu, &problem, &want).expect("it fits");
            assert_eq!(calls.bytes(&problem, Algorithm::Auto, Some(&want)), Ok(made.bytes()));
        }
    }
}
