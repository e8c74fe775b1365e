//! Trials of kernels on a problem: their answer, and their time.

use web_time::Instant;

use super::host::{Prepared, submit};
use super::steps::Ready;
use super::wait::finished;
use super::{Asked, Gpu, Waiting};
use crate::error::Result;
use crate::plan::Plan;
use crate::problem::{Gradients, Inputs, Outputs, Problem};
use crate::progress::Progress;

/// Problem with its data on the device, to be computed by one kernel.
pub(crate) struct Trial(Prepared);

impl Trial {
    /// Compiles the plan's kernels and uploads the data. Both problem and data have been checked.
    pub(crate) fn new(gpu: &Gpu, problem: &Problem, inputs: &Inputs<'_>, plan: Plan) -> Result<Self> {
        let prepared = Prepared::new(&Ready::new(&gpu.for_call(), problem, None, plan, None)?)?;
        prepared.upload(inputs)?;
        Ok(Self(prepared))
    }

    /// [`Self::new`] for gradients: the request has statistics.
    pub(crate) fn backward(gpu: &Gpu, asked: Asked<'_>, plan: Plan) -> Result<Self> {
        let Asked { problem, inputs, backward, want } = asked;
        let prepared = Prepared::new(&Ready::new(&gpu.for_call(), problem, Some(want), plan, None)?)?;
        prepared.upload_backward(inputs, backward, backward.stats.unwrap_or_default())?;
        Ok(Self(prepared))
    }

    /// Computes the answer.
    pub(crate) async fn answer(&self, waiting: Waiting) -> Result<Outputs> {
        self.0.outputs(&self.0.bound, &mut Progress::default(), waiting, |_| {}).await
    }

    /// Computes the gradients, if it is a trial of those.
    pub(crate) async fn gradients(&self, waiting: Waiting) -> Result<Gradients> {
        self.0.gradients(&mut Progress::default(), waiting).await
    }

    /// Seconds per recording, of `times` recordings in one submit, copies excluded. A single one that would keep the device
    /// busy for long takes several submits.
    pub(crate) async fn seconds(&self, times: u32, waiting: Waiting) -> Result<f64> {
        let Prepared { gpu, bound, .. } = &self.0;
        let started = Instant::now();
        let submission = if times == 1 {
            submit(gpu, bound, &mut Progress::default(), waiting, |_| {}).await?
        } else {
            Some(gpu.guarded(|| {
                let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("attention trial") });
                (0..times).for_each(|_| bound.record(&mut encoder));
                gpu.queue().submit([encoder.finish()])
            })?)
        };
        if let Some(submission) = submission {
            finished(gpu, submission, waiting).await?;
        }
        Ok(started.elapsed().as_secs_f64() / f64::from(times))
    }
}
