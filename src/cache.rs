//! Paged key/value caches for growing sequences: which sequence has which page and, for host caches, the data.
//!
//! ```
//! use wgpu_attention::cache::{CacheShape, KvCache};
//! use wgpu_attention::{Alignment, Backend, DType, Engine, EngineOptions, Inputs, Layout};
//!
//! let shape = CacheShape { page_size: 4, num_kv_heads: 1, head_dim: 2, head_dim_v: 2, dtype: DType::F32, layout: Layout::Bshd };
//! let mut cache = KvCache::new(shape, 8)?;
//! let prompt = cache.pool_mut().start();
//! cache.append(prompt, (&[0.5; 6][..]).into(), (&[1.0; 6][..]).into())?; // 3 tokens
//! let other = cache.pool_mut().fork(prompt, 2)?; // shares 2 of them
//!
//! let table = cache.pool().table(&[prompt, other])?;
//! let problem = cache.problem(&table, 1, 1).aligned(Alignment::BottomRight).causal();
//! let query = [1.0f32; 4];
//! let inputs = Inputs {
//!     kv_lengths: &table.kv_lengths,
//!     page_table: &table.entries,
//!     ..Inputs::new(&query[..], cache.key(), cache.value())
//! };
//! let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
//! assert_eq!(engine.attention(&problem, &inputs)?.output.to_f32(), [1.0; 4]);
//! # Ok::<(), wgpu_attention::Error>(())
//! ```

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::numbers::{DType, HostSlice, HostVec};
use crate::problem::{Dims, Layout, PageTable, Problem, Strides, TensorSpec};

/// Identifier of a sequence in a [`PagePool`]; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

/// Consecutive token slots of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Page that holds the slots.
    pub page: u32,
    /// First token slot of the range.
    pub first: usize,
    /// Number of token slots.
    pub count: usize,
}

/// Work that an append leaves to the owner of the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Append {
    /// Copy to make first: these token slots, to the same slots of another page, because their page is shared.
    pub copy: Option<(Slots, u32)>,
    /// Destinations of the new tokens, in token order.
    pub slots: Vec<Slots>,
}

/// Page bookkeeping: which sequence has which page. The data itself may be on a device.
///
/// Sequences share the pages of a common prefix. A page is written only while one sequence has it: appending to a
/// shared last page moves the sequence to a copy of that page. A call that fails changes nothing.
#[derive(Clone, Debug)]
pub struct PagePool {
    page_size: usize,
    /// Number of sequences that have each page.
    references: Vec<u32>,
    free: Vec<u32>,
    sequences: BTreeMap<SequenceId, Sequence>,
    started: u64,
}

#[derive(Clone, Debug, Default)]
struct Sequence {
    pages: Vec<u32>,
    length: usize,
}

impl PagePool {
    /// Creates a pool of free pages. Errors: a page_size of 0, more pages than u32 can index, no memory.
    pub fn new(page_size: usize, pages: usize) -> Result<Self> {
        if page_size == 0 {
            return Err(Error::invalid("page_size", "is 0; it must be at least 1"));
        }
        let mut pool = Self { page_size, references: Vec::new(), free: Vec::new(), sequences: BTreeMap::new(), started: 0 };
        pool.grow(pages)?;
        Ok(pool)
    }

    /// Adds `more` free pages, numbered from the last one on. Errors: more pages than u32 can index, no memory.
    pub fn grow(&mut self, more: usize) -> Result<()> {
        let pages = self.pages().saturating_add(more);
        if pages > PageTable::UNUSED as usize {
            return Err(Error::invalid("pages", format!("{pages} cannot be counted in a table of u32")));
        }
        let has_room = self.free.try_reserve(more).and(self.references.try_reserve(more)).is_ok();
        if !has_room {
            return Err(no_memory(8 * more as u64));
        }
        // The lowest page numbers are taken first.
        self.free.splice(0..0, (self.references.len() as u32..pages as u32).rev());
        self.references.resize(pages, 0);
        Ok(())
    }

    /// Number of token slots per page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Total number of pages.
    pub fn pages(&self) -> usize {
        self.references.len()
    }

    /// Number of pages that no sequence has.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Starts an empty sequence.
    pub fn start(&mut self) -> SequenceId {
        self.add(Sequence::default())
    }

