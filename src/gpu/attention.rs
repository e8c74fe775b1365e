//! Attention on an app's own buffers, recorded into its own encoder.

use std::sync::Arc;

use super::Gpu;
use super::pipeline::{Pipeline, PipelineKey};
use crate::plan::{Bound as Part, Place, Plan, Step, of_slot};
use crate::problem::Operand;
use crate::shader::{Params, Slot};
use crate::{Algorithm, Error, Problem, Result};

/// A problem made ready on a device: planned, its pipelines compiled, its parameters and scratch in place.
///
/// Make it once for a shape, bind it to buffers, record it as often as needed: recording neither submits, polls, copies nor allocates.
/// Two recordings of one `Attention` share its scratch; on one queue they run one after the other, so that is safe.
pub struct Attention {
    gpu: Gpu,
    problem: Problem,
    plan: Plan,
    pipelines: Vec<Arc<Pipeline>>,
    params: wgpu::Buffer,
    params_stride: u32,
    scratch: Vec<wgpu::Buffer>,
    /// Where the lse goes when the app does not want it.
    spare_lse: wgpu::Buffer,
    /// What general variants read of tables, bias and mask that the problem does not have: nothing.
    spare: wgpu::Buffer,
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
    /// f32, [`Problem::scores_len`] of them, if the problem wants weights. A hidden key's weight is -0.
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

/// An [`Attention`] bound to buffers.
pub struct Bound {
    pub(super) steps: Vec<BoundStep>,
}

/// One dispatch.
pub(super) struct BoundStep {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) bind_group: wgpu::BindGroup,
    pub(super) params_offset: u32,
    pub(super) grid: [u32; 2],
    pub(super) flops: f64,
}

