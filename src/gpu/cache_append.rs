//! Dispatches that write the new tokens of a step to a cache.

use std::ops::Range;

use super::cache_steps::{self, Rows};
use super::rotary::{DeviceNorm, DeviceRotary, TokenAngles};
use super::{DeviceCache, Dispatches};
use crate::cache::{AppendSpec, RotarySpec, RotationSpec};
use crate::error::{Error, Result};
use crate::wgsl::CacheSlot;

/// New tokens of a step, as a layer's projections leave them: [batch, num_kv_heads, seq_len, dim].
#[derive(Clone, Debug)]
pub struct NewTokens<'a> {
    /// Slots whose sequences the batch items are.
    pub slots: Range<usize>,
    /// Number of new tokens of each item. The last of them are written, as many as [`DeviceCache::extend`] was told for
    /// the slot (compare [`crate::Alignment::BottomRight`]).
    pub seq_len: usize,
    /// New keys.
    pub key: Rows<'a>,
    /// New values, stored as the keys are: f32, f16 or bf16.
    pub value: Rows<'a>,
    /// Norm, and rotary embedding by the tokens' positions.
    pub rotation: Option<Rotation<'a>>,
}

/// Norm and rotary embedding of new keys, and of queries in the same dispatch.
#[derive(Clone, Debug, Default)]
pub struct Rotation<'a> {
    /// Norm before the rotary embedding.
    pub norm: Option<&'a DeviceNorm>,
    /// Angles. A layer without rotary embedding may have a norm alone.
    pub rotary: Option<Angles<'a>>,
    /// Queries to change in place.
    pub query: Option<RotatedQuery<'a>>,
}

/// Angles by which the tokens of a step are rotated. Masks do not depend on them: they count keys.
#[derive(Clone, Copy, Debug)]
pub enum Angles<'a> {
    /// The position of a token is its index in its sequence.
    ByIndex(&'a DeviceRotary),
    /// Tokens have positions of their own.
    ByToken(&'a TokenAngles),
}

impl<'a> From<&'a DeviceRotary> for Angles<'a> {
    fn from(rotary: &'a DeviceRotary) -> Self {
        Self::ByIndex(rotary)
    }
}

impl<'a> From<&'a TokenAngles> for Angles<'a> {
    fn from(angles: &'a TokenAngles) -> Self {
        Self::ByToken(angles)
    }
}

impl Angles<'_> {
    fn spec(&self) -> RotarySpec {
        match self {
            Self::ByIndex(rotary) => rotary.spec,
            Self::ByToken(angles) => angles.spec,
        }
    }

    /// Returns the buffer with the angles of a step of so many tokens.
    fn buffer(&self, tokens: usize) -> Result<&wgpu::Buffer> {
        match self {
            Self::ByIndex(rotary) => Ok(&rotary.angles),
            Self::ByToken(TokenAngles { tokens: own, angles, .. }) if *own == tokens => Ok(angles),
            Self::ByToken(TokenAngles { tokens: own, .. }) => {
                Err(Error::invalid("rotary", format!("has the angles of {own} tokens, the step has {tokens}")))
            }
        }
    }
}

/// Queries to change in place, [batch, num_heads, seq_len, head_dim].
#[derive(Clone, Debug)]
pub struct RotatedQuery<'a> {
    /// Rows of all heads.
    pub rows: Rows<'a>,
    /// Number of query heads.
    pub num_heads: usize,
}

impl DeviceCache {
    /// Binds the kernel that writes new tokens to a layer, one dispatch per bank.
    ///
    /// Errors: a layer or slots that do not exist, buffers too small, key and value of different or quantised types, a
    /// rotation of nothing, a norm of another width, a rotary without angles for a head or for the longest sequence, an odd
    /// head_dim of queries in 16 bits.
    pub fn append(&self, layer: usize, new: &NewTokens<'_>) -> Result<Dispatches> {
        let (shape, pools) = (*self.shape().layer(layer)?, self.pools(layer)?);
        let steps = self.plan.append_steps(layer, &new.spec())?;
        let rows = |heads: usize, dim: usize| [new.slots.len(), heads, new.seq_len, dim];
        new.key.check(&self.gpu, "key", rows(shape.num_kv_heads, shape.head_dim))?;
        new.value.check(&self.gpu, "value", rows(shape.num_kv_heads, shape.head_dim_v))?;
        let mut bound = Dispatches { steps: Vec::new() };
        for (bank, (step, [key, value])) in steps.iter().zip(pools).enumerate() {
            let mut bindings = vec![
                (CacheSlot::State, self.state.as_entire_buffer_binding()),
                (CacheSlot::NewKey, new.key.binding.clone()),
                (CacheSlot::NewValue, new.value.binding.clone()),
                (CacheSlot::Key, key.as_entire_buffer_binding()),
                (CacheSlot::Value, value.as_entire_buffer_binding()),
            ];
            if let Some(Rotation { norm, rotary, query }) = &new.rotation {
                if let Some(angles) = rotary {
                    let angles = angles.buffer(new.slots.len() * new.seq_len)?;
                    bindings.push((CacheSlot::Angles, angles.as_entire_buffer_binding()));
                }
                if let Some(norm) = norm {
                    norm.check(shape.head_dim)?;
                    bindings.push((CacheSlot::Norm, norm.words.as_entire_buffer_binding()));
                }
                // The first bank's dispatch changes all queries.
                if let (0, Some(RotatedQuery { rows: of_query, num_heads })) = (bank, query) {
                    of_query.check(&self.gpu, "query", rows(*num_heads, shape.head_dim))?;
                    bindings.push((CacheSlot::Query, of_query.binding.clone()));
                }
            }
            bound.steps.extend(cache_steps::bound(&self.gpu, step, &bindings)?.steps);
        }
        Ok(bound)
    }
}

impl NewTokens<'_> {
    /// Storage of the tokens.
    fn spec(&self) -> AppendSpec {
        let rotation = self.rotation.as_ref().map(|Rotation { norm, rotary, query }| RotationSpec {
            norm: norm.is_some(),
            rotary: rotary.map(|angles| angles.spec()),
            by_token: matches!(rotary, Some(Angles::ByToken(_))),
            query: query.as_ref().map(|query| (query.rows.spec, query.num_heads)),
        });
        AppendSpec { slots: self.slots.clone(), seq_len: self.seq_len, key: self.key.spec, value: self.value.spec, rotation }
    }
}
