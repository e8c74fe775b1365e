//! Sizes of a cache on a device, and the dispatches that maintain it.

use std::ops::Range;

use super::ledger::Ledger;
use super::rows::{RotarySpec, check_in_place, row_strides};
use super::shape::{CacheShape, CacheSize, LayerShape, Queries};
use crate::error::{Error, Result};
use crate::numbers::DType;
use crate::plan::{CacheStep, DeviceCaps, check_bytes};
use crate::problem::{Problem, TensorSpec};
use crate::wgsl::{CacheKey, CacheParams};

const MOST_BANKS: usize = 1 << 12; // over which the heads of a layer are split

/// Cache on a device as plain data: the sizes of its buffers, and its steps. No device is touched.
///
/// A cache has one *state* buffer and, for each layer, a pool of keys and a pool of values. Where a pool exceeds one
/// binding or buffer, the heads of the layer are split over several *banks* with pools of their own. Lengths and page
/// table are words of the state, which a [`Ledger`] tells what to write. docs/export.md describes a step.
#[derive(Clone, Debug)]
pub struct CachePlan {
    shape: CacheShape,
    size: CacheSize,
    pub(super) caps: DeviceCaps,
    /// Number of banks of each layer.
    banks: Vec<usize>,
}

/// Storage of the new tokens of a step, as a layer's projections leave them: [batch, num_kv_heads, seq_len, dim].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppendSpec {
    /// Slots whose sequences the batch items are.
    pub slots: Range<usize>,
    /// Number of new tokens of each item. The last of them are written, as many as [`Ledger::extend`] was told for the
    /// slot (compare [`crate::Alignment::BottomRight`]).
    pub seq_len: usize,
    /// Storage of new keys.
    pub key: TensorSpec,
    /// Storage of new values, of the keys' type: f32, f16 or bf16.
    pub value: TensorSpec,
    /// Norm, and rotary embedding by the tokens' positions.
    pub rotation: Option<RotationSpec>,
}

/// Norm and rotary embedding of new keys, and of queries in the same dispatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationSpec {
    /// True if a [`crate::rotary::QkNorm`] comes before the rotary embedding.
    pub norm: bool,
    /// Sizes of the angles.
    pub rotary: Option<RotarySpec>,
    /// True if tokens have positions of their own: the angles are those that [`CachePlan::token_angles`] gathers.
    pub by_token: bool,
    /// Queries to change in place: storage of [batch, num_heads, seq_len, head_dim], and num_heads.
    pub query: Option<(TensorSpec, usize)>,
}

impl CachePlan {
    /// Plans a cache for a device with `caps`.
    ///
    /// Errors: a size of 0, a strided layout, rows that are not whole words (an odd head_dim in 16 bits) or blocks, quantised or
    /// rotated, a single head's pool that exceeds one buffer or binding.
    pub fn new(shape: CacheShape, size: CacheSize, caps: &DeviceCaps) -> Result<Self> {
        shape.check()?;
        Error::check_sizes([("slots", size.slots), ("pages_per_slot", size.pages_per_slot)])?;
        for (dim, dtype) in shape.layers.iter().flat_map(LayerShape::sides) {
            if !dim.is_multiple_of(CacheKey::unit(dtype)) {
                let what = format!("heads of {dim} in {dtype} in a cache on a device: rows must be whole words");
                return Err(Error::unsupported(what, "store them as f32, or use cache::KvCache"));
            }
        }
        check_bytes("page table", size.state_words().saturating_mul(4), caps)?;
        let banks = shape.layers.iter().map(|layer| banks(caps, &shape, layer)).collect::<Result<Vec<_>>>()?;
        Ok(Self { shape, size, caps: caps.clone(), banks })
    }

    /// Creates the bookkeeping of the empty cache. Errors: more pages than u32 can index, no memory.
    pub fn ledger(&self) -> Result<Ledger> {
        Ledger::new(&self.shape, self.size)
    }

