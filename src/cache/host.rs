//! Cache in host memory.

use super::keep::Compaction;
use super::pool::{PagePool, SequenceId, Slots, copies, no_memory, slots};
use super::shape::{CacheShape, Queries};
use crate::error::{Error, Result};
use crate::numbers::{DType, HostSlice, HostVec};
use crate::problem::{Layout, PageTable, Problem, Strides, TensorSpec};

/// Keys and values of sequences in host memory, in the pages of a pool.
#[derive(Clone, Debug)]
pub struct KvCache {
    shape: CacheShape,
    pool: PagePool,
    /// Keys and values of each layer.
    layers: Vec<[HostVec; 2]>,
}

impl KvCache {
    /// Creates an empty cache. Errors: a size of 0, too many layers, a strided layout, partial blocks of quantised or rotated
    /// rows, no memory.
    pub fn new(shape: CacheShape) -> Result<Self> {
        shape.check()?;
        let layers = shape.layers.iter().map(|layer| layer.sides().map(|(_, dtype)| HostVec::zeros(dtype, 0))).collect();
        let (pool, pages) = (PagePool::keeping(shape.page_size, 0, shape.retention())?, shape.pages);
        let mut cache = Self { shape: shape.pages(0), pool, layers };
        cache.grow(pages)?;
        Ok(cache)
    }

    /// Adds free pages; stored data keeps its place.
    pub fn grow(&mut self, more: usize) -> Result<()> {
        let pages = self.pool.pages().saturating_add(more);
        let mut lens = Vec::new();
        for (layer, data) in self.shape.layers.iter().zip(&mut self.layers) {
            for ((dim, dtype), data) in layer.sides().into_iter().zip(data) {
                let shape = [pages, layer.num_kv_heads, self.shape.page_size, dim];
                let len = TensorSpec::new(dtype, self.shape.layout).required_len(shape).filter(|&len| len <= isize::MAX as usize / 4);
                let len = len.ok_or_else(|| Error::invalid("pages", format!("{pages} pages of {layer:?} overflow")))?;
                if !data.reserve(len) {
                    return Err(no_memory((pages as u64).saturating_mul(self.shape.page_bytes() as u64)));
                }
                lens.push(len);
            }
        }
        self.pool.grow(more)?;
        self.layers.iter_mut().flatten().zip(lens).for_each(|(data, len)| data.resize(len));
        self.shape.pages = pages;
        Ok(())
    }

    /// Layers and pages of the cache.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// Page bookkeeping.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Page bookkeeping, to start, fork and free sequences. [`Self::extend`] adds tokens, [`Self::grow`] pages.
    pub fn pool_mut(&mut self) -> &mut PagePool {
        &mut self.pool
    }

