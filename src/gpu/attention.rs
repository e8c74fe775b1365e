//! Attention on an app's own buffers, recorded into its own encoder.

use super::Gpu;
use super::steps::{Dispatches, Ready};
use crate::error::Result;
use crate::plan::{BufferRef, Plan};
use crate::problem::{Algorithm, Problem};

/// Problem prepared on a device: planned, with compiled pipelines, parameters and scratch.
///
/// Create it once per shape, bind it, and record it as often as needed: recording does not submit, poll, copy or
/// allocate. Recordings of one `Attention` share its scratch, which is safe because a queue runs them in order.
#[derive(Debug)]
pub struct Attention(pub(super) Ready);

/// Buffers of an attention. Each must have `BufferUsages::STORAGE`, and its offset must be a multiple of the device's
/// `min_storage_buffer_offset_alignment` (a finer offset goes into [`crate::TensorSpec::offset`], in elements).
#[derive(Clone, Debug)]
pub struct Bindings<'a> {
    /// Query, as [`Problem::query`] describes.
    pub query: wgpu::BufferBinding<'a>,
    /// Key, as [`Problem::key`] describes.
    pub key: wgpu::BufferBinding<'a>,
    /// Value, as [`Problem::value`] describes.
    pub value: wgpu::BufferBinding<'a>,
    /// Output, as [`Problem::output`] describes. Must not overlap the others.
    pub output: wgpu::BufferBinding<'a>,
    /// Log-sum-exp of each row, f32, [`Problem::lse_len`] elements, if wanted.
    pub lse: Option<wgpu::BufferBinding<'a>>,
    /// Softmax statistics as in [`crate::Outputs::stats`], [`Problem::lse_len`] pairs of f32, if wanted.
    pub stats: Option<wgpu::BufferBinding<'a>>,
    /// Small vectors, as [`super::Tables`] describes, if the problem has any.
    pub tables: Option<wgpu::BufferBinding<'a>>,
    /// Additive bias, f32, if the problem has one.
    pub bias: Option<wgpu::BufferBinding<'a>>,
    /// Boolean mask, one byte per element, 0 = masked, padded to whole words, if the problem has one.
    pub mask: Option<wgpu::BufferBinding<'a>>,
    /// Scores, f32, [`Problem::scores_len`] elements, if wanted.
    pub scores: Option<wgpu::BufferBinding<'a>>,
    /// Softmax weights, f32, [`Problem::scores_len`] elements, if wanted. The weight of a masked key is 0.
    pub weights: Option<wgpu::BufferBinding<'a>>,
}

impl<'a> Bindings<'a> {
    /// Binds whole buffers for query, key, value and output only.
    pub fn new(query: &'a wgpu::Buffer, key: &'a wgpu::Buffer, value: &'a wgpu::Buffer, output: &'a wgpu::Buffer) -> Self {
        let [query, key, value, output] = [query, key, value, output].map(wgpu::Buffer::as_entire_buffer_binding);
        Self { query, key, value, output, lse: None, stats: None, tables: None, bias: None, mask: None, scores: None, weights: None }
    }
}

impl Attention {
    /// Plans `problem` for the device and compiles the pipelines that are missing.
    pub fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        problem.check()?;
        let plan = Plan::of(problem, &gpu.caps().for_replays(problem.flops()), algorithm, gpu.fastest(problem))?;
        Ready::new(gpu, problem, None, plan, None).map(Self)
    }

    /// Plan of the problem.
    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    /// Binds buffers. Cheap, but worth keeping: a bind group costs microseconds.
    pub fn bind(&self, bindings: &Bindings<'_>) -> Result<Dispatches> {
        self.0.bind(&[
            (BufferRef::Query, Some(&bindings.query)),
            (BufferRef::Key, Some(&bindings.key)),
            (BufferRef::Value, Some(&bindings.value)),
            (BufferRef::Output, Some(&bindings.output)),
            (BufferRef::Lse, bindings.lse.as_ref()),
            (BufferRef::Stats, bindings.stats.as_ref()),
            (BufferRef::Tables, bindings.tables.as_ref()),
            (BufferRef::Bias, bindings.bias.as_ref()),
            (BufferRef::Mask, bindings.mask.as_ref()),
            (BufferRef::Scores, bindings.scores.as_ref()),
            (BufferRef::Weights, bindings.weights.as_ref()),
        ])
    }
}
