//! Plan prepared on a device and bound to buffers, for attention and for its gradients.

use std::sync::Arc;

use super::buffers::{params_binding, params_buffer, storage};
use super::pipeline::{Pipeline, PipelineKey};
use super::{Gpu, Phase};
use crate::error::{Error, Result};
use crate::plan::{BindingRange, BufferRef, Plan, Step, of_slot};
use crate::problem::{Problem, WantGradients};
use crate::wgsl::{Access, Params, Slot};

/// Plan of a problem with compiled pipelines, parameters and scratch.
pub(super) struct Ready {
    pub(super) gpu: Gpu,
    pub(super) problem: Problem,
    /// Wanted gradients, if the plan is of a backward pass.
    pub(super) want: Option<WantGradients>,
    pub(super) plan: Plan,
    pipelines: Vec<Arc<Pipeline>>,
    params: wgpu::Buffer,
    params_stride: u32,
    scratch: Vec<wgpu::Buffer>,
    /// Dummies for tensors that kernels declare and the problem lacks.
    dummies: Vec<wgpu::Buffer>,
    /// State of the cache that holds keys and values, if there is one.
    cache: Option<wgpu::Buffer>,
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("problem", &self.problem).field("want", &self.want).finish_non_exhaustive()
    }
}

/// Buffers that a caller binds, by their places in the plan; `None` for those that the caller does not have.
pub(super) type Given<'a> = [(BufferRef, Option<&'a wgpu::BufferBinding<'a>>)];

/// Planned computation bound to buffers, from for example [`crate::gpu::Attention::bind`].
///
/// Recorded dispatches are debug groups with the names of their kernels, for graphics debuggers and profilers.
#[derive(Clone)]
#[must_use = "nothing is computed until the dispatches are recorded"]
pub struct Dispatches {
    pub(super) steps: Vec<BoundDispatch>,
}

impl std::fmt::Debug for Dispatches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatches").field("len", &self.steps.len()).finish_non_exhaustive()
    }
}

/// One dispatch.
#[derive(Clone)]
pub(super) struct BoundDispatch {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) bind_group: wgpu::BindGroup,
    pub(super) params_offset: u32,
    pub(super) grid: [u32; 2],
    pub(super) flops: f64,
}

impl Ready {
    /// Compiles the pipelines that are missing and creates parameters and scratch. The plan may read a `cache`.
    pub(super) fn new(gpu: &Gpu, problem: &Problem, want: Option<&WantGradients>, plan: Plan, cache: Option<wgpu::Buffer>) -> Result<Self> {
        let pipelines = plan.steps.iter().map(|step| gpu.pipeline(PipelineKey::Attention(step.key.clone()))).collect::<Result<Vec<_>>>()?;
        gpu.timed(Phase::Buffers, || {
            let own = |label, bytes| storage(gpu, label, bytes, wgpu::BufferUsages::empty());
            let (params, params_stride) = params_buffer(gpu, "attention params", plan.steps.iter().map(|step| step.params))?;
            let scratch = plan.scratch.iter().map(|&bytes| own("attention scratch", bytes)).collect::<Result<_>>()?;
            let dummies = plan.dummies.iter().map(|&bytes| own("attention dummy", bytes)).collect::<Result<_>>()?;
            let (gpu, problem, want) = (gpu.clone(), problem.clone(), want.copied());
            Ok(Self { gpu, problem, want, plan, pipelines, params, params_stride, scratch, dummies, cache })
        })
    }

    /// Binds the plan's own buffers and the given ones, which must be those that the problem has.
    pub(super) fn bind(&self, given: &Given<'_>) -> Result<Dispatches> {
        // Kernels do not check what they access.
        for &(place, binding) in given {
            let name = place.name();
            match (binding, self.plan.tensor(place)) {
                (Some(binding), Some(tensor)) => check_binding(&self.gpu, name, binding, tensor.bytes)?,
                (None, None) => {}
                (Some(_), None) => return Err(Error::invalid(name, "is bound, but the problem does not have it")),
                (None, Some(_)) => return Err(Error::invalid(name, "is not bound, but the problem needs it")),
            }
        }
        let mut steps: Vec<BoundDispatch> = Vec::with_capacity(self.plan.steps.len());
        for (index, step) in self.plan.steps.iter().enumerate() {
            let same = index.checked_sub(1).filter(|&last| {
                let last = &self.plan.steps[last];
                last.key == step.key && last.places == step.places && last.bound == step.bound
            });
            let bind_group = match same {
                Some(last) => steps[last].bind_group.clone(),
                None => self.bind_group(index, step, given)?,
            };
            steps.push(BoundDispatch {
                pipeline: Arc::clone(&self.pipelines[index]),
                bind_group,
                params_offset: index as u32 * self.params_stride,
                grid: step.grid(),
                flops: step.flops,
            });
        }
        Ok(Dispatches { steps })
    }

