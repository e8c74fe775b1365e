//! Rows of new tokens and of queries: their strides in shaders, and their rotation.

use crate::error::{Error, Result};
use crate::plan::{CacheStep, DeviceCaps};
use crate::problem::{Layout, Strides, TensorSpec};
use crate::rotary::{Pairing, Rotary, Sections};
use crate::wgsl::{CacheKey, CacheParams};

/// Sizes of the tables of a [`Rotary`], without the angles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotarySpec {
    /// Pairing of the rotated elements.
    pub pairing: Pairing,
    /// Number of pairs that are rotated in each head.
    pub pairs: usize,
    /// Distance between the elements of a pair, unless they are neighbours: `pairs`, or half of the head.
    pub distance: usize,
    /// Sections of the pairs, if tokens have three positions.
    pub sections: Option<Sections>,
    /// Number of positions in the tables.
    pub positions: usize,
}

impl From<&Rotary> for RotarySpec {
    fn from(rotary: &Rotary) -> Self {
        let (pairing, pairs, distance) = (rotary.pairing(), rotary.pairs(), rotary.distance());
        Self { pairing, pairs, distance, sections: rotary.sections(), positions: rotary.positions() }
    }
}

impl RotarySpec {
    /// Checks that there are angles for heads of this width and for so many positions.
    pub(crate) fn check(&self, head_dim: usize, positions: usize) -> Result<()> {
        if self.pairs == 0 || self.pairs > self.distance || self.distance.saturating_add(self.pairs) > head_dim {
            return Err(Error::invalid("rotary", format!("a head of {head_dim} has no {} pairs to rotate", self.pairs)));
        }
        if positions > self.positions {
            return Err(Error::invalid("rotary", format!("has {} positions, sequences may have {positions}", self.positions)));
        }
        Ok(())
    }

    /// Number of positions that each token has.
    pub(crate) fn coordinates(&self) -> usize {
        if self.sections.is_some() { 3 } else { 1 }
    }

    /// Returns the dispatch that gathers the angles of so many tokens.
    pub(crate) fn token_angles(&self, tokens: usize, caps: &DeviceCaps) -> Result<CacheStep> {
        Error::check_sizes([("tokens", tokens), ("positions", self.positions), ("pairs", self.pairs)])?;
        let angles = self.positions.saturating_mul(self.pairs);
        if u32::try_from(angles).is_err() {
            return Err(Error::limit("angles that a shader can count", angles, u32::MAX as usize, "make tables for fewer positions"));
        }
        let [time, height, width] = self.sections.map_or([0; 3], Sections::pairs).map(|pairs| pairs as u32);
        let kind = self.sections.map_or(0, |sections| if matches!(sections, Sections::Chunks(_)) { 1 } else { 2 });
        let params = CacheParams {
            key_strides: [time, height, width, kind],
            seq_len: tokens as u32,
            pairs: self.pairs as u32,
            page_size: self.positions as u32,
            ..CacheParams::default()
        };
        CacheStep::new(CacheKey::TokenAngles, params, tokens.saturating_mul(self.pairs), caps)
    }
}

/// Refuses query rows that cannot be changed in place. 16-bit elements are written in pairs, which must not share words:
/// strides must be even, and so must the numbers of elements in `parts`, which are written apart.
pub(crate) fn check_in_place(spec: &TensorSpec, shape: [usize; 4], parts: [usize; 3]) -> Result<()> {
    let unit = CacheKey::unit(spec.dtype);
    let Strides { batch, head, seq, .. } = spec.strides(shape);
    let whole = [spec.offset, batch, head, seq].iter().chain(&parts).all(|step| step.is_multiple_of(unit));
    if spec.dtype.is_quantised() || !whole || matches!(spec.layout, Layout::Strided(steps) if steps.dim != 1) {
        let why = format!("{spec:?} of {shape:?} in parts of {parts:?}: in 16 bits all of it must be even");
        return Err(Error::unsupported(format!("rotating in place what lies so: {why}"), "use f32, or rotary::Rotary on the host"));
    }
    Ok(())
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
