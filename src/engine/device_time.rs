//! Time of a computation on the device alone.

use std::time::Duration;

use web_time::Instant;

use super::{Engine, Runner, is_empty};
use crate::error::Result;
use crate::gpu::{Asked, Trial, Waiting, block_on};
use crate::problem::{BackwardInputs, Inputs, Problem, WantGradients};

/// Shortest duration of a batch: a submit costs up to a millisecond, and browsers round their clocks.
const BATCH_SECONDS: f64 = 20e-3;

impl Engine {
    /// Times `problem` on the device: seconds per attention, one figure for each batch of recordings in one submit. Data is
    /// uploaded before and nothing is read back. Measures for `budget`, or three batches if they take longer. Empty without
    /// a GPU. The answer is not checked.
    pub fn device_times(&self, problem: &Problem, inputs: &Inputs<'_>, budget: Duration) -> Result<Vec<f64>> {
        problem.check()?;
        inputs.check(problem)?;
        let trial = async || match &self.place {
            Runner::Gpu(calls) if !is_empty(problem) => {
                let gpu = calls.gpu();
                let trial = Trial::new(gpu, problem, inputs, gpu.plan(problem, self.algorithm)?)?;
                batches(&trial, budget, Waiting::Blocking).await
            }
            _ => Ok(Vec::new()),
        };
        block_on(trial(), "Engine::attention_async")
    }

    /// [`Self::device_times`] of the wanted gradients, without the forward pass. `backward` must have statistics.
    pub fn backward_device_times(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
        budget: Duration,
    ) -> Result<Vec<f64>> {
        problem.check()?;
        inputs.check(problem)?;
        want.check(problem)?;
        backward.check(problem, want)?;
        let trial = async || match &self.place {
            Runner::Gpu(calls) if !is_empty(problem) => {
                let plan = calls.gpu().plan_backward(problem, want)?;
                let trial = Trial::backward(calls.gpu(), Asked { problem, inputs, backward, want }, plan)?;
                batches(&trial, budget, Waiting::Blocking).await
            }
            _ => Ok(Vec::new()),
        };
        block_on(trial(), "Engine::backward_async")
    }
}

async fn batches(trial: &Trial, budget: Duration, waiting: Waiting) -> Result<Vec<f64>> {
    // The first run may still compile, and clears new buffers.
    trial.seconds(1, waiting).await?;
    let once = trial.seconds(1, waiting).await?;
    let batch = (BATCH_SECONDS / once.max(1e-7)).ceil().clamp(1.0, 1000.0) as u32;
    let (started, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || started.elapsed() < budget {
        times.push(trial.seconds(batch, waiting).await?);
    }
    Ok(times)
}
