//! The functions that a case file runs on.

use crate::engine::Engine;
use crate::error::Result;
use crate::gpu::block_on;
use crate::onnx::AttentionOutputs;
use crate::problem::{AttentionFn, Inputs, Outputs, Problem};
use crate::verify::expect_backward::AttendBackward;

/// Runner of a file.
pub(super) struct Runner<'a> {
    pub(super) attend: &'a AttentionFn<'a>,
    /// Engine of layers.
    pub(super) engine: Option<&'a Engine>,
    pub(super) backward: Option<&'a AttendBackward<'a>>,
}

impl Runner<'_> {
    /// Attention of an operator.
    pub(super) fn attention(&self) -> impl AsyncFn(&Problem, &Inputs<'_>) -> Result<Outputs> {
        async |problem, inputs| (self.attend)(problem, inputs)
    }

    /// Result of an operator that has [`Self::attention`], which never waits.
    pub(super) fn node(&self, node: impl Future<Output = Result<AttentionOutputs>>) -> Result<AttentionOutputs> {
        block_on(node, "onnx::Attention::run_async")
    }
}