    fn add(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.started);
        self.started += 1;
        self.sequences.insert(id, sequence);
        id
    }

    fn sequence(&self, id: SequenceId) -> Result<&Sequence> {
        self.sequences.get(&id).ok_or_else(|| Error::invalid("sequence", format!("{id:?} is not there, or no longer")))
    }

    /// Number of tokens in a sequence.
    pub fn length(&self, id: SequenceId) -> Result<usize> {
        Ok(self.sequence(id)?.length)
    }

    /// Starts a sequence with the first `prefix` tokens of another one, on shared pages.
    pub fn fork(&mut self, id: SequenceId, prefix: usize) -> Result<SequenceId> {
        let Sequence { pages, length } = self.sequence(id)?;
        if prefix > *length {
            return Err(Error::invalid("prefix", format!("is {prefix}, but the sequence has {length} tokens")));
        }
        let pages = pages[..prefix.div_ceil(self.page_size)].to_vec();
        for &page in &pages {
            self.references[page as usize] += 1;
        }
        Ok(self.add(Sequence { pages, length: prefix }))
    }

    /// Removes a sequence. Returns the pages that became free.
    pub fn free(&mut self, id: SequenceId) -> Result<Vec<u32>> {
        self.sequence(id)?;
        let Sequence { pages, .. } = self.sequences.remove(&id).unwrap_or_default();
        Ok(pages.into_iter().filter(|&page| self.release(page)).collect())
    }

    /// Drops one reference to a page. True if the page is free now.
    fn release(&mut self, page: u32) -> bool {
        let references = &mut self.references[page as usize];
        *references -= 1;
        let is_free = *references == 0;
        if is_free {
            self.free.push(page);
        }
        is_free
    }

    /// Removes the tokens of a sequence from `length` on. Returns the pages that became free.
    pub fn truncate(&mut self, id: SequenceId, length: usize) -> Result<Vec<u32>> {
        let Sequence { pages, length: old } = self.sequence(id)?;
        if length > *old {
            return Err(Error::invalid("length", format!("is {length}, but the sequence has {old} tokens")));
        }
        let mut pages = pages.clone();
        let rest = pages.split_off(length.div_ceil(self.page_size));
        self.sequences.insert(id, Sequence { pages, length });
        Ok(rest.into_iter().filter(|&page| self.release(page)).collect())
    }

    /// Pages of a sequence, in token order.
    pub fn pages_of(&self, id: SequenceId) -> Result<&[u32]> {
        Ok(&self.sequence(id)?.pages)
    }

    /// Number of pages that an append would take.
    pub(crate) fn pages_needed(&self, id: SequenceId, tokens: usize) -> Result<usize> {
        let Sequence { pages, length } = self.sequence(id)?;
        let end = length.checked_add(tokens).ok_or_else(|| Error::invalid("tokens", format!("{tokens} more overflow")))?;
        Ok(end.div_ceil(self.page_size) - pages.len() + usize::from(self.shared_last(pages, *length, tokens).is_some()))
    }

    /// Last page of a sequence, if another sequence shares it and the append would write to it.
    fn shared_last(&self, pages: &[u32], length: usize, tokens: usize) -> Option<u32> {
        pages.last().copied().filter(|&last| tokens > 0 && !length.is_multiple_of(self.page_size) && self.references[last as usize] > 1)
    }

    /// Reserves room for `tokens` more tokens. Fails with [`Error::Limit`] unless there are pages for all of them.
    pub fn append(&mut self, id: SequenceId, tokens: usize) -> Result<Append> {
        let start = self.length(id)?;
        let copy = self.take(id, tokens)?;
        Ok(Append { copy, slots: slots(self.pages_of(id)?, self.page_size, start..start + tokens) })
    }

    /// [`Self::append`] that returns only the copy to make first. Allocates nothing if no page is needed.
    pub(crate) fn take(&mut self, id: SequenceId, tokens: usize) -> Result<Option<(Slots, u32)>> {
        let needed = self.pages_needed(id, tokens)?;
        if needed > self.free.len() {
            return Err(Error::Limit {
                limit: "pages of the pool",
                needed: needed as u64,
                available: self.free.len() as u64,
                remedy: "free a sequence, or let the pool grow".into(),
            });
        }
        let Sequence { pages, length } = self.sequence(id)?;
        let (filled, shared) = (length % self.page_size, self.shared_last(pages, *length, tokens));
        if let Some(last) = shared {
            self.release(last); // another sequence has it, so it does not become free
        }
        let Some(Sequence { pages, length }) = self.sequences.get_mut(&id) else { return Ok(None) }; // it was found above
        *length += tokens;
        let old = pages.len() - usize::from(shared.is_some());
        pages.truncate(old);
        let from = self.free.len() - needed;
        pages.extend(self.free.drain(from..).rev());
        for &page in &pages[old..] {
            self.references[page as usize] = 1;
        }
        Ok(shared.map(|page| (Slots { page, first: 0, count: filled }, pages[old])))
    }

    /// Page table of a batch of sequences.
    pub fn table(&self, batch: &[SequenceId]) -> Result<PageTable> {
        let items = batch.iter().map(|&id| self.sequence(id).map(|sequence| (&sequence.pages[..], sequence.length)));
        PageTable::new(self.page_size, items.collect::<Result<Vec<_>>>()?)
    }
}