    fn bind_group(&self, index: usize, step: &Step, given: &Given<'_>) -> Result<wgpu::BindGroup> {
        let params = params_binding::<Params>(&self.params);
        let mut entries = vec![wgpu::BindGroupEntry { binding: Slot::Params as u32, resource: wgpu::BindingResource::Buffer(params) }];
        for &(slot, place) in &step.places {
            let own = match place {
                BufferRef::Scratch(index) => Some(&self.scratch[index]),
                BufferRef::Dummy(index) => Some(&self.dummies[index]),
                BufferRef::Cache => self.cache.as_ref(),
                _ => None,
            };
            let given = given.iter().find(|&&(other, _)| other == place).and_then(|&(_, binding)| binding.cloned());
            let resource = given.or(own.map(wgpu::Buffer::as_entire_buffer_binding));
            let mut resource = resource.ok_or_else(|| Error::invalid("bindings", format!("{slot:?} is missing")))?;
            if let Some(BindingRange { bytes, .. }) = of_slot(step.bound.as_ref(), slot) {
                let end = bytes.end.min(resource.buffer.size() - resource.offset);
                (resource.offset, resource.size) = (resource.offset + bytes.start, wgpu::BufferSize::new(end - bytes.start));
            }
            entries.push(wgpu::BindGroupEntry { binding: slot as u32, resource: wgpu::BindingResource::Buffer(resource) });
        }
        bind_group(&self.gpu, &self.pipelines[index], &entries)
    }
}

/// Checks that a binding is for storage, at an offset that can be bound, and has `needed` bytes.
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

/// Binds dispatches of one pipeline: buffers by binding number besides the params at 0, then params, workgroups along x
/// and y, and floating-point operations of each dispatch.
pub(super) fn dispatches<T: bytemuck::NoUninit>(
    gpu: &Gpu,
    pipeline: &Arc<Pipeline>,
    buffers: &[(u32, wgpu::BufferBinding<'_>)],
    each: &[(T, [u32; 2], f64)],
) -> Result<Vec<BoundDispatch>> {
    let (params, stride) = params_buffer(gpu, &format!("{} params", pipeline.name), each.iter().map(|&(params, ..)| params))?;
    let params = (0, params_binding::<T>(&params));
    let all = std::iter::once(&params).chain(buffers);
    let entries: Vec<_> = all
        .map(|(binding, buffer)| wgpu::BindGroupEntry { binding: *binding, resource: wgpu::BindingResource::Buffer(buffer.clone()) })
        .collect();
    let bind_group = bind_group(gpu, pipeline, &entries)?;
    let bound = each.iter().enumerate().map(|(index, &(_, grid, flops))| BoundDispatch {
        pipeline: Arc::clone(pipeline),
        bind_group: bind_group.clone(),
        params_offset: index as u32 * stride,
        grid,
        flops,
    });
    Ok(bound.collect())
}

/// Creates a bind group for a pipeline.
pub(super) fn bind_group(gpu: &Gpu, pipeline: &Pipeline, entries: &[wgpu::BindGroupEntry<'_>]) -> Result<wgpu::BindGroup> {
    check_sharing(pipeline, entries)?;
    let descriptor = wgpu::BindGroupDescriptor { label: Some("attention"), layout: &pipeline.layout, entries };
    gpu.guarded(|| gpu.device().create_bind_group(&descriptor))
}

/// Checks that the buffers can be bound together, which wgpu reports only when a dispatch is recorded, and to the app.
/// It tracks whole buffers: a dispatch may read a buffer or write it, not both, whatever the ranges.
fn check_sharing(pipeline: &Pipeline, entries: &[wgpu::BindGroupEntry<'_>]) -> Result<()> {
    let buffers: Vec<_> = entries
        .iter()
        .filter_map(|entry| {
            let wgpu::BindingResource::Buffer(binding) = &entry.resource else { return None };
            let (_, name, access) = pipeline.bindings.iter().find(|&&(number, ..)| number == entry.binding)?;
            Some((name, *access == Access::ReadWrite, binding))
        })
        .collect();
    let end =
        |binding: &wgpu::BufferBinding<'_>| binding.size.map_or(binding.buffer.size(), |size| binding.offset.saturating_add(size.get()));
    for (index, &(name, written, binding)) in buffers.iter().enumerate() {
        for &(other, other_written, shared) in &buffers[index + 1..] {
            let overlap = binding.offset < end(shared) && shared.offset < end(binding);
            let why = match (written, other_written) {
                _ if binding.buffer != shared.buffer => continue,
                (false, false) => continue,
                (true, true) if !overlap => continue,
                (true, true) => "overlap, and both are written",
                _ => "share a buffer that one dispatch both writes and reads: wgpu refuses it, even without an overlap",
            };
            return Err(Error::invalid("bindings", format!("{name} and {other} {why}; give one of them a buffer of its own")));
        }
    }
    Ok(())
}

impl Dispatches {
    /// Records the computation into the app's encoder as one compute pass, without submit, poll or copy.
    pub fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("attention"), timestamp_writes: None });
        self.record_in(&mut pass);
    }

    /// Records the computation into a compute pass of the app.
    pub fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.record_steps(0..self.steps.len(), pass);
    }

    /// Number of dispatches. Each is shorter than a driver's time limit; all of them in one submit may not be.
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }

    /// Name of each dispatch's kernel, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| step.pipeline.name.as_str())
    }

    /// Records some of the dispatches, so that an app can spread long work over submits. All must run, in order.
    pub fn record_steps(&self, steps: std::ops::Range<usize>, pass: &mut wgpu::ComputePass<'_>) {
        for step in &self.steps[steps] {
            pass.push_debug_group(&step.pipeline.name);
            pass.set_pipeline(&step.pipeline.pipeline);
            pass.set_bind_group(0, &step.bind_group, &[step.params_offset]);
            pass.dispatch_workgroups(step.grid[0], step.grid[1], 1);
            pass.pop_debug_group();
        }
    }
}
