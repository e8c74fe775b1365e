//! Key/value caches on a device, for sequences that grow there.

use std::ops::Range;

use super::buffers::{filled, storage};
use super::cache_attention::CacheAttention;
use super::cache_steps;
use super::loss::Scopes;
use super::rotary::DeviceRotary;
use super::{Dispatches, Gpu};
use crate::cache::{CacheShape, PagePool, SequenceId};
use crate::error::{Error, Result};
use crate::plan::check_bytes;
use crate::problem::{Algorithm, Dims, Paged, Problem, TensorSpec};
use crate::wgsl::{CacheKey, CacheParams, CacheSlot};

/// Usage of a cache's buffers besides storage.
const COPIED: wgpu::BufferUsages = wgpu::BufferUsages::COPY_SRC.union(wgpu::BufferUsages::COPY_DST);

const MOST_LAYERS: usize = 1 << 14; // each with buffers of its own
const MOST_BANKS: usize = 1 << 12; // over which the heads of a layer are split

/// Size of a [`DeviceCache`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Number of layers, each with its own pools of keys and values. One page table serves all of them.
    pub layers: usize,
    /// Number of sequences that the cache can hold at a time.
    pub slots: usize,
    /// Number of pages that a sequence can have; times [`CacheShape::page_size`] it is the longest sequence.
    pub pages_per_slot: usize,
    /// Number of pages in each layer's pool, shared by the sequences.
    pub pages: usize,
}

/// Key/value cache in device buffers for all layers of a model, with lengths and page table on the device too.
///
/// A cache is contiguous if its page is as long as the longest sequence: one page per sequence slot.
///
/// Where the keys or values of a layer exceed one binding or buffer, its heads are split over several *banks* with
/// buffers of their own. An append and an attention then take a dispatch per bank.
///
/// A decoding step consists of
/// 1. [`Self::extend`], which takes pages if the next tokens need some: bookkeeping on the host, a few words written;
/// 2. one pass: [`Self::advance`], then for each layer the results of [`Self::append`] and [`CacheAttention::bind`].
///    Kernels read the lengths on the device, so these are bound once and recorded again for every step.
///
/// `extend` can take pages for many steps at once; then the pass is repeated that often without the host.
///
/// Writes of the host (sequences started, freed, extended) come before the next submit: submit what is recorded before
/// changing the cache.
#[derive(Debug)]
pub struct DeviceCache {
    gpu: Gpu,
    shape: CacheShape,
    size: CacheSize,
    pool: PagePool,
    slots: Vec<Option<SequenceId>>,
    /// Number of tokens that a step adds to each slot, as written to the device.
    added: Vec<u32>,
    /// Keys and values of each bank of each layer.
    layers: Vec<Vec<[wgpu::Buffer; 2]>>,
    banks: usize,
    state: wgpu::Buffer,
    advance: Dispatches,
}

/// Words of the cache's state for each slot. See shaders/cache/params.wgsl.
#[derive(Clone, Copy)]
enum State {
    Length = 0,
    Added = 1,
    Reserved = 2,
}

/// New tokens, as a layer's projections leave them: [batch, num_kv_heads, seq_len, dim], each head contiguous.
#[derive(Clone, Debug)]
pub struct NewTokens<'a> {
    /// New keys.
    pub key: wgpu::BufferBinding<'a>,
    /// Storage of the new keys: f32, f16 or bf16, and the type of the new values too.
    pub key_spec: TensorSpec,
    /// New values.
    pub value: wgpu::BufferBinding<'a>,
    /// Storage of the new values.
    pub value_spec: TensorSpec,
    /// Rotary embedding of the new keys, by their positions.
    pub rotary: Option<&'a DeviceRotary>,
    /// Queries to rotate in place in the dispatch, [batch, num_heads, seq_len, head_dim], with storage and num_heads.
    pub query: Option<(wgpu::BufferBinding<'a>, TensorSpec, usize)>,
}