fn no_memory(needed: u64) -> Error {
    Error::Limit { limit: "memory", needed, available: 0, remedy: "ask for fewer pages".into() }
}

/// Token slots of the range `tokens` in a sequence with these pages.
pub(crate) fn slots(pages: &[u32], page_size: usize, tokens: std::ops::Range<usize>) -> Vec<Slots> {
    let mut found = Vec::new();
    let mut at = tokens.start;
    while at < tokens.end {
        let first = at % page_size;
        let count = (page_size - first).min(tokens.end - at);
        found.push(Slots { page: pages[at / page_size], first, count });
        at += count;
    }
    found
}

/// Sizes and storage of a key/value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of token slots per page.
    pub page_size: usize,
    /// Number of key/value heads.
    pub num_kv_heads: usize,
    /// Width of a key.
    pub head_dim: usize,
    /// Width of a value.
    pub head_dim_v: usize,
    /// Storage type of keys and values.
    pub dtype: DType,
    /// Layout of a page: [`Layout::Bhsd`] is [num_kv_heads, page_size, dim], [`Layout::Bshd`] is
    /// [page_size, num_kv_heads, dim]. Bhsd reads faster (2x on Mesa's lavapipe, f32): a head's keys are contiguous.
    pub layout: Layout,
}

impl CacheShape {
    /// Refuses widths of 0, strided layouts, and quantised rows that are not whole blocks.
    pub(crate) fn check(&self) -> Result<()> {
        let widths = [("num_kv_heads", self.num_kv_heads), ("head_dim", self.head_dim), ("head_dim_v", self.head_dim_v)];
        if let Some((argument, _)) = widths.into_iter().find(|&(_, size)| size == 0) {
            return Err(Error::invalid(argument, "is 0; it must be at least 1"));
        }
        if matches!(self.layout, Layout::Strided(_)) {
            return Err(Error::invalid("layout", "a cache of its own is contiguous: Bshd or Bhsd"));
        }
        let spec = TensorSpec::new(self.dtype, self.layout);
        spec.check_blocks("head_dim", [1, 1, 1, self.head_dim])?;
        spec.check_blocks("head_dim_v", [1, 1, 1, self.head_dim_v])?;
        Ok(())
    }

    /// Bytes of the keys and values of one token.
    pub const fn token_bytes(&self) -> usize {
        self.num_kv_heads.saturating_mul(self.dtype.bytes(self.head_dim).saturating_add(self.dtype.bytes(self.head_dim_v)))
    }

    /// Bytes of one page.
    pub const fn page_bytes(&self) -> usize {
        self.page_size.saturating_mul(self.token_bytes())
    }
}

/// Keys and values of sequences in host memory, in the pages of a pool.
#[derive(Clone, Debug)]
pub struct KvCache {
    shape: CacheShape,
    pool: PagePool,
    key: HostVec,
    value: HostVec,
}

impl KvCache {
    /// Creates an empty cache of `pages` pages. Errors: a size of 0, a strided layout, partial blocks, no memory.
    pub fn new(shape: CacheShape, pages: usize) -> Result<Self> {
        shape.check()?;
        let mut cache = Self {
            shape,
            pool: PagePool::new(shape.page_size, 0)?,
            key: HostVec::zeros(shape.dtype, 0),
            value: HostVec::zeros(shape.dtype, 0),
        };
        cache.grow(pages)?;
        Ok(cache)
    }

    /// Adds free pages; stored data keeps its place.
    pub fn grow(&mut self, more: usize) -> Result<()> {
        let pages = self.pool.pages().saturating_add(more);
        let len = |dim: usize| self.spec().required_len(self.pool_shape(pages, dim)).filter(|&len| len <= isize::MAX as usize / 4);
        let (Some(key), Some(value)) = (len(self.shape.head_dim), len(self.shape.head_dim_v)) else {
            return Err(Error::invalid("pages", format!("{pages} pages of {:?} overflow", self.shape)));
        };
        if !(self.key.reserve(key) && self.value.reserve(value)) {
            return Err(no_memory(pages as u64 * self.shape.page_bytes() as u64));
        }
        self.pool.grow(more)?;
        self.key.resize(key);
        self.value.resize(value);
        Ok(())
    }