    /// Returns the plan of a cache with `more` pages and the same banks, to which stored data can be copied.
    pub fn grown(&self, more: usize) -> Result<Self> {
        let grown = Self { shape: self.shape.clone().pages(self.shape.pages.saturating_add(more)), ..self.clone() };
        (0..grown.banks.len()).try_for_each(|layer| grown.pool_bytes(layer).map(|_| ()))?;
        Ok(grown)
    }

    /// Layers and pages of the cache.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Sequences that the cache can hold.
    pub fn size(&self) -> &CacheSize {
        &self.size
    }

    /// Bytes of the state, which begins as zeros.
    pub fn state_bytes(&self) -> u64 {
        4 * self.size.state_words()
    }

    /// Number of banks of a layer. Errors: the layer does not exist.
    pub fn banks(&self, layer: usize) -> Result<usize> {
        self.shape.layer(layer).map(|_| self.banks[layer])
    }

    /// Bytes of the pool of keys and of the pool of values in each bank of a layer, padded to whole vec4s. Pools need
    /// not be initialised. Errors: the layer does not exist.
    pub fn pool_bytes(&self, layer: usize) -> Result<[u64; 2]> {
        let (layer, banks) = (self.shape.layer(layer)?, self.banks(layer)?);
        let [key, value] = layer.sides().map(|side| pool_bytes(&self.caps, &self.shape, layer.num_kv_heads / banks, side));
        Ok([key?, value?].map(|bytes| bytes.next_multiple_of(16).max(16)))
    }

    /// Bytes of all pools.
    pub fn bytes(&self) -> u64 {
        (0..self.banks.len()).flat_map(|layer| self.pool_bytes(layer).map(|bytes| self.banks[layer] as u64 * (bytes[0] + bytes[1]))).sum()
    }

    /// Problem of f32 queries over the sequences in `slots` of a layer, every key visible; with a window, those that the
    /// cache keeps ([`CacheShape::window`]). Everything but its keys and values can be changed before [`Self::attention`],
    /// and with a window more keys can be masked. Errors: the layer does not exist.
    pub fn problem(&self, layer: usize, slots: Range<usize>, queries: Queries) -> Result<Problem> {
        self.shape.problem(layer, slots.len(), queries, self.size.capacity(self.shape.page_size), self.size.pages_per_slot)
    }

    pub(super) fn check_slots(&self, slots: &Range<usize>) -> Result<()> {
        if slots.start >= slots.end || slots.end > self.size.slots {
            return Err(Error::invalid("slots", format!("{slots:?} are none of the {} slots", self.size.slots)));
        }
        Ok(())
    }

    /// Returns the first dispatch of a step: each slot gains as many keys as [`Ledger::extend`] was last told.
    pub(crate) fn advance_step(&self) -> Result<CacheStep> {
        let params = CacheParams { slots: self.size.slots as u32, ..CacheParams::default() };
        CacheStep::new(CacheKey::Advance, params, self.size.slots, &self.caps)
    }

    /// Returns the dispatches that copy this many pages in the pools of keys and of values of a bank.
    pub(crate) fn copy_steps(&self, layer: usize, copies: usize) -> Result<[CacheStep; 2]> {
        let (layer, banks) = (self.shape.layer(layer)?, self.banks(layer)?);
        Error::check_sizes([("copies", copies)])?;
        let [key, value] = layer.sides().map(|(dim, dtype)| {
            let page_words = (dtype.bytes(dim) / 4).saturating_mul(layer.num_kv_heads / banks).saturating_mul(self.shape.page_size);
            let params = CacheParams { copies: copies as u32, page_words: page_words as u32, ..CacheParams::default() };
            CacheStep::new(CacheKey::CopyPages, params, copies.saturating_mul(page_words), &self.caps)
        });
        Ok([key?, value?])
    }

