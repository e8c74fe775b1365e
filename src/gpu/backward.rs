//! The gradients of an attention on an app's own buffers, recorded into its own encoder.

use super::Gpu;
use super::steps::{Bound, Ready};
use crate::plan::{Place, Plan};
use crate::problem::Operand;
use crate::{Problem, Result, WantGradients};

/// The backward pass of a problem made ready on a device: planned, its pipelines compiled, its parameters and scratch in place.
///
/// As with [`super::Attention`]: make it once for a shape, bind it to buffers, record it as often as needed; recording neither submits,
/// polls, copies nor allocates. Two recordings of one `Backward` share its scratch; on one queue they run one after the other.
/// Dropout's seed and offset lie in the tables buffer, so that a training step changes twelve bytes and plans nothing.
pub struct Backward {
    problem: Problem,
    want: WantGradients,
    ready: Ready,
}

/// The buffers of a backward pass, with the rules of [`super::Bindings`]. Those of gradients must not overlap any others.
#[derive(Clone, Debug)]
pub struct BackwardBindings<'a> {
    /// As [`Problem::query`] describes.
    pub query: wgpu::BufferBinding<'a>,
    /// As [`Problem::key`] describes.
    pub key: wgpu::BufferBinding<'a>,
    /// As [`Problem::value`] describes.
    pub value: wgpu::BufferBinding<'a>,
    /// The forward pass's output, as [`Problem::output`] describes.
    pub output: wgpu::BufferBinding<'a>,
    /// The forward pass's softmax statistics: pairs of f32, [`Problem::lse_len`] of them, as [`crate::Outputs::stats`].
    pub stats: wgpu::BufferBinding<'a>,
    /// The gradient of the output, stored as the output is.
    pub d_output: wgpu::BufferBinding<'a>,
    /// The small vectors, in the order of [`crate::plan::TableLayout`], if the problem has any.
    pub tables: Option<wgpu::BufferBinding<'a>>,
    /// f32, if the problem has a bias.
    pub bias: Option<wgpu::BufferBinding<'a>>,
    /// One byte an element, 0 = hidden, padded to whole words, if the problem has a mask.
    pub mask: Option<wgpu::BufferBinding<'a>>,
    /// Laid out as the query is, if wanted.
    pub d_query: Option<wgpu::BufferBinding<'a>>,
    /// Laid out as the key is, if wanted.
    pub d_key: Option<wgpu::BufferBinding<'a>>,
    /// Laid out as the value is, if wanted.
    pub d_value: Option<wgpu::BufferBinding<'a>>,
    /// f32 in the shape of the bias, if wanted.
    pub d_bias: Option<wgpu::BufferBinding<'a>>,
    /// f32 [num_heads, 2 * max_distance + 1], if wanted.
    pub d_relative_bias: Option<wgpu::BufferBinding<'a>>,
    /// f32 `[num_heads]`, if wanted.
    pub d_sinks: Option<wgpu::BufferBinding<'a>>,
}

impl Backward {
    /// Plans the gradients of `problem` that are wanted for the device and compiles what is not compiled yet.
    pub fn new(gpu: &Gpu, problem: &Problem, want: &WantGradients) -> Result<Self> {
        Self::of_plan(gpu, problem, want, Plan::backward(problem, want, gpu.caps())?)
    }

    pub(super) fn of_plan(gpu: &Gpu, problem: &Problem, want: &WantGradients, plan: Plan) -> Result<Self> {
        Ok(Self { problem: *problem, want: *want, ready: Ready::new(gpu, plan)? })
    }

    /// What was planned.
    pub fn plan(&self) -> &Plan {
        &self.ready.plan
    }

    /// Binds buffers. Cheap, but worth keeping.
    pub fn bind(&self, bindings: &BackwardBindings<'_>) -> Result<Bound> {
        self.check(bindings)?;
        self.ready.bind(|place| match place {
            Place::Query => Some(bindings.query.clone()),
            Place::Key => Some(bindings.key.clone()),
            Place::Value => Some(bindings.value.clone()),
            Place::Output => Some(bindings.output.clone()),
            Place::Stats => Some(bindings.stats.clone()),
            Place::DOutput => Some(bindings.d_output.clone()),
            Place::Tables => bindings.tables.clone(),
            Place::Bias => bindings.bias.clone(),
            Place::Mask => bindings.mask.clone(),
            Place::DQuery => bindings.d_query.clone(),
            Place::DKey => bindings.d_key.clone(),
            Place::DValue => bindings.d_value.clone(),
            Place::DBias => bindings.d_bias.clone(),
            Place::DRelativeBias => bindings.d_relative_bias.clone(),
            Place::DSinks => bindings.d_sinks.clone(),
            _ => None, // of a forward plan
        })
    }

    fn check(&self, bindings: &BackwardBindings<'_>) -> Result<()> {
        let p = &self.problem;
        let bytes = |operand| p.spec(operand).dtype.bytes(p.operand_len(operand)) as u64;
        let gradient = |operand| self.want.dtype(p, operand).bytes(p.operand_len(operand)) as u64;
        let elements = |shape: Option<crate::Broadcast>| shape.and_then(crate::Broadcast::elements).unwrap_or(0) as u64;
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