    /// All keys of a layer, for [`crate::Inputs::key`].
    pub fn key(&self, layer: usize) -> Result<HostSlice<'_>> {
        self.shape.layer(layer).map(|_| self.layers[layer][0].as_slice())
    }

    /// All values of a layer, for [`crate::Inputs::value`].
    pub fn value(&self, layer: usize) -> Result<HostSlice<'_>> {
        self.shape.layer(layer).map(|_| self.layers[layer][1].as_slice())
    }

    /// Keys and values of a layer, to write in place, as they are stored: rotated, if the layer says so.
    pub fn data_mut(&mut self, layer: usize) -> Result<&mut [HostVec; 2]> {
        self.shape.layer(layer).map(|_| &mut self.layers[layer])
    }

    /// Makes room for `tokens` more tokens of a sequence, which [`Self::append`] then writes in each layer, and copies a
    /// shared page that they will be written to. Gives back pages that they do not see, if the cache has a window. If it
    /// fails, nothing changes.
    pub fn extend(&mut self, id: SequenceId, tokens: usize) -> Result<()> {
        self.extend_all(&[(id, tokens)])
    }

    /// [`Self::extend`] for many sequences at once, each with its own number of tokens, as in a step whose sequences are
    /// prompts and texts that are being written. If there are pages for some of them only, nothing changes.
    ///
    /// Errors: a sequence that is there twice, or not at all; too few free pages.
    pub fn extend_all(&mut self, growing: &[(SequenceId, usize)]) -> Result<()> {
        for (slots, page) in copies(&self.pool.take(growing, 1)?) {
            for (layer, data) in self.shape.layers.iter().zip(&mut self.layers) {
                for ((dim, _), data) in layer.sides().into_iter().zip(data) {
                    copy_slots(data, self.shape.layout, [self.shape.pages, layer.num_kv_heads, self.shape.page_size, dim], slots, page);
                }
            }
        }
        Ok(())
    }

    /// Writes the last tokens of a sequence in one layer: key [tokens, num_kv_heads, head_dim], value
    /// [tokens, num_kv_heads, head_dim_v], rotated if the layer says so, and rounded to its storage types. If it fails, nothing
    /// is written.
    ///
    /// Errors: more tokens than the sequence has, on a page that another sequence shares, or on one that was given back.
    pub fn append(&mut self, layer: usize, id: SequenceId, key: HostSlice<'_>, value: HostSlice<'_>) -> Result<()> {
        let shape = self.shape.layer(layer)?;
        let tokens = key.len() / (shape.num_kv_heads * shape.head_dim);
        for ((argument, slice), (dim, _)) in [("key", key), ("value", value)].into_iter().zip(shape.sides()) {
            if slice.len() != tokens * shape.num_kv_heads * dim {
                let why = format!("has {} numbers, not [{tokens}, {}, {dim}]", slice.len(), shape.num_kv_heads);
                return Err(Error::invalid(argument, why));
            }
        }
        let length = self.pool.length(id)?;
        let Some(start) = length.checked_sub(tokens) else {
            return Err(Error::invalid("key", format!("has {tokens} tokens, but the sequence has {length}: extend it first")));
        };
        let slots = slots(self.pool.pages_of(id)?, self.shape.page_size, start..length);
        if slots.iter().any(|slots| slots.page == PageTable::UNUSED) {
            return Err(Error::invalid("key", format!("has {tokens} tokens, some on pages that were given back: append each step's")));
        }
        if slots.iter().any(|slots| self.pool.references[slots.page as usize] > 1) {
            return Err(Error::invalid("key", format!("has {tokens} tokens, some on pages that another sequence shares")));
        }
        for (((to, from), (dim, _)), rotation) in self.layers[layer].iter_mut().zip([key, value]).zip(shape.sides()).zip(shape.rotations())
        {
            let rotated = rotation.map(|rotation| {
                let mut rows: Vec<f32> = (0..from.len()).map(|at| from.get(at)).collect();
                rotation.rotate(&mut rows);
                rows
            });
            let from = rotated.as_ref().map_or(from, HostSlice::from);
            write_slots(to, self.shape.layout, [self.shape.pages, shape.num_kv_heads, self.shape.page_size, dim], &slots, from);
        }
        Ok(())
    }

    /// Keeps some of the last tokens of a sequence in all layers, as after speculation: [`PagePool::keep`], with the data.
    /// Returns the pages that became free. If it fails, nothing changes.
    pub fn keep(&mut self, id: SequenceId, last: usize, rows: &[usize]) -> Result<Vec<u32>> {
        let Compaction { moves, freed } = self.pool.keep(id, last, rows)?;
        for (layer, data) in self.shape.layers.iter().zip(&mut self.layers) {
            for ((dim, _), data) in layer.sides().into_iter().zip(data) {
                let shape = [self.shape.pages, layer.num_kv_heads, self.shape.page_size, dim];
                for slots in &moves {
                    let [from, to] = slots.map(|slot| token_rows(self.shape.layout, shape, slot));
                    from.zip(to).for_each(|(from, to)| data.copy_within(from..from + dim, to));
                }
            }
        }
        Ok(freed)
    }

    /// Problem of f32 queries over a layer of the sequences in `table`, every key visible; with a window, those that the
    /// cache keeps ([`CacheShape::window`]). The inputs also take [`PageTable::entries`] and [`PageTable::kv_lengths`].
    /// They are refused with a problem that may see a page that was given back.
    pub fn problem(&self, layer: usize, table: &PageTable, queries: Queries) -> Result<Problem> {
        self.shape.problem(layer, table.kv_lengths.len(), queries, table.longest(), table.pages_per_item)
    }
}

/// Writes `from` [tokens, heads, dim] to token slots of a pool [pages, heads, page_size, dim] whose dim is contiguous.
pub(crate) fn write_slots(to: &mut HostVec, layout: Layout, shape: [usize; 4], slots: &[Slots], from: HostSlice<'_>) {
    let dim = shape[3];
    let rows = slots.iter().flat_map(|slots| slot_rows(layout, shape, *slots, slots.page));
    for (row, at) in rows.enumerate() {
        to.write(at, from.part(row * dim..(row + 1) * dim));
    }
}

/// Copies token slots to the same slots of another page.
fn copy_slots(data: &mut HostVec, layout: Layout, shape: [usize; 4], slots: Slots, page: u32) {
    for (from, to) in slot_rows(layout, shape, slots, slots.page).zip(slot_rows(layout, shape, slots, page)) {
        data.copy_within(from..from + shape[3], to);
    }
}

/// First elements of the rows [tokens, heads] at token slots of a page of a pool [pages, heads, page_size, dim].
fn slot_rows(layout: Layout, shape: [usize; 4], slots: Slots, page: u32) -> impl Iterator<Item = usize> {
    let first = page as usize * shape[2] + slots.first;
    (first..first + slots.count).flat_map(move |slot| token_rows(layout, shape, slot))
}

/// First elements of the rows `[heads]` at a token slot, which is counted over all pages.
fn token_rows(layout: Layout, shape: [usize; 4], slot: usize) -> impl Iterator<Item = usize> {
    let Strides { batch, head, seq, .. } = TensorSpec::new(DType::F32, layout).strides(shape);
    (0..shape[1]).map(move |h| slot / shape[2] * batch + h * head + slot % shape[2] * seq)
}
