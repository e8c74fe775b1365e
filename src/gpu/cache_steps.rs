//! Dispatches of a cache, bound to buffers.

use super::pipeline::PipelineKey;
use super::steps::{check_binding, dispatches};
use super::{Dispatches, Gpu};
use crate::error::{Error, Result};
use crate::problem::TensorSpec;
use crate::wgsl::{CacheKey, CacheParams, CacheSlot};

/// Binds one cache kernel over `threads` threads.
pub(super) fn bound(
    gpu: &Gpu,
    key: CacheKey,
    params: CacheParams,
    threads: usize,
    bindings: &[(CacheSlot, wgpu::BufferBinding<'_>)],
) -> Result<Dispatches> {
    let grid = grid(gpu, threads)?;
    let params = CacheParams { grid_width: grid[0], workgroups: threads.div_ceil(CacheKey::THREADS as usize) as u32, ..params };
    let pipeline = gpu.pipeline(PipelineKey::Cache(key))?;
    let buffers: Vec<_> = bindings.iter().map(|(slot, binding)| (*slot as u32, binding.clone())).collect();
    Ok(Dispatches { steps: dispatches(gpu, &pipeline, &buffers, &[(params, grid, threads as f64)])? })
}

/// Number of workgroups along x and y.
fn grid(gpu: &Gpu, threads: usize) -> Result<[u32; 2]> {
    let width = gpu.caps().workgroups_per_dimension as usize;
    let workgroups = threads.div_ceil(CacheKey::THREADS as usize);
    let lines = workgroups.div_ceil(width);
    if lines > width || u32::try_from(threads).is_err() {
        return Err(Error::limit("threads that a shader can count", threads, u32::MAX as usize, "append fewer tokens at a time"));
    }
    Ok([workgroups.div_ceil(lines.max(1)) as u32, lines as u32])
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

    /// Strides along item, head and token of [batch, heads, seq, dim], and its offset. The binding must hold it whole.
    pub(super) fn strides(&self, gpu: &Gpu, argument: &'static str, shape: [usize; 4]) -> Result<[u32; 4]> {
        let Self { binding, spec } = self;
        let len = spec.required_len(shape).filter(|&len| u32::try_from(len).is_ok());
        let len = len.ok_or_else(|| Error::invalid(argument, format!("{shape:?} with its strides is more than a shader can count")))?;
        let strides = spec.strides(shape);
        if strides.dim != 1 || len == 0 {
            return Err(Error::invalid(argument, format!("{shape:?} with strides {strides:?}: there must be rows, each contiguous")));
        }
        check_binding(gpu, argument, binding, spec.dtype.bytes(len) as u64)?;
        Ok([strides.batch, strides.head, strides.seq, spec.offset].map(|step| step as u32))
    }
}
