//! Key/value caches on a device, for sequences that grow there.

use std::ops::Range;

use super::buffers::{filled, storage};
use super::cache_steps;
use super::loss::Scopes;
use super::{Dispatches, Gpu};
use crate::cache::{CachePlan, CacheShape, CacheSize, Growth, KeptRows, Ledger, PagePool, Queries, StateWrite};
use crate::error::Result;
use crate::problem::Problem;
use crate::wgsl::CacheSlot;

/// Usage of a cache's buffers besides storage.
const COPIED: wgpu::BufferUsages = wgpu::BufferUsages::COPY_SRC.union(wgpu::BufferUsages::COPY_DST);

/// Most copies of tokens that one dispatch makes.
const MOST_MOVES: usize = 1024;

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
    pub(super) plan: CachePlan,
    ledger: Ledger,
    /// Keys and values of each bank of each layer.
    layers: Vec<Vec<[wgpu::Buffer; 2]>>,
    pub(super) state: wgpu::Buffer,
    advance: Dispatches,
    compact: Option<Compact>,
}

/// Copies of single tokens in all pools: a list of them, and what is bound to it when the first is to be made.
#[derive(Clone, Debug)]
struct Compact {
    list: wgpu::Buffer,
    moves: Dispatches,
}

impl DeviceCache {
    /// Creates an empty cache.
    ///
    /// Errors: a size of 0, a strided layout, rows that are not whole words (an odd head_dim in 16 bits) or blocks, a
    /// single head's pool that exceeds one buffer or binding.
    pub fn new(gpu: &Gpu, shape: CacheShape, size: CacheSize) -> Result<Self> {
        let plan = CachePlan::new(shape, size, gpu.caps())?;
        let ledger = plan.ledger()?;
        let layers = pools(gpu, &plan)?;
        let state = storage(gpu, "cache state", plan.state_bytes(), COPIED)?;
        let advance = cache_steps::bound(gpu, &plan.advance_step()?, &[(CacheSlot::State, state.as_entire_buffer_binding())])?;
        Ok(Self { gpu: gpu.clone(), plan, ledger, layers, state, advance, compact: None })
    }

    /// Layers and pages of the cache.
    pub fn shape(&self) -> &CacheShape {
        self.plan.shape()
    }

    /// Sequences that the cache can hold.
    pub fn size(&self) -> &CacheSize {
        self.plan.size()
    }

    /// Page bookkeeping.
    pub fn pool(&self) -> &PagePool {
        self.ledger.pool()
    }

