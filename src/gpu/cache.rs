//! Key/value caches on a device, for sequences that grow there.

use std::ops::Range;

use super::buffers::{filled, storage};
use super::cache_steps;
use super::loss::Scopes;
use super::{Dispatches, Gpu};
use crate::cache::{CacheShape, LayerShape, PagePool, Queries, SequenceId};
use crate::error::{Error, Result};
use crate::numbers::DType;
use crate::plan::check_bytes;
use crate::problem::Problem;
use crate::wgsl::{CacheKey, CacheParams, CacheSlot};

/// Usage of a cache's buffers besides storage.
const COPIED: wgpu::BufferUsages = wgpu::BufferUsages::COPY_SRC.union(wgpu::BufferUsages::COPY_DST);

const MOST_BANKS: usize = 1 << 12; // over which the heads of a layer are split

/// Sequences that a [`DeviceCache`] can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Number of sequences at a time.
    pub slots: usize,
    /// Number of pages that a sequence can have; times [`CacheShape::page_size`] it is the longest sequence.
    pub pages_per_slot: usize,
}

/// Tokens for which [`DeviceCache::extend`] makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth<'a> {
    /// Number of tokens that each step appends to each slot, `[slots]`.
    pub tokens: &'a [usize],
    /// Number of steps.
    pub steps: usize,
}

/// Key/value cache in device buffers for all layers of a model, with lengths and page table on the device too.
///
/// Layers may differ in heads, widths and storage types; one page table serves all of them.
///
/// A cache is contiguous if its page is as long as the longest sequence: one page per sequence slot.
///
/// Where the keys or values of a layer exceed one binding or buffer, its heads are split over several *banks* with
/// buffers of their own. An append and an attention then take a dispatch per bank.
///
/// A decoding step consists of
/// 1. [`Self::extend`], which takes pages if the next tokens need some: bookkeeping on the host, a few words written;
/// 2. one pass: [`Self::advance`], then for each layer the results of [`Self::append`] and [`super::CacheAttention::bind`].
///    Kernels read the lengths on the device, so these are bound once and recorded again for every step.
///
/// `extend` can take pages for many steps at once; then the pass is repeated that often without the host.
///
/// Writes of the host (sequences started, freed, extended) come before the next submit: submit what is recorded before
/// changing the cache.
#[derive(Debug)]
pub struct DeviceCache {
    pub(super) gpu: Gpu,
    shape: CacheShape,
    size: CacheSize,
    pool: PagePool,
    slots: Vec<Option<SequenceId>>,
    /// Number of tokens that a step adds to each slot, as written to the device.
    added: Vec<u32>,
    /// Keys and values of each bank of each layer.
    layers: Vec<Vec<[wgpu::Buffer; 2]>>,
    pub(super) state: wgpu::Buffer,
    advance: Dispatches,
}

/// Words of the cache's state for each slot. See shaders/cache/params.wgsl.
#[derive(Clone, Copy)]
enum State {
    Length = 0,
    Added = 1,
    Reserved = 2,
}

impl DeviceCache {
    /// Creates an empty cache.
    ///
    /// Errors: a size of 0, a strided layout, rows that are not whole words (an odd head_dim in 16 bits) or blocks, a
    /// single head's pool that exceeds one buffer or binding.
    pub fn new(gpu: &Gpu, shape: CacheShape, size: CacheSize) -> Result<Self> {
        shape.check()?;
        Error::check_sizes([("slots", size.slots), ("pages_per_slot", size.pages_per_slot)])?;
        for (dim, dtype) in shape.layers.iter().flat_map(LayerShape::sides) {
            if !dim.is_multiple_of(CacheKey::unit(dtype)) {
                let what = format!("heads of {dim} in {dtype} in a cache on a device: rows must be whole words");
                return Err(Error::unsupported(what, "store them as f32, or use cache::KvCache"));
            }
        }
        let state_bytes = (size.pages_per_slot as u64).saturating_add(4).saturating_mul(size.slots as u64).saturating_mul(4);
        check_bytes("page table", state_bytes, gpu.caps())?;
        let banks = shape.layers.iter().map(|layer| banks(gpu, &shape, layer)).collect::<Result<Vec<_>>>()?;
        let pool = PagePool::new(shape.page_size, shape.pages)?;
        let layers = pools(gpu, &shape, banks.into_iter())?;
        let state = storage(gpu, "cache state", state_bytes, COPIED)?;
        let params = CacheParams { slots: size.slots as u32, ..CacheParams::default() };
        let advance = CacheKey::Advance;
        let advance = cache_steps::bound(gpu, advance, params, size.slots, &[(CacheSlot::State, state.as_entire_buffer_binding())])?;
        let (slots, added) = (vec![None; size.slots], vec![0; size.slots]);
        Ok(Self { gpu: gpu.clone(), shape, size, pool, slots, added, layers, state, advance })
    }

