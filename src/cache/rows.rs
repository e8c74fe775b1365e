//! Rows of new tokens and of queries: their strides in shaders, and their rotation.

use crate::error::{Error, Result};
use crate::problem::{Layout, Strides, TensorSpec};
use crate::rotary::{Pairing, Rotary};
use crate::wgsl::CacheKey;

/// Sizes of the tables of a [`Rotary`], without the angles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotarySpec {
    /// Pairing of the rotated elements.
    pub pairing: Pairing,
    /// Number of pairs that are rotated in each head.
    pub pairs: usize,
    /// Number of positions in the tables.
    pub positions: usize,
}

impl From<&Rotary> for RotarySpec {
    fn from(rotary: &Rotary) -> Self {
        Self { pairing: rotary.pairing(), pairs: rotary.pairs(), positions: rotary.positions() }
    }
}

impl RotarySpec {
    /// Checks that there are angles for heads of this width and for so many positions.
    pub(crate) fn check(&self, head_dim: usize, positions: usize) -> Result<()> {
        if self.pairs > head_dim / 2 {
            return Err(Error::invalid("rotary", format!("a head of {head_dim} has no {} pairs to rotate", self.pairs)));
        }
        if positions > self.positions {
            return Err(Error::invalid("rotary", format!("has {} positions, sequences may have {positions}", self.positions)));
        }
        Ok(())
    }

    /// Number of threads that rotate a row in place. 16-bit elements are written in pairs, which must not share words.
    pub(crate) fn query_units(&self, spec: &TensorSpec, shape: [usize; 4]) -> Result<usize> {
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

/// Strides along item, head and token of contiguous rows [batch, heads, seq, dim], and the offset, as shaders take them.
/// Errors: no rows, strided rows, more elements than a shader can count.
pub(crate) fn row_strides(spec: &TensorSpec, argument: &'static str, shape: [usize; 4]) -> Result<[u32; 4]> {
    let len = spec.required_len(shape).filter(|&len| u32::try_from(len).is_ok());
    let len = len.ok_or_else(|| Error::invalid(argument, format!("{shape:?} with its strides is more than a shader can count")))?;
    let strides = spec.strides(shape);
    if strides.dim != 1 || len == 0 {
        return Err(Error::invalid(argument, format!("{shape:?} with strides {strides:?}: there must be rows, each contiguous")));
    }
    Ok([strides.batch, strides.head, strides.seq, spec.offset].map(|step| step as u32))
}