impl DeviceCache {
    /// Creates an empty cache.
    ///
    /// Errors: a size of 0, a strided layout, rows that are not whole words (an odd head_dim in 16 bits) or blocks, a
    /// single head's pool that exceeds one buffer or binding.
    pub fn new(gpu: &Gpu, shape: CacheShape, size: CacheSize) -> Result<Self> {
        shape.check()?;
        for (argument, count) in [("layers", size.layers), ("slots", size.slots), ("pages_per_slot", size.pages_per_slot)] {
            if count == 0 {
                return Err(Error::invalid(argument, "is 0; it must be at least 1"));
            }
        }
        for (argument, dim) in [("head_dim", shape.head_dim), ("head_dim_v", shape.head_dim_v)] {
            if !dim.is_multiple_of(CacheKey::unit(shape.dtype)) {
                return Err(Error::unsupported(
                    format!("{argument} = {dim} of {} in a cache on a device: rows must be whole words", shape.dtype),
                    "store it as f32, or use cache::KvCache",
                ));
            }
        }
        let state_bytes = (size.pages_per_slot as u64).saturating_add(4).saturating_mul(size.slots as u64).saturating_mul(4);
        check_bytes("page table", state_bytes, gpu.caps())?;
        if size.layers > MOST_LAYERS {
            return Err(Error::invalid("layers", format!("is {}; it must be at most {MOST_LAYERS}", size.layers)));
        }
        let banks = banks(gpu, &shape, size.pages)?;
        let pool = PagePool::new(shape.page_size, size.pages)?;
        let layers = (0..size.layers).map(|_| pools(gpu, &shape, banks, size.pages)).collect::<Result<_>>()?;
        let state = storage(gpu, "cache state", state_bytes, COPIED)?;
        let params = CacheParams { slots: size.slots as u32, ..CacheParams::default() };
        let advance = CacheKey::Advance;
        let advance = cache_steps::bound(gpu, advance, params, size.slots, &[(CacheSlot::State, state.as_entire_buffer_binding())])?;
        let (slots, added) = (vec![None; size.slots], vec![0; size.slots]);
        Ok(Self { gpu: gpu.clone(), shape, size, pool, slots, added, layers, banks, state, advance })
    }

    /// Shape and storage of the cache.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Size of the cache.
    pub fn size(&self) -> &CacheSize {
        &self.size
    }

