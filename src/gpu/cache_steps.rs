//! Dispatches of a cache, bound to buffers.

use super::pipeline::PipelineKey;
use super::steps::{check_binding, dispatches};
use super::{Dispatches, Gpu};
use crate::error::Result;
use crate::plan::CacheStep;
use crate::problem::TensorSpec;
use crate::wgsl::{CacheKey, CacheSlot};

/// Binds a dispatch of a cache kernel.
pub(super) fn bound(gpu: &Gpu, step: &CacheStep, bindings: &[(CacheSlot, wgpu::BufferBinding<'_>)]) -> Result<Dispatches> {
    let pipeline = gpu.pipeline(PipelineKey::Cache(step.key))?;
    let buffers: Vec<_> = bindings.iter().map(|(slot, binding)| (*slot as u32, binding.clone())).collect();
    let flops = f64::from(step.params.workgroups) * f64::from(CacheKey::THREADS);
    Ok(Dispatches { steps: dispatches(gpu, &pipeline, &buffers, &[(step.params, step.grid, flops)])? })
}

/// Rows [batch, heads, seq_len, dim] in a device buffer, each contiguous.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    /// Buffer with `BufferUsages::STORAGE`.
    pub binding: wgpu::BufferBinding<'a>,
    /// Storage in the buffer.
    pub spec: TensorSpec,
}

impl<'a> Rows<'a> {
    /// Binds a whole buffer.
    pub fn new(buffer: &'a wgpu::Buffer, spec: TensorSpec) -> Self {
        Self { binding: buffer.as_entire_buffer_binding(), spec }
    }

    /// Checks that the binding holds rows of this shape whole.
    pub(super) fn check(&self, gpu: &Gpu, argument: &'static str, shape: [usize; 4]) -> Result<()> {
        let len = self.spec.required_len(shape).unwrap_or(usize::MAX);
        check_binding(gpu, argument, &self.binding, self.spec.dtype.bytes(len) as u64)
    }
}
