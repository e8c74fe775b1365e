//! Attention on an app's own buffers, recorded into its own encoder.

use super::Gpu;
use super::buffers::storage;
use super::steps::{Bound, Ready};
use crate::plan::{Place, Plan};
use crate::problem::Operand;
use crate::{Algorithm, Problem, Result};

/// A problem made ready on a device: planned, its pipelines compiled, its parameters and scratch in place.
///
/// Make it once for a shape, bind it to buffers, record it as often as needed: recording neither submits, polls, copies nor allocates.
/// Two recordings of one `Attention` share its scratch; on one queue they run one after the other, so that is safe.
pub struct Attention {
    problem: Problem,
    ready: Ready,
    /// Where the lse goes when the app does not want it.
    spare_lse: wgpu::Buffer,
    /// The state of the cache that keys and values are in.
    cache: Option<wgpu::Buffer>,
}

/// The buffers of an attention. Each must have `BufferUsages::STORAGE`; offsets must be multiples of the device's
/// `min_storage_buffer_offset_alignment` (a finer offset goes into [`crate::TensorSpec::offset`], in elements).
#[derive(Clone, Debug)]
pub struct Bindings<'a> {
    /// As [`Problem::query`] describes.
    pub query: wgpu::BufferBinding<'a>,
    /// As [`Problem::key`] describes.
    pub key: wgpu::BufferBinding<'a>,
    /// As [`Problem::value`] describes.
    pub value: wgpu::BufferBinding<'a>,
    /// As [`Problem::output`] describes. Must not overlap the others.
    pub output: wgpu::BufferBinding<'a>,
    /// f32, [`Problem::lse_len`] of them, if wanted.
    pub lse: Option<wgpu::BufferBinding<'a>>,
    /// The small vectors, in the order of [`crate::plan::TableLayout`], if the problem has any.
    pub tables: Option<wgpu::BufferBinding<'a>>,
    /// f32, if the problem has a bias.
    pub bias: Option<wgpu::BufferBinding<'a>>,
    /// One byte an element, 0 = hidden, padded to whole words, if the problem has a mask.
    pub mask: Option<wgpu::BufferBinding<'a>>,
    /// f32, [`Problem::scores_len`] of them, if the problem wants scores.
    pub scores: Option<wgpu::BufferBinding<'a>>,
    /// f32, [`Problem::scores_len`] of them, if the problem wants weights. A hidden key's weight is 0.
    pub weights: Option<wgpu::BufferBinding<'a>>,
}

impl<'a> Bindings<'a> {
    /// Whole buffers for query, key, value and output; nothing else.
    pub fn new(query: &'a wgpu::Buffer, key: &'a wgpu::Buffer, value: &'a wgpu::Buffer, output: &'a wgpu::Buffer) -> Self {
        let whole = |buffer: &'a wgpu::Buffer| buffer.as_entire_buffer_binding();
        Self {
            query: whole(query),
            key: whole(key),
            value: whole(value),
            output: whole(output),
            lse: None,
            tables: None,
            bias: None,
            mask: None,
            scores: None,
            weights: None,
        }
    }
}

impl Attention {
    /// Plans `problem` for the device and compiles what is not compiled yet.
    pub fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        Self::of_plan(gpu, problem, gpu.plan_for_replays(problem, algorithm)?, None)
    }

    /// What `plan` says; `cache` is what it reads at [`Place::Cache`].
    pub(super) fn of_plan(gpu: &Gpu, problem: &Problem, plan: Plan, cache: Option<wgpu::Buffer>) -> Result<Self> {
        let ready = Ready::new(gpu, plan)?;
        let lse_bytes = if problem.want.lse { 0 } else { 4 * problem.lse_len() as u64 };
        let spare_lse = storage(gpu, "attention lse", lse_bytes, wgpu::BufferUsages::empty())?;
        Ok(Self { problem: *problem, ready, spare_lse, cache })
    }

    /// What was planned.
    pub fn plan(&self) -> &Plan {
        &self.ready.plan
    }

    /// Binds buffers. Cheap, but worth keeping: a bind group costs microseconds.
    pub fn bind(&self, bindings: &Bindings<'_>) -> Result<Bound> {
        self.check(bindings)?;
        self.ready.bind(|place| match place {
            Place::Query => Some(bindings.query.clone()),
            Place::Key => Some(bindings.key.clone()),
            Place::Value => Some(bindings.value.clone()),
            Place::Output => Some(bindings.output.clone()),
            Place::Lse => bindings.lse.clone().or(Some(self.spare_lse.as_entire_buffer_binding())),
            Place::Tables => bindings.tables.clone(),
            Place::Bias => bindings.bias.clone(),
            Place::Mask => bindings.mask.clone(),
            Place::Scores => bindings.scores.clone(),
            Place::Weights => bindings.weights.clone(),
            Place::Cache => self.cache.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
            _ => None, // of a backward plan
        })
    }

    /// Compares every buffer with what the kernels will touch: they do not check.
    fn check(&self, bindings: &Bindings<'_>) -> Result<()> {
        let p = &self.problem;
        let bytes = |operand| p.spec(operand).dtype.bytes(p.operand_len(operand)) as u64;
        let matrix = 4 * p.scores_len() as u64;
        let elements = |shape: Option<crate::Broadcast>| shape.and_then(crate::Broadcast::elements).unwrap_or(0) as u64;
        let needs = |needed: bool, size: u64| needed.then_some(size);
        let needs_tables = needs(self.ready.plan.table_words > 0, 4 * u64::from(self.ready.plan.table_words));
        self.ready.check(&[
            ("query", Some(&bindings.query), Some(bytes(Operand::Query))),
            ("key", Some(&bindings.key), Some(bytes(Operand::Key))),
            ("value", Some(&bindings.value), Some(bytes(Operand::Value))),
            ("output", Some(&bindings.output), Some(bytes(Operand::Output))),
            ("lse", bindings.lse.as_ref(), needs(p.want.lse, 4 * p.lse_len() as u64)),
            ("tables", bindings.tables.as_ref(), needs_tables),
            ("bias", bindings.bias.as_ref(), needs(p.bias.is_some(), 4 * elements(p.bias))),
            ("mask", bindings.mask.as_ref(), needs(p.visibility.mask.is_some(), elements(p.visibility.mask))),
            ("scores", bindings.scores.as_ref(), needs(p.want.scores.is_some(), matrix)),
            ("weights", bindings.weights.as_ref(), needs(p.want.weights, matrix)),
        ])
    }
}