    /// Page bookkeeping.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Bytes of all pools.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().flatten().flatten().map(wgpu::Buffer::size).sum()
    }

    /// Bytes of the pages in use, in all layers.
    pub fn used_bytes(&self) -> u64 {
        ((self.pool.pages() - self.pool.free_pages()) * self.shape.page_bytes() * self.size.layers) as u64
    }

    /// Keys and values of a layer, a pair of buffers for each bank: [pages, num_kv_heads / banks, page_size, dim] in
    /// the cache's layout. Banks hold consecutive heads, equally many each.
    ///
    /// Errors: a layer that does not exist.
    pub fn pools(&self, layer: usize) -> Result<&[[wgpu::Buffer; 2]]> {
        let pools = self.layers.get(layer).map(Vec::as_slice);
        pools.ok_or_else(|| Error::invalid("layer", format!("is {layer}, but the cache has {}", self.size.layers)))
    }

    /// Buffer that begins with the number of keys of each slot, u32 `[slots]`, for kernels of the app's own.
    pub fn lengths(&self) -> &wgpu::Buffer {
        &self.state
    }

    /// Starts an empty sequence. Returns its slot. Errors: no free slot.
    pub fn start(&mut self) -> Result<usize> {
        self.gpu.check_alive()?;
        let slot = self.free_slot()?;
        let id = self.pool.start();
        self.put(slot, id);
        Ok(slot)
    }

    /// Starts a sequence with the first `prefix` tokens of another one, on shared pages. Returns its slot.
    pub fn fork(&mut self, slot: usize, prefix: usize) -> Result<usize> {
        self.gpu.check_alive()?;
        let id = self.sequence(slot)?;
        let to = self.free_slot()?;
        let fork = self.pool.fork(id, prefix)?;
        self.put(to, fork);
        Ok(to)
    }

    /// Removes the sequence of a slot. Returns the pages that became free.
    pub fn free(&mut self, slot: usize) -> Result<Vec<u32>> {
        self.gpu.check_alive()?;
        let freed = self.pool.free(self.sequence(slot)?)?;
        self.slots[slot] = None;
        self.add(slot, 0);
        self.write_state(State::Length, slot, 0);
        self.write_state(State::Reserved, slot, 0);
        Ok(freed)
    }

    /// Removes the tokens of a slot from `length` on, as after wrong speculation. Returns the pages that became free.
    pub fn truncate(&mut self, slot: usize, length: usize) -> Result<Vec<u32>> {
        self.gpu.check_alive()?;
        let id = self.sequence(slot)?;
        let freed = self.pool.truncate(id, length)?;
        self.put(slot, id);
        Ok(freed)
    }

    /// Number of tokens in a slot, once all steps that [`Self::extend`] was told of have run.
    pub fn length(&self, slot: usize) -> Result<usize> {
        self.pool.length(self.sequence(slot)?)
    }

    /// Pages of a slot's sequence, in token order.
    pub fn pages(&self, slot: usize) -> Result<&[u32]> {
        self.pool.pages_of(self.sequence(slot)?)
    }

    /// Makes room for `steps` steps that each append `tokens[slot]` tokens to every slot, and records what must be done
    /// first: copies of shared pages that are about to be written. It counts on all steps being run; [`Self::truncate`]
    /// takes tokens back. If the device needs nothing new, nothing is written or recorded.
    ///
    /// Errors: an empty slot, a sequence longer than its pages, too few free pages. The cache is then unchanged.
    pub fn extend(&mut self, tokens: &[usize], steps: usize, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.gpu.check_alive()?;
        if tokens.len() != self.size.slots {
            return Err(Error::invalid("tokens", format!("has {} numbers for {} slots", tokens.len(), self.size.slots)));
        }
        let capacity = self.size.pages_per_slot.saturating_mul(self.shape.page_size);
        let growing = || tokens.iter().copied().enumerate().filter(|&(_, count)| count > 0);
        let mut needed = 0;
        for (slot, count) in growing() {
            let id = self.sequence(slot)?;
            let more = count.saturating_mul(steps);
            let end = self.pool.length(id)?.saturating_add(more);
            if end > capacity || u32::try_from(count).is_err() {
                return Err(Error::Limit {
                    limit: "tokens of a slot",
                    needed: end as u64,
                    available: capacity as u64,
                    remedy: "make the cache with more pages_per_slot".into(),
                });
            }
            needed += self.pool.pages_needed(id, more)?;
        }
        // This counts a copy for each sequence that shares a last page. If too few pages are free, try on a clone.
        if needed > self.pool.free_pages() {
            let mut trial = self.pool.clone();
            for (slot, count) in growing() {
                trial.take(self.sequence(slot)?, count * steps)?;
            }
        }
        let mut copies = Vec::new();
        for (slot, count) in growing() {
            let (id, more) = (self.sequence(slot)?, count * steps);
            let known = self.pool.length(id)?.div_ceil(self.shape.page_size);
            let copy = self.pool.take(id, more)?;
            let first_new = known - usize::from(copy.is_some());
            copies.extend(copy.map(|(from, to)| [from.page, to]));
            self.write_pages(slot, first_new)?;
        }
        for (slot, &count) in tokens.iter().enumerate() {
            self.add(slot, count as u32);
        }
        if !copies.is_empty() {
            self.record_copies(&copies, encoder)?;
        }
        Ok(())
    }

    /// Adds free pages: `encoder` copies stored data into larger pools. Bind anew what was bound to the old ones.
    pub fn grow(&mut self, more: usize, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let pages = self.pool.pages().saturating_add(more);
        let layers = (0..self.size.layers).map(|_| pools(&self.gpu, &self.shape, self.banks, pages)).collect::<Result<Vec<_>>>()?;
        self.pool.grow(more)?;
        self.size.pages = pages;
        for (old, new) in self.layers.iter().flatten().flatten().zip(layers.iter().flatten().flatten()) {
            encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size());
        }
        self.layers = layers;
        Ok(())
    }

    /// First dispatch of a step: each slot gains as many keys as [`Self::extend`] was last told.
    pub fn advance(&self) -> &Dispatches {
        &self.advance
    }

    /// Binds the kernel that writes the new tokens of a step to `slots` of a layer, one dispatch per bank. Each item's
    /// last tokens of `seq_len` are written, as many as its slot gained (compare [`crate::Alignment::BottomRight`]).
    pub fn append(&self, layer: usize, slots: Range<usize>, seq_len: usize, new: &NewTokens<'_>) -> Result<Dispatches> {
        let pools = self.pools(layer)?;
        self.check_slots(&slots)?;
        let (shape, batch) = (&self.shape, slots.len());
        let dtype = new.key_spec.dtype;
        if new.value_spec.dtype != dtype || dtype.is_quantised() {
            let why = format!("new keys are {dtype}, new values {}: both must be the same, of f32, f16, bf16", new.value_spec.dtype);
            return Err(Error::invalid("value_spec", why));
        }
        let rows = |heads: usize, dim: usize| [batch, heads, seq_len, dim];
        let keys = cache_steps::strides(&self.gpu, "key", &new.key, &new.key_spec, rows(shape.num_kv_heads, shape.head_dim))?;
        let values = cache_steps::strides(&self.gpu, "value", &new.value, &new.value_spec, rows(shape.num_kv_heads, shape.head_dim_v))?;
        let heads = shape.num_kv_heads / self.banks;
        let pool = |dim: usize| {
            let strides = self.spec().strides([self.size.pages, heads, shape.page_size, dim]);
            [strides.batch as u32, strides.head as u32, strides.seq as u32, 0]
        };
        let mut bound = Dispatches { steps: Vec::new() };
        for (bank, [key, value]) in pools.iter().enumerate() {
            let of_bank = |mut strides: [u32; 4]| {
                strides[3] += (bank * heads) as u32 * strides[1];
                strides
            };
            let mut params = CacheParams {
                key_strides: of_bank(keys),
                value_strides: of_bank(values),
                key_pool_strides: pool(shape.head_dim),
                value_pool_strides: pool(shape.head_dim_v),
                batch: batch as u32,
                seq_len: seq_len as u32,
                num_kv_heads: heads as u32,
                head_dim: shape.head_dim as u32,
                head_dim_v: shape.head_dim_v as u32,
                slots: self.size.slots as u32,
                first_slot: slots.start as u32,
                page_size: shape.page_size as u32,
                pages_per_slot: self.size.pages_per_slot as u32,
                ..CacheParams::default()
            };
            let unit = CacheKey::unit(shape.dtype);
            let mut threads = batch * seq_len * heads * (shape.head_dim / unit + shape.head_dim_v / unit);
            let mut bindings = vec![
                (CacheSlot::State, self.state.as_entire_buffer_binding()),
                (CacheSlot::NewKey, new.key.clone()),
                (CacheSlot::NewValue, new.value.clone()),
                (CacheSlot::Key, key.as_entire_buffer_binding()),
                (CacheSlot::Value, value.as_entire_buffer_binding()),
            ];
            if let Some(rotary) = new.rotary {
                rotary.check(shape.head_dim, self.size.pages_per_slot * shape.page_size)?;
                params.pairs = rotary.pairs() as u32;
                bindings.push((CacheSlot::Angles, rotary.angles().as_entire_buffer_binding()));
            }
            let query = match (&new.query, new.rotary) {
                (Some(_), None) => return Err(Error::invalid("query", "is bound, but there is no rotary to turn it")),
                // The first bank's dispatch rotates all queries.
                (Some((query, spec, num_heads)), Some(rotary)) if bank == 0 => {
                    let shape = rows(*num_heads, shape.head_dim);
                    params.query_strides = cache_steps::strides(&self.gpu, "query", query, spec, shape)?;
                    params.num_heads = *num_heads as u32;
                    threads += batch * seq_len * num_heads * rotary.query_units(spec, shape)?;
                    bindings.push((CacheSlot::Query, query.clone()));
                    Some(spec.dtype)
                }
                _ => None,
            };
            let key = CacheKey::Append { new: dtype, cache: shape.dtype, rotary: new.rotary.map(DeviceRotary::pairing), query };
            bound.steps.extend(cache_steps::bound(&self.gpu, key, params, threads, &bindings)?.steps);
        }
        Ok(bound)
    }

    /// Problem of `seq_len_q` f32 queries per item, [batch, num_heads, seq_len_q, head_dim], over `batch` slots, every
    /// key visible. Everything but its keys and values can be changed before [`Self::attention`].
    pub fn problem(&self, batch: usize, num_heads: usize, seq_len_q: usize) -> Problem {
        let CacheShape { page_size, num_kv_heads, head_dim, head_dim_v, .. } = self.shape;
        let CacheSize { pages_per_slot: pages_per_item, pages, .. } = self.size;
        let seq_len_kv = pages_per_item * page_size;
        let mut problem = Problem::new(Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v });
        (problem.key, problem.value) = (self.spec(), self.spec());
        problem.paged = Some(Paged { page_size, pages, pages_per_item });
        problem.visibility.kv_lengths = true;
        problem
    }

    /// Prepares attention for [`Self::problem`]; item 0 is the sequence in `first_slot`. Bind it once for each layer.
    ///
    /// Errors: those of [`super::Attention::new`]; keys and values that are not this cache's; with several banks, an
    /// lse or a mask or bias that differs between heads.
    pub fn attention(&self, problem: &Problem, first_slot: usize, algorithm: Algorithm) -> Result<CacheAttention> {
        let d = &problem.dims;
        self.check_slots(&(first_slot..first_slot.saturating_add(d.batch)))?;
        let own = self.problem(d.batch, d.num_heads, d.seq_len_q);
        let of = |p: &Problem| (p.dims, p.paged, p.visibility.kv_lengths, p.key, p.value);
        if of(&own) != of(problem) {
            return Err(Error::invalid("problem", "its keys and values are not this cache's: begin with DeviceCache::problem"));
        }
        let state = [first_slot, 4 * self.size.slots + first_slot * self.size.pages_per_slot].map(|word| word as u32);
        CacheAttention::new(&self.gpu, problem, algorithm, &self.state, state, self.banks)
    }

    fn spec(&self) -> TensorSpec {
        TensorSpec::new(self.shape.dtype, self.shape.layout)
    }

    fn check_slots(&self, slots: &Range<usize>) -> Result<()> {
        if slots.start >= slots.end || slots.end > self.size.slots {
            return Err(Error::invalid("slots", format!("{slots:?} are none of the {} slots", self.size.slots)));
        }
        Ok(())
    }

    fn sequence(&self, slot: usize) -> Result<SequenceId> {
        self.slots.get(slot).copied().flatten().ok_or_else(|| Error::invalid("slot", format!("there is no sequence in slot {slot}")))
    }

    fn free_slot(&self) -> Result<usize> {
        self.slots.iter().position(Option::is_none).ok_or_else(|| Error::Limit {
            limit: "slots of the cache",
            needed: self.size.slots as u64 + 1,
            available: self.size.slots as u64,
            remedy: "free a sequence, or make the cache with more slots".into(),
        })
    }

    /// Writes the state of a slot's sequence to the device.
    fn put(&mut self, slot: usize, id: SequenceId) {
        self.slots[slot] = Some(id);
        self.add(slot, 0);
        self.write_state(State::Length, slot, self.pool.length(id).unwrap_or(0) as u32);
        // It fails only for a missing sequence, and this one exists.
        let _ = self.write_pages(slot, 0);
    }

    fn add(&mut self, slot: usize, count: u32) {
        if self.added[slot] != count {
            self.added[slot] = count;
            self.write_state(State::Added, slot, count);
        }
    }

    /// Writes a slot's pages from `first` on, and the number of keys that they hold, if they have changed.
    fn write_pages(&self, slot: usize, first: usize) -> Result<()> {
        let pages = self.pool.pages_of(self.sequence(slot)?)?;
        if first > 0 && first == pages.len() {
            return Ok(());
        }
        let at = 4 * self.size.slots + slot * self.size.pages_per_slot + first;
        self.write_words(at, &pages[first..]);
        self.write_state(State::Reserved, slot, (pages.len() * self.shape.page_size) as u32);
        Ok(())
    }

    fn write_state(&self, word: State, slot: usize, value: u32) {
        self.write_words(word as usize * self.size.slots + slot, &[value]);
    }

    fn write_words(&self, at: usize, words: &[u32]) {
        // If this fails, the device is out of memory and lost, as the next call reports.
        let _scopes = Scopes::open(self.gpu.device());
        self.gpu.queue().write_buffer(&self.state, 4 * at as u64, bytemuck::cast_slice(words));
    }

    /// Copies pages in all pools. It is rare, so nothing is kept for it.
    fn record_copies(&self, copies: &[[u32; 2]], encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let pairs = filled(&self.gpu, "page copies", wgpu::BufferUsages::STORAGE, bytemuck::cast_slice(copies))?;
        for bank in self.layers.iter().flatten() {
            for (pool, dim) in bank.iter().zip([self.shape.head_dim, self.shape.head_dim_v]) {
                let page_words = self.shape.dtype.bytes(dim) / 4 * (self.shape.num_kv_heads / self.banks) * self.shape.page_size;
                let params = CacheParams { copies: copies.len() as u32, page_words: page_words as u32, ..CacheParams::default() };
                let bindings = [(CacheSlot::State, pairs.as_entire_buffer_binding()), (CacheSlot::Key, pool.as_entire_buffer_binding())];
                cache_steps::bound(&self.gpu, CacheKey::CopyPages, params, copies.len() * page_words, &bindings)?.record(encoder);
            }
        }
        Ok(())
    }
}