impl Attention {
    /// Plans `problem` for the device and compiles what is not compiled yet.
    pub fn new(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<Self> {
        Self::of_plan(gpu, problem, Plan::new(problem, gpu.caps(), algorithm)?, None)
    }

    /// What `plan` says; `cache` is what it reads at [`Place::Cache`].
    pub(super) fn of_plan(gpu: &Gpu, problem: &Problem, plan: Plan, cache: Option<wgpu::Buffer>) -> Result<Self> {
        let pipelines =
            plan.steps.iter().map(|step| gpu.pipelines().get(gpu, PipelineKey::Attention(step.key.clone()))).collect::<Result<Vec<_>>>()?;
        let device = gpu.device();
        let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let (params, params_stride) = params_buffer(gpu, &plan.steps)?;
        let storage = |label, size: u64| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: size.next_multiple_of(16).max(16),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let scratch = plan.scratch.iter().map(|&size| storage("attention scratch", size)).collect();
        let spare_lse = storage("attention lse", if problem.want.lse { 0 } else { 4 * problem.lse_len() as u64 });
        let spare = storage("attention spare", 16);
        if let Some(error) = pollster::block_on(scope.pop()) {
            return Err(Error::Device { why: error.to_string() });
        }
        Ok(Self { gpu: gpu.clone(), problem: *problem, plan, pipelines, params, params_stride, scratch, spare_lse, spare, cache })
    }

    /// What was planned.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Binds buffers. Cheap, but worth keeping: a bind group costs microseconds.
    pub fn bind(&self, bindings: &Bindings<'_>) -> Result<Bound> {
        self.check(bindings)?;
        let mut steps: Vec<BoundStep> = Vec::with_capacity(self.plan.steps.len());
        for (index, step) in self.plan.steps.iter().enumerate() {
            let same = index.checked_sub(1).filter(|&last| {
                let last = &self.plan.steps[last];
                last.key == step.key && last.places == step.places && last.bound == step.bound
            });
            let bind_group = match same {
                Some(last) => steps[last].bind_group.clone(),
                None => self.bind_group(index, step, bindings)?,
            };
            steps.push(BoundStep {
                pipeline: Arc::clone(&self.pipelines[index]),
                bind_group,
                params_offset: index as u32 * self.params_stride,
                grid: step.grid(),
                flops: step.flops,
            });
        }
        Ok(Bound { steps })
    }

    fn bind_group(&self, index: usize, step: &Step, bindings: &Bindings<'_>) -> Result<wgpu::BindGroup> {
        let params = wgpu::BufferBinding { buffer: &self.params, offset: 0, size: wgpu::BufferSize::new(size_of::<Params>() as u64) };
        let mut entries = vec![wgpu::BindGroupEntry { binding: Slot::Params as u32, resource: wgpu::BindingResource::Buffer(params) }];
        for &(slot, place) in &step.places {
            let resource = match place {
                Place::Query => Some(bindings.query.clone()),
                Place::Key => Some(bindings.key.clone()),
                Place::Value => Some(bindings.value.clone()),
                Place::Output => Some(bindings.output.clone()),
                Place::Lse => bindings.lse.clone().or(Some(self.spare_lse.as_entire_buffer_binding())),
                Place::Tables => bindings.tables.clone().or(Some(self.spare.as_entire_buffer_binding())),
                Place::Bias => bindings.bias.clone().or(Some(self.spare.as_entire_buffer_binding())),
                Place::Mask => bindings.mask.clone().or(Some(self.spare.as_entire_buffer_binding())),
                Place::Scores => bindings.scores.clone(),
                Place::Weights => bindings.weights.clone(),
                Place::Cache => self.cache.as_ref().map(wgpu::Buffer::as_entire_buffer_binding),
                Place::Scratch(index) => Some(self.scratch[index].as_entire_buffer_binding()),
            };
            let mut resource = resource.ok_or_else(|| Error::invalid("bindings", format!("{slot:?} is missing")))?;
            if let Some(Part { bytes, .. }) = of_slot(step.bound.as_ref(), slot) {
                let end = bytes.end.min(resource.buffer.size() - resource.offset);
                (resource.offset, resource.size) = (resource.offset + bytes.start, wgpu::BufferSize::new(end - bytes.start));
            }
            entries.push(wgpu::BindGroupEntry { binding: slot as u32, resource: wgpu::BindingResource::Buffer(resource) });
        }
        bind_group(&self.gpu, &self.pipelines[index].layout, &entries)
    }

    /// Compares every buffer with what the kernels will touch: they do not check.
    fn check(&self, bindings: &Bindings<'_>) -> Result<()> {
        let p = &self.problem;
        let bytes = |operand| p.spec(operand).dtype.bytes(p.operand_len(operand)) as u64;
        let matrix = 4 * p.scores_len() as u64;
        let elements = |shape: Option<crate::Broadcast>| shape.and_then(crate::Broadcast::elements).unwrap_or(0) as u64;
        let needs = |needed: bool, size: u64| needed.then_some(size);
        for (argument, binding, needed) in [
            ("query", Some(&bindings.query), Some(bytes(Operand::Query))),
            ("key", Some(&bindings.key), Some(bytes(Operand::Key))),
            ("value", Some(&bindings.value), Some(bytes(Operand::Value))),
            ("output", Some(&bindings.output), Some(bytes(Operand::Output))),
            ("lse", bindings.lse.as_ref(), needs(p.want.lse, 4 * p.lse_len() as u64)),
            ("tables", bindings.tables.as_ref(), needs(self.plan.table_words > 0, 4 * u64::from(self.plan.table_words))),
            ("bias", bindings.bias.as_ref(), needs(p.bias.is_some(), 4 * elements(p.bias))),
            ("mask", bindings.mask.as_ref(), needs(p.visibility.mask.is_some(), elements(p.visibility.mask))),
            ("scores", bindings.scores.as_ref(), needs(p.want.scores.is_some(), matrix)),
            ("weights", bindings.weights.as_ref(), needs(p.want.weights, matrix)),
        ] {
            let (binding, needed) = match (binding, needed) {
                (Some(binding), Some(needed)) => (binding, needed),
                (None, None) => continue,
                (Some(_), None) => return Err(Error::invalid(argument, "is bound, but the problem does not have it")),
                (None, Some(_)) => return Err(Error::invalid(argument, "is not bound, but the problem needs it")),
            };
            check_binding(&self.gpu, argument, binding, needed)?;
        }
        Ok(())
    }
}

/// Whether a binding is for storage, at an offset that can be bound, and has `needed` bytes.
pub(super) fn check_binding(gpu: &Gpu, argument: &'static str, binding: &wgpu::BufferBinding<'_>, needed: u64) -> Result<()> {
    if !binding.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(Error::invalid(argument, "its buffer lacks BufferUsages::STORAGE"));
    }
    let alignment = u64::from(gpu.caps().storage_alignment);
    if !binding.offset.is_multiple_of(alignment) {
        let why = format!(
            "offset {} is not a multiple of min_storage_buffer_offset_alignment = {alignment}; put the rest into TensorSpec::offset",
            binding.offset
        );
        return Err(Error::invalid(argument, why));
    }
    let rest = binding.buffer.size().saturating_sub(binding.offset);
    let size = binding.size.map_or(rest, |size| size.get().min(rest));
    if size < needed {
        return Err(Error::invalid(argument, format!("has {size} bytes from its offset on, needs {needed}")));
    }
    Ok(())
}

