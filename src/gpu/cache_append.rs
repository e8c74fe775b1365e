//! Dispatches that write the new tokens of a step to a cache.

use std::ops::Range;

use super::cache_steps::{self, Rows};
use super::rotary::DeviceRotary;
use super::{DeviceCache, Dispatches};
use crate::error::{Error, Result};
use crate::problem::TensorSpec;
use crate::wgsl::{CacheKey, CacheParams, CacheSlot};

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
    /// Rotary embedding by the tokens' positions.
    pub rotation: Option<Rotation<'a>>,
}

/// Rotary embedding of new keys, and of queries in the same dispatch.
#[derive(Clone, Debug)]
pub struct Rotation<'a> {
    /// Angles.
    pub rotary: &'a DeviceRotary,
    /// Queries to rotate in place.
    pub query: Option<RotatedQuery<'a>>,
}

/// Queries to rotate in place, [batch, num_heads, seq_len, head_dim].
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
    /// Errors: a layer or slots that do not exist, buffers too small, key and value of different or quantised types,
    /// a rotary without angles for a head or for the longest sequence, an odd head_dim to rotate in 16 bits.
    pub fn append(&self, layer: usize, new: &NewTokens<'_>) -> Result<Dispatches> {
        let (shape, pools, size) = (self.shape().layer(layer)?, self.pools(layer)?, self.size());
        self.check_slots(&new.slots)?;
        let (dtype, batch, heads) = (new.key.spec.dtype, new.slots.len(), shape.num_kv_heads / pools.len());
        if new.value.spec.dtype != dtype || dtype.is_quantised() {
            let why = format!("new keys are {dtype}, new values {}: both must be the same, of f32, f16, bf16", new.value.spec.dtype);
            return Err(Error::invalid("value", why));
        }
        let rows = |heads: usize, dim: usize| [batch, heads, new.seq_len, dim];
        let pool_strides = shape.sides().map(|(dim, dtype)| {
            let strides = TensorSpec::new(dtype, self.shape().layout).strides([self.shape().pages, heads, self.shape().page_size, dim]);
            [strides.batch as u32, strides.head as u32, strides.seq as u32, 0]
        });
        let units = shape.sides().map(|(dim, dtype)| dim / CacheKey::unit(dtype));
        let mut params = CacheParams {
            key_strides: new.key.strides(&self.gpu, "key", rows(shape.num_kv_heads, shape.head_dim))?,
            value_strides: new.value.strides(&self.gpu, "value", rows(shape.num_kv_heads, shape.head_dim_v))?,
            key_pool_strides: pool_strides[0],
            value_pool_strides: pool_strides[1],
            batch: batch as u32,
            seq_len: new.seq_len as u32,
            num_kv_heads: heads as u32,
            head_dim: shape.head_dim as u32,
            head_dim_v: shape.head_dim_v as u32,
            slots: size.slots as u32,
            first_slot: new.slots.start as u32,
            page_size: self.shape().page_size as u32,
            pages_per_slot: size.pages_per_slot as u32,
            ..CacheParams::default()
        };
        let mut bound = Dispatches { steps: Vec::new() };
        for (bank, [key, value]) in pools.iter().enumerate() {
            let mut threads = batch * new.seq_len * heads * (units[0] + units[1]);
            let mut bindings = vec![
                (CacheSlot::State, self.state.as_entire_buffer_binding()),
                (CacheSlot::NewKey, new.key.binding.clone()),
                (CacheSlot::NewValue, new.value.binding.clone()),
                (CacheSlot::Key, key.as_entire_buffer_binding()),
                (CacheSlot::Value, value.as_entire_buffer_binding()),
            ];
            let mut query = None;
            if let Some(Rotation { rotary, query: rotated }) = &new.rotation {
                rotary.check(shape.head_dim, self.capacity())?;
                params.pairs = rotary.pairs as u32;
                bindings.push((CacheSlot::Angles, rotary.angles.as_entire_buffer_binding()));
                // The first bank's dispatch rotates all queries.
                if let (0, Some(RotatedQuery { rows: of_query, num_heads })) = (bank, rotated) {
                    let shape = rows(*num_heads, shape.head_dim);
                    params.query_strides = of_query.strides(&self.gpu, "query", shape)?;
                    params.num_heads = *num_heads as u32;
                    threads += batch * new.seq_len * num_heads * rotary.query_units(&of_query.spec, shape)?;
                    bindings.push((CacheSlot::Query, of_query.binding.clone()));
                    query = Some(of_query.spec.dtype);
                }
            }
            let rotary = new.rotation.as_ref().map(|rotation| rotation.rotary.pairing);
            let key = CacheKey::Append { new: dtype, key: shape.key, value: shape.value, rotary, query };
            bound.steps.extend(cache_steps::bound(&self.gpu, key, params, threads, &bindings)?.steps);
            for strides in [&mut params.key_strides, &mut params.value_strides] {
                strides[3] += heads as u32 * strides[1];
            }
        }
        Ok(bound)
    }
}
