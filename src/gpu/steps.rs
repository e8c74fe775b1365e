//! Plan prepared on a device and bound to buffers, for attention and for its gradients.

use std::sync::Arc;

use super::Gpu;
use super::buffers::{params_binding, params_buffer, storage};
use super::pipeline::{Pipeline, PipelineKey};
use crate::error::{Error, Result};
use crate::plan::{BindingRange as Part, BufferRef, Plan, Step, of_slot};
use crate::wgsl::{Access, Params, Slot};

/// Plan with compiled pipelines, parameters and scratch.
pub(super) struct Ready {
    gpu: Gpu,
    pub(super) plan: Plan,
    pipelines: Vec<Arc<Pipeline>>,
    params: wgpu::Buffer,
    params_stride: u32,
    scratch: Vec<wgpu::Buffer>,
    /// Dummy buffer for tables, bias and mask that a problem lacks, because generic variants always declare them.
    spare: wgpu::Buffer,
}

/// Name of an argument, the buffer bound for it, and the bytes that it needs if the problem has it.
pub(super) type Needed<'a> = (&'static str, Option<&'a wgpu::BufferBinding<'a>>, Option<u64>);

/// Planned computation bound to buffers, from for example [`crate::gpu::Attention::bind`].
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
pub(super) struct BoundDispatch {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) bind_group: wgpu::BindGroup,
    pub(super) params_offset: u32,
    pub(super) grid: [u32; 2],
    pub(super) flops: f64,
}

impl Ready {
    /// Compiles the pipelines that are missing and creates parameters and scratch.
    pub(super) fn new(gpu: &Gpu, plan: Plan) -> Result<Self> {
        let pipelines =
            plan.steps.iter().map(|step| gpu.pipelines().get(gpu, PipelineKey::Attention(step.key.clone()))).collect::<Result<Vec<_>>>()?;
        let own = |label, bytes| storage(gpu, label, bytes, wgpu::BufferUsages::empty());
        let (params, params_stride) = params_buffer(gpu, "attention params", plan.steps.iter().map(|step| step.params))?;
        let scratch = plan.scratch.iter().map(|&bytes| own("attention scratch", bytes)).collect::<Result<_>>()?;
        let spare = own("attention spare", 0)?;
        Ok(Self { gpu: gpu.clone(), plan, pipelines, params, params_stride, scratch, spare })
    }

    /// Binds the buffers that `find` returns, and the plan's own.
    pub(super) fn bind<'a>(&'a self, find: impl Fn(BufferRef) -> Option<wgpu::BufferBinding<'a>>) -> Result<Dispatches> {
        let mut steps: Vec<BoundDispatch> = Vec::with_capacity(self.plan.steps.len());
        for (index, step) in self.plan.steps.iter().enumerate() {
            let same = index.checked_sub(1).filter(|&last| {
                let last = &self.plan.steps[last];
                last.key == step.key && last.places == step.places && last.bound == step.bound
            });
            let bind_group = match same {
                Some(last) => steps[last].bind_group.clone(),
                None => self.bind_group(index, step, &find)?,
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

    fn bind_group<'a>(
        &'a self,
        index: usize,
        step: &Step,
        find: impl Fn(BufferRef) -> Option<wgpu::BufferBinding<'a>>,
    ) -> Result<wgpu::BindGroup> {
        let params = params_binding::<Params>(&self.params);
        let mut entries = vec![wgpu::BindGroupEntry { binding: Slot::Params as u32, resource: wgpu::BindingResource::Buffer(params) }];
        for &(slot, place) in &step.places {
            let resource = match place {
                BufferRef::Scratch(index) => Some(self.scratch[index].as_entire_buffer_binding()),
                BufferRef::Tables | BufferRef::Bias | BufferRef::Mask => find(place).or(Some(self.spare.as_entire_buffer_binding())),
                place => find(place),
            };
            let mut resource = resource.ok_or_else(|| Error::invalid("bindings", format!("{slot:?} is missing")))?;
            if let Some(Part { bytes, .. }) = of_slot(step.bound.as_ref(), slot) {
                let end = bytes.end.min(resource.buffer.size() - resource.offset);
                (resource.offset, resource.size) = (resource.offset + bytes.start, wgpu::BufferSize::new(end - bytes.start));
            }
            entries.push(wgpu::BindGroupEntry { binding: slot as u32, resource: wgpu::BindingResource::Buffer(resource) });
        }
        bind_group(&self.gpu, &self.pipelines[index], &entries)
    }

    /// Checks every buffer against what the kernels will access, because kernels do not check.
    pub(super) fn check(&self, bindings: &[Needed<'_>]) -> Result<()> {
        for &(argument, binding, needed) in bindings {
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
                _ => "share a buffer, of which a dispatch writes one and reads the other: wgpu has none of that, even without an overlap",
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

    /// Records some of the dispatches, so that an app can spread long work over submits. All must run, in order.
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
