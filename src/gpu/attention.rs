//! Attention and its gradients on an app's own buffers, recorded into its own encoder.

use super::steps::{Dispatches, Ready};
use super::{Gpu, Phase};
use crate::error::Result;
use crate::plan::{BufferRef, Plan};
use crate::problem::{Algorithm, Problem, WantGradients};

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
    /// Sums of each key's weights as in [`crate::Outputs::key_sums`], f32, [`Problem::key_sums_len`] elements, if wanted.
    pub key_sums: Option<wgpu::BufferBinding<'a>>,
}

impl<'a> Bindings<'a> {
    /// Binds whole buffers for query, key, value and output only.
    pub fn new(query: &'a wgpu::Buffer, key: &'a wgpu::Buffer, value: &'a wgpu::Buffer, output: &'a wgpu::Buffer) -> Self {
        let [query, key, value, output] = [query, key, value, output].map(wgpu::Buffer::as_entire_buffer_binding);
        Self {
            query,
            key,
            value,
            output,
            lse: None,
            stats: None,
            tables: None,
            bias: None,
            mask: None,
            scores: None,
            weights: None,
            key_sums: None,
        }
    }
}

impl Attention {
    /// Plans `problem` for the device and compiles the pipelines that are missing.
    pub fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        problem.check()?;
        let caps = gpu.caps().for_replays(problem.flops());
        let plan = gpu.timed(Phase::Plan, || Plan::of(problem, &caps, algorithm, gpu.fastest(problem)))?;
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
            (BufferRef::KeySums, bindings.key_sums.as_ref()),
        ])
    }
}

/// Backward pass of a problem, prepared on a device: planned, with compiled pipelines, parameters and scratch.
///
/// As with [`super::Attention`], create it once per shape, bind it to buffers, and record it as often as needed:
/// recording neither submits, polls, copies nor allocates. Recordings share its scratch and run in order on one queue.
/// Dropout's seed and offset are in the tables buffer, so a training step changes twelve bytes and plans nothing.
#[derive(Debug)]
pub struct Backward(pub(super) Ready);

/// Buffers of a backward pass, under the rules of [`super::Bindings`]. Gradients must not overlap any other buffer.
#[derive(Clone, Debug)]
pub struct BackwardBindings<'a> {
    /// Query, as [`Problem::query`] describes.
    pub query: wgpu::BufferBinding<'a>,
    /// Key, as [`Problem::key`] describes.
    pub key: wgpu::BufferBinding<'a>,
    /// Value, as [`Problem::value`] describes.
    pub value: wgpu::BufferBinding<'a>,
    /// Output of the forward pass, as [`Problem::output`] describes.
    pub output: wgpu::BufferBinding<'a>,
    /// Softmax statistics of the forward pass as in [`crate::Outputs::stats`], [`Problem::lse_len`] pairs of f32.
    pub stats: wgpu::BufferBinding<'a>,
    /// Gradient of the output, stored as the output is.
    pub d_output: wgpu::BufferBinding<'a>,
    /// Gradient of the lse, [`Problem::lse_len`] f32, if [`WantGradients::through_lse`] is set.
    pub d_lse: Option<wgpu::BufferBinding<'a>>,
    /// Small vectors, as [`super::Tables`] describes, if the problem has any.
    pub tables: Option<wgpu::BufferBinding<'a>>,
    /// Additive bias, f32, if the problem has one.
    pub bias: Option<wgpu::BufferBinding<'a>>,
    /// Boolean mask, one byte per element, 0 = masked, padded to whole words, if the problem has one.
    pub mask: Option<wgpu::BufferBinding<'a>>,
    /// dQ, laid out as the query is, if wanted.
    pub d_query: Option<wgpu::BufferBinding<'a>>,
    /// dK, laid out as the key is, if wanted.
    pub d_key: Option<wgpu::BufferBinding<'a>>,
    /// dV, laid out as the value is, if wanted.
    pub d_value: Option<wgpu::BufferBinding<'a>>,
    /// Gradient of the additive bias, f32 in its shape, if wanted.
    pub d_bias: Option<wgpu::BufferBinding<'a>>,
    /// Gradient of the table of relative biases, f32 [num_heads, 2 * max_distance + 1], if wanted.
    pub d_relative_bias: Option<wgpu::BufferBinding<'a>>,
    /// Gradient of the sinks, f32 `[num_heads]`, if wanted.
    pub d_sinks: Option<wgpu::BufferBinding<'a>>,
    /// Gradients of the tables that have an owner, f32 as in [`crate::Gradients::term_tables`], if wanted.
    pub d_term_tables: Option<wgpu::BufferBinding<'a>>,
}

impl<'a> BackwardBindings<'a> {
    /// Binds whole buffers for what every backward pass reads; add at least one gradient.
    pub fn new([query, key, value, output, stats, d_output]: [&'a wgpu::Buffer; 6]) -> Self {
        let whole = |buffer: &'a wgpu::Buffer| buffer.as_entire_buffer_binding();
        Self {
            query: whole(query),
            key: whole(key),
            value: whole(value),
            output: whole(output),
            stats: whole(stats),
            d_output: whole(d_output),
            d_lse: None,
            tables: None,
            bias: None,
            mask: None,
            d_query: None,
            d_key: None,
            d_value: None,
            d_bias: None,
            d_relative_bias: None,
            d_sinks: None,
            d_term_tables: None,
        }
    }
}

impl Backward {
    /// Plans the wanted gradients of `problem` for the device and compiles the pipelines that are missing.
    pub fn new(gpu: &Gpu, problem: &Problem, want: &WantGradients) -> Result<Self> {
        problem.check()?;
        want.check(problem)?;
        Self::of(gpu, problem, want)
    }

    /// [`Self::new`] for what has been checked.
    pub(super) fn of(gpu: &Gpu, problem: &Problem, want: &WantGradients) -> Result<Self> {
        Ready::new(gpu, problem, Some(want), gpu.plan_backward(problem, want)?, None).map(Self)
    }

    /// Plan of the gradients.
    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    /// Binds buffers. Cheap, but worth keeping.
    pub fn bind(&self, bindings: &BackwardBindings<'_>) -> Result<Dispatches> {
        self.0.bind(&[
            (BufferRef::Query, Some(&bindings.query)),
            (BufferRef::Key, Some(&bindings.key)),
            (BufferRef::Value, Some(&bindings.value)),
            (BufferRef::Output, Some(&bindings.output)),
            (BufferRef::Stats, Some(&bindings.stats)),
            (BufferRef::DOutput, Some(&bindings.d_output)),
            (BufferRef::DLse, bindings.d_lse.as_ref()),
            (BufferRef::Tables, bindings.tables.as_ref()),
            (BufferRef::Bias, bindings.bias.as_ref()),
            (BufferRef::Mask, bindings.mask.as_ref()),
            (BufferRef::DQuery, bindings.d_query.as_ref()),
            (BufferRef::DKey, bindings.d_key.as_ref()),
            (BufferRef::DValue, bindings.d_value.as_ref()),
            (BufferRef::DBias, bindings.d_bias.as_ref()),
            (BufferRef::DRelativeBias, bindings.d_relative_bias.as_ref()),
            (BufferRef::DSinks, bindings.d_sinks.as_ref()),
            (BufferRef::DTermTables, bindings.d_term_tables.as_ref()),
        ])
    }
}
