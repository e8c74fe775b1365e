//! Attention on an app's own buffers, recorded into its own encoder.

use super::Gpu;
use super::buffers::storage;
use super::steps::{Dispatches, Ready};
use crate::error::Result;
use crate::plan::{BufferRef, Plan};
use crate::problem::{Algorithm, Operand, Problem};

/// Problem prepared on a device: planned, with compiled pipelines, parameters and scratch.
///
/// Create it once per shape, bind it, and record it as often as needed: recording does not submit, poll, copy or
/// allocate. Recordings of one `Attention` share its scratch, which is safe because a queue runs them in order.
pub struct Attention {
    problem: Problem,
    ready: Ready,
    /// Buffer for the lse if the app does not want it.
    spare_lse: wgpu::Buffer,
    /// State of the cache that holds keys and values, if there is one.
    cache: Option<wgpu::Buffer>,
}

impl std::fmt::Debug for Attention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attention").field("problem", &self.problem).finish_non_exhaustive()
    }
}

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
    /// Small vectors in the order of [`crate::plan::TableLayout`], if the problem has any.
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
        let whole = |buffer: &'a wgpu::Buffer| buffer.as_entire_buffer_binding();
        Self {
            query: whole(query),
            key: whole(key),
            value: whole(value),
            output: whole(output),
            lse: None,
            stats: None,
            tables: None,
            bias: None,
            mask: None,
            scores: None,
            weights: None,
        }
    }
}

impl Attention {
    /// Plans `problem` for the device and compiles the pipelines that are missing.
    pub fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        problem.check()?;
        Self::of_plan(gpu, problem, gpu.plan_for_replays(problem, algorithm)?, None)
    }

    /// Prepares `plan`, which reads `cache` at [`BufferRef::Cache`].
    pub(super) fn of_plan(gpu: &Gpu, problem: &Problem, plan: Plan, cache: Option<wgpu::Buffer>) -> Result<Self> {
        let ready = Ready::new(gpu, plan)?;
        let lse_bytes = if problem.want.lse { 0 } else { 4 * problem.lse_len() as u64 };
        let spare_lse = storage(gpu, "attention lse", lse_bytes, wgpu::BufferUsages::empty())?;
        Ok(Self { problem: *problem, ready, spare_lse, cache })
    }

    /// Plan of the problem.
    pub fn plan(&self) -> &Plan {
        &self.ready.plan
    }

    /// Binds buffers. Cheap, but worth keeping: a bind group costs microseconds.
    pub fn bind(&self, bindings: &Bindings<'_>) -> Result<Dispatches> {
        self.check(bindings)?;
        self.ready.bind(|place| match place {
            BufferRef::Query => Some(bindings.query.clone()),
            BufferRef::Key => Some(bindings.key.clone()),
            BufferRef::Value => Some(bindings.value.clone()),
            BufferRef::Output => Some(bindings.output.clone()),
            BufferRef::Lse => bindings.lse.clone().or(Some(self.spare_lse.as_entire_buffer_binding())),
            BufferRef::Stats => bindings.stats.clone(),
            BufferRef::Tables => bindings.tables.clone(),
            BufferRef::Bias => bindings.bias.clone(),
            BufferRef::Mask => bindings.mask.clone(),
            BufferRef::Scores => bindings.scores.clone(),
            BufferRef::Weights => bindings.weights.clone(),
            BufferRef::Cache => self.cache.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            _ => None, // only in backward plans
        })
    }

    /// Checks every buffer against what the kernels will access, because kernels do not check.
    fn check(&self, bindings: &Bindings<'_>) -> Result<()> {
        let p = &self.problem;
        let bytes = |operand| p.spec(operand).dtype.bytes(p.operand_len(operand)) as u64;
        let matrix = 4 * p.scores_len() as u64;
        let elements =
            |shape: Option<crate::problem::BroadcastShape>| shape.and_then(crate::problem::BroadcastShape::elements).unwrap_or(0) as u64;
        let needs = |needed: bool, size: u64| needed.then_some(size);
        let needs_tables = needs(self.ready.plan.table_words > 0, 4 * u64::from(self.ready.plan.table_words));
        self.ready.check(&[
            ("query", Some(&bindings.query), Some(bytes(Operand::Query))),
            ("key", Some(&bindings.key), Some(bytes(Operand::Key))),
            ("value", Some(&bindings.value), Some(bytes(Operand::Value))),
            ("output", Some(&bindings.output), Some(bytes(Operand::Output))),
            ("lse", bindings.lse.as_ref(), needs(p.want.lse, 4 * p.lse_len() as u64)),
            ("stats", bindings.stats.as_ref(), needs(p.want.stats, 8 * p.lse_len() as u64)),
            ("tables", bindings.tables.as_ref(), needs_tables),
            ("bias", bindings.bias.as_ref(), needs(p.bias.is_some(), 4 * elements(p.bias))),
            ("mask", bindings.mask.as_ref(), needs(p.visibility.mask.is_some(), elements(p.visibility.mask))),
            ("scores", bindings.scores.as_ref(), needs(p.want.scores.is_some(), matrix)),
            ("weights", bindings.weights.as_ref(), needs(p.want.weights, matrix)),
        ])
    }
}