    /// Bytes of all pools.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().flatten().flatten().map(wgpu::Buffer::size).sum()
    }

    /// Bytes of the pages in use, in all layers.
    pub fn used_bytes(&self) -> u64 {
        ((self.pool().pages() - self.pool().free_pages()) * self.shape().page_bytes()) as u64
    }

    /// Keys and values of a layer, a pair of buffers for each bank: [pages, num_kv_heads / banks, page_size, dim] in
    /// the cache's layout. Banks hold consecutive heads, equally many each.
    ///
    /// Errors: a layer that does not exist.
    pub fn pools(&self, layer: usize) -> Result<&[[wgpu::Buffer; 2]]> {
        self.shape().layer(layer).map(|_| &self.layers[layer][..])
    }

    /// Buffer that begins with the number of keys of each slot, u32 `[slots]`, for kernels of the app's own.
    pub fn lengths(&self) -> &wgpu::Buffer {
        &self.state
    }

    /// Starts an empty sequence. Returns its slot. Errors: no free slot.
    pub fn start(&mut self) -> Result<usize> {
        self.change(Ledger::start)
    }

    /// Starts a sequence with the first `prefix` tokens of another one, on shared pages. Returns its slot.
    ///
    /// Errors: no free slot, and those of [`PagePool::fork`].
    pub fn fork(&mut self, slot: usize, prefix: usize) -> Result<usize> {
        self.change(|ledger| ledger.fork(slot, prefix))
    }

    /// Removes the sequence of a slot. Returns the pages that became free.
    pub fn free(&mut self, slot: usize) -> Result<Vec<u32>> {
        self.change(|ledger| ledger.free(slot))
    }

    /// Removes the tokens of a slot from `length` on, as after wrong speculation. Returns the pages that became free.
    ///
    /// Errors: those of [`PagePool::truncate`].
    pub fn truncate(&mut self, slot: usize, length: usize) -> Result<Vec<u32>> {
        self.change(|ledger| ledger.truncate(slot, length))
    }

    /// Keeps some of the last tokens of some slots, as after speculation: those whose indices among the `last` ones are
    /// `rows`, ascending. They take the places of the first of the last tokens; the others are removed. Records the copies
    /// in all layers, one dispatch per bank, bound once; nothing if no token moves.
    ///
    /// Like every change of the host's it must come after the submit of the steps that it corrects. The encoder must be submitted
    /// before or with the next step.
    ///
    /// Errors: an empty slot, and those of [`PagePool::keep`]. The cache is then unchanged.
    pub fn keep(&mut self, kept: &[KeptRows<'_>], encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let compact = match self.compact.take() {
            Some(compact) => compact,
            None => bind_compact(&self.gpu, &self.plan, &self.layers)?,
        };
        let Compact { list, moves: bound } = self.compact.insert(compact).clone();
        let moves = self.change(|ledger| ledger.keep(kept))?;
        for moves in moves.chunks(MOST_MOVES) {
            // Pools have fewer elements than u32 counts. Zeros end a list.
            let end = (moves.len() < MOST_MOVES).then_some([0; 2]);
            let pairs: Vec<[u32; 2]> = moves.iter().map(|pair| pair.map(|slot| slot as u32)).chain(end).collect();
            let pairs = filled(&self.gpu, "token moves", wgpu::BufferUsages::COPY_SRC, bytemuck::cast_slice(&pairs))?;
            encoder.copy_buffer_to_buffer(&pairs, 0, &list, 0, pairs.size());
            bound.record(encoder);
        }
        Ok(())
    }

    /// Number of tokens in a slot, once all steps that [`Self::extend`] was told of have run.
    pub fn length(&self, slot: usize) -> Result<usize> {
        self.ledger.length(slot)
    }

    /// Pages of a slot's sequence, in token order; [`crate::PageTable::UNUSED`] where one was given back.
    pub fn pages(&self, slot: usize) -> Result<&[u32]> {
        self.ledger.pages(slot)
    }

    /// Makes room for new tokens, and records what must be done first: copies of shared pages that are about to be
    /// written. With a window, pages that no step sees any more are given back first ([`PagePool`]). It counts on all steps being run; [`Self::truncate`] takes tokens back. If the device needs nothing new,
    /// nothing is written or recorded.
    ///
    /// Errors: an empty slot, a sequence longer than its pages, too few free pages. The cache is then unchanged.
    pub fn extend(&mut self, growth: Growth<'_>, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let copies = self.change(|ledger| ledger.extend(growth))?;
        if copies.is_empty() { Ok(()) } else { self.record_copies(&copies, encoder) }
    }

    /// Adds free pages: `encoder` copies stored data into larger pools. Bind anew what was bound to the old ones.
    pub fn grow(&mut self, more: usize, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let plan = self.plan.grown(more)?;
        let layers = pools(&self.gpu, &plan)?;
        self.ledger.grow(more)?;
        self.plan = plan;
        for (old, new) in self.layers.iter().flatten().flatten().zip(layers.iter().flatten().flatten()) {
            encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size());
        }
        self.layers = layers;
        self.compact = None;
        Ok(())
    }

    /// First dispatch of a step: each slot gains as many keys as [`Self::extend`] was last told.
    pub fn advance(&self) -> &Dispatches {
        &self.advance
    }

    /// Problem of f32 queries over the sequences in `slots` of a layer, every key visible; with a window, those that the
    /// cache keeps ([`CacheShape::window`]). Everything but its keys and values can be changed before [`Self::attention`],
    /// and with a window more keys can be masked. Errors: the layer does not exist.
    pub fn problem(&self, layer: usize, slots: Range<usize>, queries: Queries) -> Result<Problem> {
        self.plan.problem(layer, slots, queries)
    }

    /// Changes the bookkeeping, and writes to the device what follows from it.
    fn change<T>(&mut self, change: impl FnOnce(&mut Ledger) -> Result<T>) -> Result<T> {
        self.gpu.check_alive()?;
        let changed = change(&mut self.ledger);
        let writes = self.ledger.take_writes();
        if !writes.is_empty() {
            // If this fails, the device is out of memory and lost, as the next call reports.
            let _scopes = Scopes::open(self.gpu.device());
            for StateWrite { offset, words } in writes {
                self.gpu.queue().write_buffer(&self.state, 4 * offset as u64, bytemuck::cast_slice(&words));
            }
        }
        changed
    }

    /// Copies pages in all pools. It is rare, so nothing is kept for it.
    fn record_copies(&self, copies: &[[u32; 2]], encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let pairs = filled(&self.gpu, "page copies", wgpu::BufferUsages::STORAGE, bytemuck::cast_slice(copies))?;
        for (layer, banks) in self.layers.iter().enumerate() {
            let steps = self.plan.copy_steps(layer, copies.len())?;
            for (step, pool) in banks.iter().flat_map(|bank| steps.iter().zip(bank)) {
                let bindings = [(CacheSlot::State, pairs.as_entire_buffer_binding()), (CacheSlot::Key, pool.as_entire_buffer_binding())];
                cache_steps::bound(&self.gpu, step, &bindings)?.record(encoder);
            }
        }
        Ok(())
    }
}

/// Creates the pools of every layer, a pair for each bank.
fn pools(gpu: &Gpu, plan: &CachePlan) -> Result<Vec<Vec<[wgpu::Buffer; 2]>>> {
    let of_layer = |layer: usize| {
        let [key, value] = plan.pool_bytes(layer)?;
        let pool = |label, bytes| storage(gpu, label, bytes, COPIED);
        (0..plan.banks(layer)?).map(|_| Ok([pool("key", key)?, pool("value", value)?])).collect()
    };
    (0..plan.shape().layers.len()).map(of_layer).collect()
}

/// Binds copies of tokens in all pools.
fn bind_compact(gpu: &Gpu, plan: &CachePlan, layers: &[Vec<[wgpu::Buffer; 2]>]) -> Result<Compact> {
    let list = storage(gpu, "token moves", 8 * MOST_MOVES as u64, wgpu::BufferUsages::COPY_DST)?;
    let mut moves = Dispatches { steps: Vec::new() };
    for (layer, banks) in layers.iter().enumerate() {
        let step = plan.move_step(layer, MOST_MOVES)?;
        for [key, value] in banks {
            let pools = [(CacheSlot::Key, key), (CacheSlot::Value, value)];
            let buffers = [(CacheSlot::State, &list)].into_iter().chain(pools);
            let bindings: Vec<_> = buffers.map(|(slot, buffer)| (slot, buffer.as_entire_buffer_binding())).collect();
            moves.steps.extend(cache_steps::bound(gpu, &step, &bindings)?.steps);
        }
    }
    Ok(Compact { list, moves })
}