/// A bind group, or why there is none.
pub(super) fn bind_group(gpu: &Gpu, layout: &wgpu::BindGroupLayout, entries: &[wgpu::BindGroupEntry<'_>]) -> Result<wgpu::BindGroup> {
    let device = gpu.device();
    let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("attention"), layout, entries });
    match pollster::block_on(scope.pop()) {
        Some(error) => Err(Error::Device { why: error.to_string() }),
        None => Ok(group),
    }
}

/// The params of all steps, and the bytes from one to the next.
pub(super) fn params_buffer(gpu: &Gpu, steps: &[Step]) -> Result<(wgpu::Buffer, u32)> {
    let params_stride = (size_of::<Params>() as u32).next_multiple_of(gpu.caps().uniform_alignment);
    // Written while it is mapped: no queue operation that the app's own submits could overtake.
    let params = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("attention params"),
        size: u64::from(params_stride) * steps.len().max(1) as u64,
        usage: wgpu::BufferUsages::UNIFORM,
        mapped_at_creation: true,
    });
    {
        let mut view = params.get_mapped_range_mut(..).map_err(|error| Error::Device { why: error.to_string() })?;
        for (index, step) in steps.iter().enumerate() {
            let at = index * params_stride as usize;
            view.slice(at..at + size_of::<Params>()).copy_from_slice(bytemuck::bytes_of(&step.params));
        }
    }
    params.unmap();
    Ok((params, params_stride))
}

impl Bound {
    /// Records the attention into the app's encoder, as one compute pass. No submit, no poll, no copy.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("attention"), timestamp_writes: None });
        self.record_in(&mut pass);
    }

    /// Records the attention into a compute pass of the app's.
    pub fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.record_steps(0..self.steps.len(), pass);
    }

    /// How many dispatches there are. Each is short enough for a driver's patience; all of them in one submit may not be.
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }

    /// Records some of the dispatches, so that an app can spread long work over several submits. They must all run, in order.
    pub fn record_steps(&self, steps: std::ops::Range<usize>, pass: &mut wgpu::ComputePass<'_>) {
        for step in &self.steps[steps] {
            pass.set_pipeline(&step.pipeline.pipeline);
            pass.set_bind_group(0, &step.bind_group, &[step.params_offset]);
            pass.dispatch_workgroups(step.grid[0], step.grid[1], 1);
        }
    }

    /// Floating-point operations of one dispatch.
    pub(super) fn flops(&self, step: usize) -> f64 {
        self.steps[step].flops
    }
}
