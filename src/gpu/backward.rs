//! Gradients of an attention on an app's own buffers, recorded into its own encoder.

use super::Gpu;
use super::steps::{Dispatches, Ready};
use crate::error::Result;
use crate::plan::{BufferRef, Plan};
use crate::problem::{Operand, Problem, WantGradients};

/// Backward pass of a problem, prepared on a device: planned, with compiled pipelines, parameters and scratch.
///
/// As with [`super::Attention`], create it once per shape, bind it to buffers, and record it as often as needed:
/// recording neither submits, polls, copies nor allocates. Recordings share its scratch and run in order on one queue.
/// Dropout's seed and offset are in the tables buffer, so a training step changes twelve bytes and plans nothing.
pub struct Backward {
    problem: Problem,
    want: WantGradients,
    ready: Ready,
}

impl std::fmt::Debug for Backward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backward").field("problem", &self.problem).field("want", &self.want).finish_non_exhaustive()
    }
}

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
    /// Small vectors in the order of [`crate::plan::TableLayout`], if the problem has any.
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
        Self::of_plan(gpu, problem, want, Plan::of_backward(problem, want, gpu.caps())?)
    }

    pub(super) fn of_plan(gpu: &Gpu, problem: &Problem, want: &WantGradients, plan: Plan) -> Result<Self> {
        Ok(Self { problem: *problem, want: *want, ready: Ready::new(gpu, plan)? })
    }

    /// Plan of the gradients.
    pub fn plan(&self) -> &Plan {
        &self.ready.plan
    }

    /// Binds buffers. Cheap, but worth keeping.
    pub fn bind(&self, bindings: &BackwardBindings<'_>) -> Result<Dispatches> {
        self.check(bindings)?;
        self.ready.bind(|place| match place {
            BufferRef::Query => Some(bindings.query.clone()),
            BufferRef::Key => Some(bindings.key.clone()),
            BufferRef::Value => Some(bindings.value.clone()),
            BufferRef::Output => Some(bindings.output.clone()),
            BufferRef::Stats => Some(bindings.stats.clone()),
            BufferRef::DOutput => Some(bindings.d_output.clone()),
            BufferRef::Tables => bindings.tables.clone(),
            BufferRef::Bias => bindings.bias.clone(),
            BufferRef::Mask => bindings.mask.clone(),
            BufferRef::DQuery => bindings.d_query.clone(),
            BufferRef::DKey => bindings.d_key.clone(),
            BufferRef::DValue => bindings.d_value.clone(),
            BufferRef::DBias => bindings.d_bias.clone(),
            BufferRef::DRelativeBias => bindings.d_relative_bias.clone(),
            BufferRef::DSinks => bindings.d_sinks.clone(),
            _ => None, // only in forward plans
        })
    }

    fn check(&self, bindings: &BackwardBindings<'_>) -> Result<()> {
        let p = &self.problem;
        let bytes = |operand| p.spec(operand).dtype.bytes(p.operand_len(operand)) as u64;
        let gradient = |operand| self.want.dtype(p, operand).bytes(p.operand_len(operand)) as u64;
        let elements =
            |shape: Option<crate::problem::BroadcastShape>| shape.and_then(crate::problem::BroadcastShape::elements).unwrap_or(0) as u64;
        let needs = |needed: bool, size: u64| needed.then_some(size);
        let table_words = u64::from(self.ready.plan.table_words);
        self.ready.check(&[
            ("query", Some(&bindings.query), Some(bytes(Operand::Query))),
            ("key", Some(&bindings.key), Some(bytes(Operand::Key))),
            ("value", Some(&bindings.value), Some(bytes(Operand::Value))),
            ("output", Some(&bindings.output), Some(bytes(Operand::Output))),
            ("stats", Some(&bindings.stats), Some(8 * p.lse_len() as u64)),
            ("d_output", Some(&bindings.d_output), Some(bytes(Operand::Output))),
            ("tables", bindings.tables.as_ref(), needs(table_words > 0, 4 * table_words)),
            ("bias", bindings.bias.as_ref(), needs(p.bias.is_some(), 4 * elements(p.bias))),
            ("mask", bindings.mask.as_ref(), needs(p.visibility.mask.is_some(), elements(p.visibility.mask))),
            ("d_query", bindings.d_query.as_ref(), needs(self.want.query, gradient(Operand::Query))),
            ("d_key", bindings.d_key.as_ref(), needs(self.want.key, gradient(Operand::Key))),
            ("d_value", bindings.d_value.as_ref(), needs(self.want.value, gradient(Operand::Value))),
            ("d_bias", bindings.d_bias.as_ref(), needs(self.want.bias, 4 * elements(p.bias))),
            ("d_relative_bias", bindings.d_relative_bias.as_ref(), needs(self.want.relative_bias, 4 * p.relative_bias_len() as u64)),
            ("d_sinks", bindings.d_sinks.as_ref(), needs(self.want.sinks, 4 * p.dims.num_heads as u64)),
        ])
    }
}