/// Bytes of a pool of `heads` heads. Errors if one buffer or binding cannot hold it.
fn pool_bytes(gpu: &Gpu, shape: &CacheShape, dim: usize, heads: usize, pages: usize) -> Result<u64> {
    let bytes = [shape.page_size, heads, pages].iter().try_fold(shape.dtype.bytes(dim) as u64, |bytes, &n| bytes.checked_mul(n as u64));
    let bytes = bytes.unwrap_or(u64::MAX);
    check_bytes("pool of one head", bytes, gpu.caps())?;
    let numbers = [shape.page_size, heads, pages].iter().fold(dim as u64, |numbers, &n| numbers.saturating_mul(n as u64));
    if numbers > u64::from(u32::MAX) {
        return Err(Error::Limit {
            limit: "elements that a shader can count",
            needed: numbers,
            available: u32::MAX.into(),
            remedy: "make the cache of fewer pages".into(),
        });
    }
    Ok(bytes)
}

/// Smallest number of banks of equally many heads with which the pools fit.
fn banks(gpu: &Gpu, shape: &CacheShape, pages: usize) -> Result<usize> {
    let fits = |banks: usize| {
        let bytes = |dim| pool_bytes(gpu, shape, dim, shape.num_kv_heads / banks, pages);
        bytes(shape.head_dim).and(bytes(shape.head_dim_v))
    };
    let divides = |&banks: &usize| shape.num_kv_heads.is_multiple_of(banks);
    match (1..=shape.num_kv_heads.min(MOST_BANKS)).filter(divides).find(|&banks| fits(banks).is_ok()) {
        Some(banks) => Ok(banks),
        None => fits(MOST_BANKS.min(shape.num_kv_heads)).and(Err(Error::invalid("num_kv_heads", "is more than banks can hold"))),
    }
}

/// Creates the pools of one layer, a pair for each bank.
fn pools(gpu: &Gpu, shape: &CacheShape, banks: usize, pages: usize) -> Result<Vec<[wgpu::Buffer; 2]>> {
    let pool = |label, dim| storage(gpu, label, pool_bytes(gpu, shape, dim, shape.num_kv_heads / banks, pages)?, COPIED);
    (0..banks).map(|_| Ok([pool("key", shape.head_dim)?, pool("value", shape.head_dim_v)?])).collect()
}
