//! Partial results in device buffers, merged on the device.

use super::pipeline::PipelineKey;
use super::steps::{check_binding, dispatches};
use super::{Dispatches, Gpu};
use crate::error::Result;
use crate::plan::merge_steps;
use crate::wgsl::Slot;

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
        let Some(first) = steps.first() else { return Ok(Dispatches { steps: Vec::new() }) };
        let pipeline = gpu.pipeline(PipelineKey::Attention(first.key.clone()))?;
        let buffers = [
            (Slot::Output as u32, bindings.output.clone()),
            (Slot::Lse as u32, bindings.lse.clone()),
            (Slot::PartialOutput as u32, bindings.partial_output.clone()),
            (Slot::PartialStats as u32, bindings.partial_lse.clone()),
        ];
        let each: Vec<_> = steps.iter().map(|step| (step.params, step.grid(), step.flops)).collect();
        Ok(Dispatches { steps: dispatches(gpu, &pipeline, &buffers, &each)? })
    }
}
