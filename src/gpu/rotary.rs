//! Rotary embedding on a device: alone here, fused with an append in `cache_append.rs`.

use super::buffers::filled;
use super::cache_steps::{Rows, bound};
use super::steps::check_binding;
use super::{Dispatches, Gpu};
use crate::error::{Error, Result};
use crate::plan::check_bytes;
use crate::problem::{Layout, Strides, TensorSpec};
use crate::rotary::{Pairing, Rotary};
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
    pub(super) pairing: Pairing,
    pub(super) pairs: usize,
    positions: usize,
    pub(super) angles: wgpu::Buffer,
}

impl DeviceRotary {
    /// Uploads the angles.
    pub fn new(gpu: &Gpu, rotary: &Rotary) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(rotary.angles());
        check_bytes("rotary", bytes.len() as u64, gpu.caps())?;
        let angles = filled(gpu, "rotary", wgpu::BufferUsages::STORAGE, bytes)?;
        Ok(Self { pairing: rotary.pairing(), pairs: rotary.pairs(), positions: rotary.positions(), angles })
    }

    /// Rotates every head of `rows` in place, as [`Rotary::apply_tokens`] does: [tokens, num_heads, head_dim] in f32,
    /// f16 or bf16. `positions` has a u32 per token, trusted to be below [`Rotary::positions`].
    ///
    /// Errors: a head too narrow, buffers too small, an odd number of pairs or an odd head_dim in 16 bits.
    pub fn rotate(&self, gpu: &Gpu, rows: &Rows<'_>, sizes: TokenSizes, positions: &wgpu::BufferBinding<'_>) -> Result<Dispatches> {
        let TokenSizes { tokens, num_heads, head_dim } = sizes;
        self.check(head_dim, 0)?;
        let shape = [1, num_heads, tokens, head_dim];
        let query_strides = rows.strides(gpu, "rows", shape)?;
        check_binding(gpu, "positions", positions, 4 * tokens as u64)?;
        let threads = tokens * num_heads * self.query_units(&rows.spec, shape)?;
        let params = CacheParams {
            query_strides,
            seq_len: tokens as u32,
            num_heads: num_heads as u32,
            pairs: self.pairs as u32,
            ..CacheParams::default()
        };
        let bindings = [
            (CacheSlot::State, positions.clone()),
            (CacheSlot::Query, rows.binding.clone()),
            (CacheSlot::Angles, self.angles.as_entire_buffer_binding()),
        ];
        bound(gpu, CacheKey::Rotate { rows: rows.spec.dtype, pairing: self.pairing }, params, threads, &bindings)
    }

    /// Checks that there are angles for heads of this width and for so many positions.
    pub(super) fn check(&self, head_dim: usize, positions: usize) -> Result<()> {
        if 2 * self.pairs > head_dim {
            return Err(Error::invalid("rotary", format!("a head of {head_dim} has no {} pairs to rotate", self.pairs)));
        }
        if positions > self.positions {
            return Err(Error::invalid("rotary", format!("has {} positions, sequences may have {positions}", self.positions)));
        }
        Ok(())
    }

    /// Number of threads that rotate a row in place. 16-bit elements are written in pairs, which must not share words.
    pub(super) fn query_units(&self, spec: &TensorSpec, shape: [usize; 4]) -> Result<usize> {
        let unit = CacheKey::unit(spec.dtype);
        let Strides { batch, head, seq, .. } = spec.strides(shape);
        let whole = [spec.offset, batch, head, seq, self.pairs].iter().all(|step| step.is_multiple_of(unit));
        if spec.dtype.is_quantised() || !whole || matches!(spec.layout, Layout::Strided(steps) if steps.dim != 1) {
            let why = format!("{spec:?} of {shape:?} with {} pairs: in 16 bits all of it must be even", self.pairs);
            return Err(Error::unsupported(format!("rotating in place what lies so: {why}"), "use f32, or rotary::Rotary on the host"));
        }
        Ok(self.pairs / unit)
    }
}
