//! Partial results in device buffers, merged on the device.

use std::sync::Arc;

use super::buffers::{params_binding, params_buffer};
use super::pipeline::PipelineKey;
use super::steps::{BoundDispatch, bind_group, check_binding};
use super::{Dispatches, Gpu};
use crate::error::Result;
use crate::plan::merge_steps;
use crate::wgsl::{Params, Slot};

/// Buffers of a merge, all f32 with `BufferUsages::STORAGE`.
///
/// Rows have the order of their lse, as in [`crate::merge`], so an attention with an lse can write its part at
/// [`crate::TensorSpec::offset`] `part * rows * width`.
#[derive(Clone, Debug)]
pub struct MergeBindings<'a> {
    /// Partial outputs [parts, rows, width], where width is head_dim_v rounded up to a multiple of 4.
    pub partial_output: wgpu::BufferBinding<'a>,
    /// Partial lse [parts, rows]. An output row of lse -inf is ignored, one of +inf or NaN makes the merged row NaN.
    pub partial_lse: wgpu::BufferBinding<'a>,
    /// Merged output [rows, head_dim_v]. Must not overlap the others.
    pub output: wgpu::BufferBinding<'a>,
    /// Merged lse `[rows]`. Must not overlap the others.
    pub lse: wgpu::BufferBinding<'a>,
}

/// Sizes of a merge of attentions over disjoint keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merge {
    /// Number of partial results.
    pub parts: usize,
    /// Number of rows: [`crate::Problem::lse_len`] of each attention.
    pub rows: usize,
    /// Width of an output row.
    pub head_dim_v: usize,
}

impl Merge {
    /// Binds the merge, as [`crate::merge`] defines it.
    ///
    /// Errors: a size of 0, a buffer that is too small or not for storage, sizes over the device's limits.
    pub fn bind(&self, gpu: &Gpu, bindings: &MergeBindings<'_>) -> Result<Dispatches> {
        let Self { parts, rows, head_dim_v } = *self;
        let steps = merge_steps([parts, rows, head_dim_v], gpu.caps())?;
        let row_bytes = 4 * rows as u64;
        for (argument, binding, needed) in [
            ("partial_output", &bindings.partial_output, (parts * head_dim_v.next_multiple_of(4)) as u64 * row_bytes),
            ("partial_lse", &bindings.partial_lse, parts as u64 * row_bytes),
            ("output", &bindings.output, head_dim_v as u64 * row_bytes),
            ("lse", &bindings.lse, row_bytes),
        ] {
            check_binding(gpu, argument, binding, needed)?;
        }
        let (params, params_stride) = params_buffer(gpu, "merge params", steps.iter().map(|step| step.params))?;
        let params = params_binding::<Params>(&params);
        let slots = [
            (Slot::Params, &params),
            (Slot::Output, &bindings.output),
            (Slot::Lse, &bindings.lse),
            (Slot::PartialOutput, &bindings.partial_output),
            (Slot::PartialStats, &bindings.partial_lse),
        ];
        let entries = slots
            .map(|(slot, binding)| wgpu::BindGroupEntry { binding: slot as u32, resource: wgpu::BindingResource::Buffer(binding.clone()) });
        let mut bound = Dispatches { steps: Vec::new() };
        let Some(first) = steps.first() else { return Ok(bound) };
        let pipeline = gpu.pipeline(PipelineKey::Attention(first.key.clone()))?;
        let bind_group = bind_group(gpu, &pipeline, &entries)?;
        bound.steps.extend(steps.iter().enumerate().map(|(index, step)| BoundDispatch {
            pipeline: Arc::clone(&pipeline),
            bind_group: bind_group.clone(),
            params_offset: index as u32 * params_stride,
            grid: step.grid(),
            flops: step.flops,
        }));
        Ok(bound)
    }
}
