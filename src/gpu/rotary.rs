//! Norm and rotary embedding on a device: the latter alone here, both fused with an append in `cache_append.rs`.

use super::buffers::{filled, storage};
use super::cache_steps::{Rows, bound};
use super::steps::check_binding;
use super::{Dispatches, Gpu};
use crate::cache::{RotarySpec, check_in_place, row_strides};
use crate::error::{Error, Result};
use crate::plan::{CacheStep, check_bytes};
use crate::rotary::{QkNorm, Rotary};
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
    /// f16 or bf16. `positions` has a u32 per token, trusted to be below [`Rotary::positions`],
    /// for all pairs, in sections or not.
    ///
    /// Errors: a head too narrow, buffers too small, an odd number of pairs or an odd head_dim in 16 bits.
    pub fn rotate(&self, gpu: &Gpu, rows: &Rows<'_>, sizes: TokenSizes, positions: &wgpu::BufferBinding<'_>) -> Result<Dispatches> {
        let TokenSizes { tokens, num_heads, head_dim } = sizes;
        self.spec.check(head_dim, 0)?;
        let shape = [1, num_heads, tokens, head_dim];
        let query_strides = row_strides(&rows.spec, "rows", shape)?;
        rows.check(gpu, "rows", shape)?;
        check_binding(gpu, "positions", positions, 4 * tokens as u64)?;
        check_in_place(&rows.spec, shape, [self.spec.pairs, self.spec.distance, 0])?;
        let threads = tokens * num_heads * (self.spec.pairs / CacheKey::unit(rows.spec.dtype));
        let params = CacheParams {
            query_strides,
            seq_len: tokens as u32,
            num_heads: num_heads as u32,
            pairs: self.spec.pairs as u32,
            distance: self.spec.distance as u32,
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

    /// Binds the gathering of the angles of a step's tokens, which have positions of their own: retained keys, depths of a
    /// tree, images (three positions a token, [`crate::rotary::Sections`]). Appends then take the [`TokenAngles`].
    ///
    /// `positions` is u32 `[tokens]`, or `[3, tokens]` with sections, in the order `[slot, token]`; it is read when the step
    /// runs. A position without angles rotates to NaN. `tokens` is the number of slots times the step's seq_len.
    ///
    /// Errors: no tokens, a buffer that is too small or not for storage.
    pub fn at(&self, gpu: &Gpu, tokens: usize, positions: &wgpu::BufferBinding<'_>) -> Result<TokenAngles> {
        let step = self.spec.token_angles(tokens, gpu.caps())?;
        check_binding(gpu, "positions", positions, 4 * (self.spec.coordinates() * tokens) as u64)?;
        let angles = storage(gpu, "token angles", 8 * (tokens * self.spec.pairs) as u64, wgpu::BufferUsages::empty())?;
        let bindings = [
            (CacheSlot::State, positions.clone()),
            (CacheSlot::NewKey, self.angles.as_entire_buffer_binding()),
            (CacheSlot::Angles, angles.as_entire_buffer_binding()),
        ];
        Ok(TokenAngles { spec: self.spec, tokens, gather: bound(gpu, &step, &bindings)?, angles })
    }
}

/// Angles of the tokens of a step, by positions of their own, in a device buffer: [`DeviceRotary::at`].
#[derive(Clone, Debug)]
pub struct TokenAngles {
    pub(super) spec: RotarySpec,
    pub(super) tokens: usize,
    pub(super) angles: wgpu::Buffer,
    gather: Dispatches,
}

impl TokenAngles {
    /// Dispatch that gathers the angles. Record it in every step before the appends that use them: one serves all layers.
    pub fn gather(&self) -> &Dispatches {
        &self.gather
    }
}

/// Weights of a [`QkNorm`] in a device buffer.
#[derive(Clone, Debug)]
pub struct DeviceNorm {
    head_dim: usize,
    pub(super) words: wgpu::Buffer,
}

impl DeviceNorm {
    /// Uploads the weights.
    pub fn new(gpu: &Gpu, norm: &QkNorm) -> Result<Self> {
        let words = filled(gpu, "norm", wgpu::BufferUsages::STORAGE, bytemuck::cast_slice(norm.words()))?;
        Ok(Self { head_dim: norm.head_dim(), words })
    }

    /// Checks that there are weights for heads of this width.
    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        if self.head_dim != head_dim {
            return Err(Error::invalid("norm", format!("has weights for heads of {}, these have {head_dim}", self.head_dim)));
        }
        Ok(())
    }
}