    /// Returns the dispatch that makes up to `most` copies of single tokens in the pools of a bank.
    pub(crate) fn move_step(&self, layer: usize, most: usize) -> Result<CacheStep> {
        let (layer, banks) = (self.shape.layer(layer)?, self.banks(layer)?);
        Error::check_sizes([("moves", most)])?;
        let [key_pool_strides, value_pool_strides] = [0, 1].map(|side| {
            let (spec, shape) = (self.pool_spec(layer, side), self.pool_shape(layer, banks, side));
            let strides = spec.strides(shape);
            [strides.batch, strides.head, strides.seq, shape[3]].map(|elements| (spec.dtype.bytes(elements) / 4) as u32)
        });
        let params = CacheParams {
            key_pool_strides,
            value_pool_strides,
            num_kv_heads: (layer.num_kv_heads / banks) as u32,
            page_size: self.shape.page_size as u32,
            copies: most as u32,
            ..CacheParams::default()
        };
        let words = (key_pool_strides[3] + value_pool_strides[3]) as usize;
        CacheStep::new(CacheKey::MoveTokens, params, words.saturating_mul(layer.num_kv_heads / banks), &self.caps)
    }

    /// Returns the dispatches that write new tokens to a layer, one for each bank.
    ///
    /// Errors: those of [`Self::append`].
    pub(crate) fn append_steps(&self, layer: usize, new: &AppendSpec) -> Result<Vec<CacheStep>> {
        let (shape, banks) = (self.shape.layer(layer)?, self.banks(layer)?);
        let mut params = self.append_params(shape, banks, new)?;
        let rotation = new.rotation.clone().unwrap_or_default();
        let tokens = new.slots.len() * new.seq_len;
        let hadamard = shape.rotations();
        let units = |side: usize| {
            let (dim, dtype) = shape.sides()[side];
            dim / CacheKey::unit_of(dtype, hadamard[side])
        };
        // With a norm, a workgroup takes a row. Rows fit u32, so tokens times heads do.
        let threads = CacheKey::THREADS as usize;
        let of_head = if rotation.norm { 2 * threads } else { units(0) + units(1) };
        let mut steps = Vec::new();
        for bank in 0..banks {
            // The first bank's dispatch changes all queries.
            let query = rotation.query.as_ref().filter(|_| bank == 0);
            let of_queries = query.map_or(0, |(spec, num_heads)| {
                let units = params.pairs as usize / CacheKey::unit(spec.dtype);
                (tokens * num_heads).saturating_mul(if rotation.norm { threads } else { units })
            });
            let key = CacheKey::Append {
                new: new.key.dtype,
                key: shape.key,
                value: shape.value,
                norm: rotation.norm,
                rotary: rotation.rotary.map(|rotary| rotary.pairing),
                by_token: rotation.by_token,
                query: query.map(|(spec, _)| spec.dtype),
                hadamard,
            };
            let of_rows = (tokens * shape.num_kv_heads / banks).saturating_mul(of_head);
            steps.push(CacheStep::new(key, params, of_rows.saturating_add(of_queries), &self.caps)?);
            for strides in [&mut params.key_strides, &mut params.value_strides] {
                strides[3] += params.num_kv_heads * strides[1];
            }
        }
        Ok(steps)
    }

