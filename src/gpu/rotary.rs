//! Rotary embedding on a device: alone here, fused with an append in `cache_append.rs`.

use super::buffers::filled;
use super::cache_steps::{Rows, bound};
use super::steps::check_binding;
use super::{Dispatches, Gpu};
use crate::cache::{RotarySpec, row_strides};
use crate::error::Result;
use crate::plan::{CacheStep, check_bytes};
use crate::rotary::Rotary;
use crate::wgsl::{CacheKey, CacheParams, CacheSlot};

/// Sizes of rows [tokens, num_heads, head_dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenSizes {
    /// Number of tokens.
    pub tokens: usize,
    /// Number of heads of a token.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Angles of a [`Rotary`] in a device buffer: 8 bytes per position and pair.
#[derive(Clone, Debug)]
pub struct DeviceRotary {
    pub(super) spec: RotarySpec,
    pub(super) angles: wgpu::Buffer,
}

impl DeviceRotary {
    /// Uploads the angles.
    pub fn new(gpu: &Gpu, rotary: &Rotary) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(rotary.angles());
        check_bytes("rotary", bytes.len() as u64, gpu.caps())?;
        let angles = filled(gpu, "rotary", wgpu::BufferUsages::STORAGE, bytes)?;
        Ok(Self { spec: rotary.into(), angles })
    }

    /// Rotates every head of `rows` in place, as [`Rotary::apply_tokens`] does: [tokens, num_heads, head_dim] in f32,
    /// f16 or bf16. `positions` has a u32 per token, trusted to be below [`Rotary::positions`].
    ///
    /// Errors: a head too narrow, buffers too small, an odd number of pairs or an odd head_dim in 16 bits.
    pub fn rotate(&self, gpu: &Gpu, rows: &Rows<'_>, sizes: TokenSizes, positions: &wgpu::BufferBinding<'_>) -> Result<Dispatches> {
        let TokenSizes { tokens, num_heads, head_dim } = sizes;
        self.spec.check(head_dim, 0)?;
        let shape = [1, num_heads, tokens, head_dim];
        let query_strides = row_strides(&rows.spec, "rows", shape)?;
        rows.check(gpu, "rows", shape)?;
        check_binding(gpu, "positions", positions, 4 * tokens as u64)?;
        let threads = tokens * num_heads * self.spec.query_units(&rows.spec, shape)?;
        let params = CacheParams {
            query_strides,
            seq_len: tokens as u32,
            num_heads: num_heads as u32,
            pairs: self.spec.pairs as u32,
            ..CacheParams::default()
        };
        let key = CacheKey::Rotate { rows: rows.spec.dtype, pairing: self.spec.pairing };
        let bindings = [
            (CacheSlot::State, positions.clone()),
            (CacheSlot::Query, rows.binding.clone()),
            (CacheSlot::Angles, self.angles.as_entire_buffer_binding()),
        ];
        bound(gpu, &CacheStep::new(key, params, threads, gpu.caps())?, &bindings)
    }
}