    /// Layers and pages of the cache.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Sequences that the cache can hold.
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
        ((self.pool.pages() - self.pool.free_pages()) * self.shape.page_bytes()) as u64
    }

    /// Keys and values of a layer, a pair of buffers for each bank: [pages, num_kv_heads / banks, page_size, dim] in
    /// the cache's layout. Banks hold consecutive heads, equally many each.
    ///
    /// Errors: a layer that does not exist.
    pub fn pools(&self, layer: usize) -> Result<&[[wgpu::Buffer; 2]]> {
        self.shape.layer(layer).map(|_| &self.layers[layer][..])
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

    /// Makes room for new tokens, and records what must be done first: copies of shared pages that are about to be
    /// written. It counts on all steps being run; [`Self::truncate`] takes tokens back. If the device needs nothing new,
    /// nothing is written or recorded.
    ///
    /// Errors: an empty slot, a sequence longer than its pages, too few free pages. The cache is then unchanged.
    pub fn extend(&mut self, Growth { tokens, steps }: Growth<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.gpu.check_alive()?;
        if tokens.len() != self.size.slots {
            return Err(Error::invalid("tokens", format!("has {} numbers for {} slots", tokens.len(), self.size.slots)));
        }
        let capacity = self.capacity();
        let growing = || tokens.iter().copied().enumerate().filter(|&(_, count)| count > 0);
        let mut needed = 0;
        for (slot, count) in growing() {
            let id = self.sequence(slot)?;
            let more = count.saturating_mul(steps);
            let end = self.pool.length(id)?.saturating_add(more);
            if end > capacity || u32::try_from(count).is_err() {
                return Err(Error::limit("tokens of a slot", end, capacity, "make the cache with more pages_per_slot"));
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
        let shape = self.shape.clone().pages(self.pool.pages().saturating_add(more));
        let layers = pools(&self.gpu, &shape, self.layers.iter().map(Vec::len))?;
        self.pool.grow(more)?;
        self.shape = shape;
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

    /// Problem of f32 queries over the sequences in `slots` of a layer, every key visible. Everything but its keys and
    /// values can be changed before [`Self::attention`]. Errors: the layer does not exist.
    pub fn problem(&self, layer: usize, slots: Range<usize>, queries: Queries) -> Result<Problem> {
        self.shape.problem(layer, slots.len(), queries, self.capacity(), self.size.pages_per_slot)
    }

    /// Number of tokens of the longest possible sequence.
    pub(super) fn capacity(&self) -> usize {
        self.size.pages_per_slot.saturating_mul(self.shape.page_size)
    }

    pub(super) fn check_slots(&self, slots: &Range<usize>) -> Result<()> {
        if slots.start >= slots.end || slots.end > self.size.slots {
            return Err(Error::invalid("slots", format!("{slots:?} are none of the {} slots", self.size.slots)));
        }
        Ok(())
    }

    fn sequence(&self, slot: usize) -> Result<SequenceId> {
        self.slots.get(slot).copied().flatten().ok_or_else(|| Error::invalid("slot", format!("there is no sequence in slot {slot}")))
    }

    fn free_slot(&self) -> Result<usize> {
        let (slots, remedy) = (self.size.slots, "free a sequence, or make the cache with more slots");
        self.slots.iter().position(Option::is_none).ok_or_else(|| Error::limit("slots of the cache", slots + 1, slots, remedy))
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
        for (layer, banks) in self.shape.layers.iter().zip(&self.layers) {
            for (pool, (dim, dtype)) in banks.iter().flat_map(|bank| bank.iter().zip(layer.sides())) {
                let page_words = dtype.bytes(dim) / 4 * (layer.num_kv_heads / banks.len()) * self.shape.page_size;
                let params = CacheParams { copies: copies.len() as u32, page_words: page_words as u32, ..CacheParams::default() };
                let bindings = [(CacheSlot::State, pairs.as_entire_buffer_binding()), (CacheSlot::Key, pool.as_entire_buffer_binding())];
                cache_steps::bound(&self.gpu, CacheKey::CopyPages, params, copies.len() * page_words, &bindings)?.record(encoder);
            }
        }
        Ok(())
    }
}

/// Bytes of a pool of `heads` heads. Errors if one buffer or binding cannot hold it.
fn pool_bytes(gpu: &Gpu, shape: &CacheShape, heads: usize, (dim, dtype): (usize, DType)) -> Result<u64> {
    let times = |bytes: usize| [shape.page_size, heads, shape.pages].iter().fold(bytes as u64, |bytes, &n| bytes.saturating_mul(n as u64));
    check_bytes("pool of one head", times(dtype.bytes(dim)), gpu.caps())?;
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
fn banks(gpu: &Gpu, shape: &CacheShape, layer: &LayerShape) -> Result<usize> {
    let heads = layer.num_kv_heads;
    let fits = |banks: usize| layer.sides().into_iter().try_for_each(|side| pool_bytes(gpu, shape, heads / banks, side).map(|_| ()));
    let divides = |&banks: &usize| heads.is_multiple_of(banks);
    match (1..=heads.min(MOST_BANKS)).filter(divides).find(|&banks| fits(banks).is_ok()) {
        Some(banks) => Ok(banks),
        None => fits(MOST_BANKS.min(heads)).and(Err(Error::invalid("num_kv_heads", "is more than banks can hold"))),
    }
}

/// Creates the pools of every layer, a pair for each bank.
fn pools(gpu: &Gpu, shape: &CacheShape, banks: impl Iterator<Item = usize>) -> Result<Vec<Vec<[wgpu::Buffer; 2]>>> {
    let of_layer = |(layer, banks): (&LayerShape, usize)| {
        let [key, value] = layer.sides();
        let pool = |label, side| storage(gpu, label, pool_bytes(gpu, shape, layer.num_kv_heads / banks, side)?, COPIED);
        (0..banks).map(|_| Ok([pool("key", key)?, pool("value", value)?])).collect()
    };
    shape.layers.iter().zip(banks).map(of_layer).collect()
}