    /// Checks an append, and returns the params of the first bank's dispatch.
    fn append_params(&self, shape: &LayerShape, banks: usize, new: &AppendSpec) -> Result<CacheParams> {
        self.check_slots(&new.slots)?;
        let (dtype, batch) = (new.key.dtype, new.slots.len());
        if new.value.dtype != dtype || dtype.is_quantised() {
            let why = format!("new keys are {dtype}, new values {}: both must be the same, of f32, f16, bf16", new.value.dtype);
            return Err(Error::invalid("value", why));
        }
        let rows = |heads: usize, dim: usize| [batch, heads, new.seq_len, dim];
        let [key_pool_strides, value_pool_strides] = [0, 1].map(|side| {
            let strides = self.pool_spec(shape, side).strides(self.pool_shape(shape, banks, side));
            [strides.batch as u32, strides.head as u32, strides.seq as u32, 0]
        });
        let mut params = CacheParams {
            key_strides: row_strides(&new.key, "key", rows(shape.num_kv_heads, shape.head_dim))?,
            value_strides: row_strides(&new.value, "value", rows(shape.num_kv_heads, shape.head_dim_v))?,
            key_pool_strides,
            value_pool_strides,
            batch: batch as u32,
            seq_len: new.seq_len as u32,
            num_kv_heads: (shape.num_kv_heads / banks) as u32,
            head_dim: shape.head_dim as u32,
            head_dim_v: shape.head_dim_v as u32,
            slots: self.size.slots as u32,
            first_slot: new.slots.start as u32,
            page_size: self.shape.page_size as u32,
            pages_per_slot: self.size.pages_per_slot as u32,
            ..CacheParams::default()
        };
        let Some(RotationSpec { norm, rotary, by_token, query }) = &new.rotation else { return Ok(params) };
        if rotary.is_none() && (!norm || *by_token) {
            return Err(Error::invalid("rotation", "has no rotary embedding: then it needs a norm, and no positions"));
        }
        if let Some(rotary) = rotary {
            rotary.check(shape.head_dim, if *by_token { 0 } else { self.size.capacity(self.shape.page_size) })?;
            (params.pairs, params.distance) = (rotary.pairs as u32, rotary.distance as u32);
        }
        if let Some((spec, num_heads)) = query {
            let [pairs, distance] = [params.pairs, params.distance].map(|elements| elements as usize);
            let shape = rows(*num_heads, shape.head_dim);
            params.query_strides = row_strides(spec, "query", shape)?;
            params.num_heads = *num_heads as u32;
            check_in_place(spec, shape, [pairs, distance, if *norm { shape[3] } else { 0 }])?;
        }
        Ok(params)
    }

    /// Storage of a pool of keys (side 0) or of values (side 1).
    pub(super) fn pool_spec(&self, layer: &LayerShape, side: usize) -> TensorSpec {
        TensorSpec::new(layer.sides()[side].1, self.shape.layout)
    }

    /// Shape of such a pool in each of `banks` banks.
    pub(super) fn pool_shape(&self, layer: &LayerShape, banks: usize, side: usize) -> [usize; 4] {
        [self.shape.pages, layer.num_kv_heads / banks, self.shape.page_size, layer.sides()[side].0]
    }
}

/// Bytes of a pool of `heads` heads. Errors if one buffer or binding cannot hold it.
fn pool_bytes(caps: &DeviceCaps, shape: &CacheShape, heads: usize, (dim, dtype): (usize, DType)) -> Result<u64> {
    let times = |bytes: usize| [shape.page_size, heads, shape.pages].iter().fold(bytes as u64, |bytes, &n| bytes.saturating_mul(n as u64));
    check_bytes("pool of one head", times(dtype.bytes(dim)), caps)?;
    if times(dim) > u64::from(u32::MAX) {
        return Err(Error::Limit {
            limit: "elements that a shader can count",
            needed: times(dim),
            available: u32::MAX.into(),
            remedy: "make the cache of fewer pages".into(),
        });
    }
    Ok(times(dtype.bytes(dim)))
}

/// Smallest number of banks of equally many heads with which the pools of a layer fit.
fn banks(caps: &DeviceCaps, shape: &CacheShape, layer: &LayerShape) -> Result<usize> {
    let heads = layer.num_kv_heads;
    let fits = |banks: usize| layer.sides().into_iter().try_for_each(|side| pool_bytes(caps, shape, heads / banks, side).map(|_| ()));
    let divides = |&banks: &usize| heads.is_multiple_of(banks);
    match (1..=heads.min(MOST_BANKS)).filter(divides).find(|&banks| fits(banks).is_ok()) {
        Some(banks) => Ok(banks),
        None => fits(MOST_BANKS.min(heads)).and(Err(Error::invalid("num_kv_heads", "is more than banks can hold"))),
    }
}