    /// Page bookkeeping.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Page bookkeeping, to start, fork and free sequences. [`Self::append`] adds tokens, [`Self::grow`] pages.
    pub fn pool_mut(&mut self) -> &mut PagePool {
        &mut self.pool
    }

    /// All keys, for [`crate::Inputs::key`].
    pub fn key(&self) -> HostSlice<'_> {
        self.key.as_slice()
    }

    /// All values, for [`crate::Inputs::value`].
    pub fn value(&self) -> HostSlice<'_> {
        self.value.as_slice()
    }

    /// Keys and values, to write in place.
    pub fn data_mut(&mut self) -> (&mut HostVec, &mut HostVec) {
        (&mut self.key, &mut self.value)
    }

    fn spec(&self) -> TensorSpec {
        TensorSpec::new(self.shape.dtype, self.shape.layout)
    }

    fn pool_shape(&self, pages: usize, dim: usize) -> [usize; 4] {
        [pages, self.shape.num_kv_heads, self.shape.page_size, dim]
    }

    /// Appends tokens to a sequence: key [tokens, num_kv_heads, head_dim], value [tokens, num_kv_heads, head_dim_v],
    /// rounded to the cache's storage type. On error nothing is appended.
    pub fn append(&mut self, id: SequenceId, key: HostSlice<'_>, value: HostSlice<'_>) -> Result<()> {
        let row = |dim: usize| self.shape.num_kv_heads * dim;
        let tokens = key.len() / row(self.shape.head_dim);
        for (argument, slice, dim) in [("key", key, self.shape.head_dim), ("value", value, self.shape.head_dim_v)] {
            if slice.len() != tokens * row(dim) {
                let why = format!("has {} numbers, not [{tokens}, {}, {dim}]", slice.len(), self.shape.num_kv_heads);
                return Err(Error::invalid(argument, why));
            }
        }
        let append = self.pool.append(id, tokens)?;
        let shape = |dim| self.pool_shape(self.pool.pages(), dim);
        let (spec, shapes) = (self.spec(), [shape(self.shape.head_dim), shape(self.shape.head_dim_v)]);
        for ((to, from), shape) in [(&mut self.key, key), (&mut self.value, value)].into_iter().zip(shapes) {
            let strides = spec.strides(shape);
            if let Some((slots, page)) = append.copy {
                copy_slots(to, &strides, shape, slots, page);
            }
            write_slots(to, &strides, shape, &append.slots, from);
        }
        Ok(())
    }

    /// Problem of `seq_len_q` f32 queries per item, [batch, num_heads, seq_len_q, head_dim], over the sequences of
    /// `table`, every key visible. The inputs also take [`PageTable::entries`] and [`PageTable::kv_lengths`].
    pub fn problem(&self, table: &PageTable, num_heads: usize, seq_len_q: usize) -> Problem {
        let CacheShape { num_kv_heads, head_dim, head_dim_v, .. } = self.shape;
        let (batch, seq_len_kv) = (table.kv_lengths.len(), table.longest());
        let mut problem = Problem::new(Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v });
        (problem.key, problem.value) = (self.spec(), self.spec());
        problem.paged = Some(table.paged(self.pool.pages()));
        problem.visibility.kv_lengths = true;
        problem
    }
}

/// Writes `from` [tokens, heads, dim] to token slots of a pool [pages, heads, page_size, dim] whose dim is contiguous.
pub(crate) fn write_slots(to: &mut HostVec, strides: &Strides, shape: [usize; 4], slots: &[Slots], from: HostSlice<'_>) {
    let [_, heads, _, dim] = shape;
    let mut row = 0;
    for slots in slots {
        for slot in slots.first..slots.first + slots.count {
            for head in 0..heads {
                let at = slots.page as usize * strides.batch + head * strides.head + slot * strides.seq;
                to.write(at, from.part(row * dim..(row + 1) * dim));
                row += 1;
            }
        }
    }
}

/// Copies token slots to the same slots of another page.
fn copy_slots(data: &mut HostVec, strides: &Strides, shape: [usize; 4], slots: Slots, page: u32) {
    let [_, heads, _, dim] = shape;
    for slot in slots.first..slots.first + slots.count {
        for head in 0..heads {
            let at = |page: u32| page as usize * strides.batch + head * strides.head + slot * strides.seq;
            data.copy_within(at(slots.page)..at(slots.page) + dim, at(page));
        }
    }
}
