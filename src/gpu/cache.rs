//! Keys and values that stay on a device, of sequences that grow there.

use std::ops::Range;

use super::cache_steps;
use super::rotary::DeviceRotary;
use super::{Attention, Bound, Gpu};
use crate::cache::{CacheShape, PagePool, SequenceId};
use crate::plan::{Plan, check_bytes};
use crate::problem::Operand;
use crate::shader::{CacheKey, CacheParams, CacheSlot};
use crate::{Algorithm, Dims, Error, Paged, Problem, Result, TensorSpec};

/// How large a [`DeviceCache`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Pools of keys and values; one page table serves all.
    pub layers: usize,
    /// Sequences at a time.
    pub slots: usize,
    /// Pages that a sequence can have: with [`CacheShape::page_size`] the longest sequence.
    pub pages_per_slot: usize,
    /// Pages of each layer's pool, which the sequences share.
    pub pages: usize,
}

/// Keys and values in device buffers, for all layers of a model, with lengths and page table on the device too.
///
/// A contiguous cache is one whose page is as long as the longest sequence: `page_size` that, one page a slot.
///
/// A step of decoding is
/// 1. [`Self::extend`], which takes pages where the next tokens need some: bookkeeping on the host, a few words written;
/// 2. one pass: [`Self::advance`], then for each layer what [`Self::append`] and [`Attention::bind`] gave. None of it has anything to
///    do with how long the sequences are, so it is bound once and recorded again for every step: the kernels read the lengths.
///
/// `extend` can take pages for many steps at once; then the second part runs that often without the host.
///
/// The host's words (slots begun, freed, extended) are written in front of the next submit: submit what is recorded before changing
/// the cache.
pub struct DeviceCache {
    gpu: Gpu,
    shape: CacheShape,
    size: CacheSize,
    pool: PagePool,
    slots: Vec<Option<SequenceId>>,
    /// What a step adds to each slot, as the device has it.
    added: Vec<u32>,
    /// Keys and values of each layer.
    layers: Vec<[wgpu::Buffer; 2]>,
    state: wgpu::Buffer,
    advance: Bound,
}

/// The words of the state: shaders/cache/params.wgsl.
#[derive(Clone, Copy)]
enum State {
    Length = 0,
    Added = 1,
    Reserved = 2,
}

/// New tokens, as a layer's projections leave them: [batch, num_kv_heads, seq_len, dim] in any layout whose heads are contiguous.
#[derive(Clone, Debug)]
pub struct NewTokens<'a> {
    /// New keys.
    pub key: wgpu::BufferBinding<'a>,
    /// How they lie; storage f32, f16 or bf16, the same for both.
    pub key_spec: TensorSpec,
    /// New values.
    pub value: wgpu::BufferBinding<'a>,
    /// How they lie.
    pub value_spec: TensorSpec,
    /// Rotates the keys on the way, by their positions.
    pub rotary: Option<&'a DeviceRotary>,
    /// With `rotary`: queries [batch, num_heads, seq_len, head_dim], rotated in place by the same dispatch.
    pub query: Option<(wgpu::BufferBinding<'a>, TensorSpec, usize)>,
}

impl DeviceCache {
    /// An empty cache.
    ///
    /// Errors: a size of 0, a strided layout, rows that are no whole words (an odd head_dim in 16 bits, no whole blocks), a pool that
    /// does not fit one buffer or binding.
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
        let words = size.slots.checked_mul(size.pages_per_slot).and_then(|words| words.checked_add(4 * size.slots));
        let state_bytes = words.map_or(u64::MAX, |words| 4 * words as u64);
        check_bytes("page table", state_bytes, gpu.caps())?;
        let pool = PagePool::new(shape.page_size, size.pages)?;
        let layers = (0..size.layers).map(|_| pools(gpu, &shape, size.pages)).collect::<Result<_>>()?;
        let state = cache_steps::buffer(gpu, "cache state", state_bytes)?;
        let params = CacheParams { slots: size.slots as u32, ..CacheParams::default() };
        let advance = CacheKey::Advance;
        let advance = cache_steps::bound(gpu, advance, params, size.slots, &[(CacheSlot::State, state.as_entire_buffer_binding())])?;
        let (slots, added) = (vec![None; size.slots], vec![0; size.slots]);
        Ok(Self { gpu: gpu.clone(), shape, size, pool, slots, added, layers, state, advance })
    }

    /// How it is stored.
    pub fn shape(&self) -> &CacheShape {
        &self.shape
    }

    /// How large it is.
    pub fn size(&self) -> &CacheSize {
        &self.size
    }

    /// Who has which page.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Bytes of all pools.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().flatten().map(wgpu::Buffer::size).sum()
    }

    /// Bytes of the pages that some sequence has, in all layers.
    pub fn used_bytes(&self) -> u64 {
        ((self.pool.pages() - self.pool.free_pages()) * self.shape.page_bytes() * self.size.layers) as u64
    }

    /// A layer's keys and values: what [`super::Bindings::key`] and [`super::Bindings::value`] take. `None` past the last layer.
    pub fn layer(&self, layer: usize) -> Option<[&wgpu::Buffer; 2]> {
        self.layers.get(layer).map(|[key, value]| [key, value])
    }

    /// How many keys each slot has, u32 `[slots]` from the start of this buffer on, for kernels of the app's own.
    pub fn lengths(&self) -> &wgpu::Buffer {
        &self.state
    }

    /// An empty sequence in a slot that was free.
    pub fn start(&mut self) -> Result<usize> {
        let slot = self.free_slot()?;
        let id = self.pool.start();
        self.put(slot, id);
        Ok(slot)
    }

    /// A sequence, in a slot that was free, that begins with the first `prefix` tokens of another one, on the same pages.
    pub fn fork(&mut self, slot: usize, prefix: usize) -> Result<usize> {
        let id = self.sequence(slot)?;
        let to = self.free_slot()?;
        let fork = self.pool.fork(id, prefix)?;
        self.put(to, fork);
        Ok(to)
    }

    /// Forgets a slot's sequence. Gives the pages that nobody has any more.
    pub fn free(&mut self, slot: usize) -> Result<Vec<u32>> {
        let freed = self.pool.free(self.sequence(slot)?)?;
        self.slots[slot] = None;
        self.add(slot, 0);
        self.write_state(State::Length, slot, 0);
        self.write_state(State::Reserved, slot, 0);
        Ok(freed)
    }

    /// Forgets a slot's tokens from `length` on, as when guessed ones were wrong. Gives the pages that nobody has any more.
    pub fn truncate(&mut self, slot: usize, length: usize) -> Result<Vec<u32>> {
        let id = self.sequence(slot)?;
        let freed = self.pool.truncate(id, length)?;
        self.put(slot, id);
        Ok(freed)
    }

    /// Tokens of a slot, once all that [`Self::extend`] was told of has run.
    pub fn length(&self, slot: usize) -> Result<usize> {
        self.pool.length(self.sequence(slot)?)
    }

    /// The pages of a slot's sequence, in the order of its tokens.
    pub fn pages(&self, slot: usize) -> Result<&[u32]> {
        self.pool.pages_of(self.sequence(slot)?)
    }

    /// Makes room for `steps` steps that each append `tokens[slot]` tokens to a slot, and records what must be done before: copies of
    /// pages that are shared and about to be written. Counts on all of the steps being run; [`Self::truncate`] takes back.
    ///
    /// Where that needs nothing new on the device, nothing is written or recorded.
    ///
    /// Errors: a slot that is empty or would get longer than its pages, pages that run out; then everything is as it was.
    pub fn extend(&mut self, tokens: &[usize], steps: usize, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        if tokens.len() != self.size.slots {
            return Err(Error::invalid("tokens", format!("has {} numbers for {} slots", tokens.len(), self.size.slots)));
        }
        let capacity = self.size.pages_per_slot.saturating_mul(self.shape.page_size);
        let mut growing = Vec::with_capacity(tokens.len());
        let mut needed = 0;
        for (slot, &count) in tokens.iter().enumerate().filter(|&(_, &count)| count > 0) {
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
            growing.push((slot, id, more));
        }
        // Two that share their last page are counted as if both needed a copy: where that is what is missing, try.
        if needed > self.pool.free_pages() {
            let mut trial = self.pool.clone();
            for &(_, id, more) in &growing {
                trial.append(id, more)?;
            }
        }
        let mut copies = Vec::new();
        for &(slot, id, more) in &growing {
            let known = self.pool.length(id)?.div_ceil(self.shape.page_size);
            let append = self.pool.append(id, more)?;
            let first_new = known - usize::from(append.copy.is_some());
            copies.extend(append.copy.map(|(from, to)| [from.page, to]));
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

    /// Adds free pages: larger pools, into which the encoder copies what is stored. What was bound to the old ones must be bound again.
    pub fn grow(&mut self, more: usize, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let pages = self.pool.pages().saturating_add(more);
        let layers = (0..self.size.layers).map(|_| pools(&self.gpu, &self.shape, pages)).collect::<Result<Vec<_>>>()?;
        self.pool.grow(more)?;
        self.size.pages = pages;
        for (old, new) in self.layers.iter().flatten().zip(layers.iter().flatten()) {
            encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size());
        }
        self.layers = layers;
        Ok(())
    }

    /// The dispatch that a step begins with: every slot gets as many keys more as [`Self::extend`] was told last.
    pub fn advance(&self) -> &Bound {
        &self.advance
    }

    /// The dispatch that writes a step's new tokens of the `slots` into a layer: the last of the `seq_len` tokens of each item, as many
    /// as its slot got. The last stands at the sequence's last position, as [`crate::Alignment::BottomRight`] has it.
    pub fn append(&self, layer: usize, slots: Range<usize>, seq_len: usize, new: &NewTokens<'_>) -> Result<Bound> {
        let Some([key, value]) = self.layer(layer) else {
            return Err(Error::invalid("layer", format!("is {layer}, but the cache has {}", self.size.layers)));
        };
        self.check_slots(&slots)?;
        let d = Dims { seq_len_q: seq_len, ..self.problem(slots.len(), self.shape.num_kv_heads, seq_len).dims };
        let dtype = new.key_spec.dtype;
        if new.value_spec.dtype != dtype || dtype.is_blocks() {
            let why = format!("new keys are {dtype}, new values {}: both must be the same, of f32, f16, bf16", new.value_spec.dtype);
            return Err(Error::invalid("value_spec", why));
        }
        let rows = |heads: usize, dim: usize| [d.batch, heads, seq_len, dim];
        let key_strides = cache_steps::strides(&self.gpu, "key", &new.key, &new.key_spec, rows(d.num_kv_heads, d.head_dim))?;
        let value_strides = cache_steps::strides(&self.gpu, "value", &new.value, &new.value_spec, rows(d.num_kv_heads, d.head_dim_v))?;
        let pool = |dim: usize| {
            let strides = self.spec().strides([self.size.pages, d.num_kv_heads, self.shape.page_size, dim]);
            [strides.batch as u32, strides.head as u32, strides.seq as u32, 0]
        };
        let mut params = CacheParams {
            key_strides,
            value_strides,
            key_pool_strides: pool(d.head_dim),
            value_pool_strides: pool(d.head_dim_v),
            batch: d.batch as u32,
            seq_len: seq_len as u32,
            num_kv_heads: d.num_kv_heads as u32,
            head_dim: d.head_dim as u32,
            head_dim_v: d.head_dim_v as u32,
            slots: self.size.slots as u32,
            first_slot: slots.start as u32,
            page_size: self.shape.page_size as u32,
            pages_per_slot: self.size.pages_per_slot as u32,
            ..CacheParams::default()
        };
        let unit = CacheKey::unit(self.shape.dtype);
        let mut threads = d.batch * seq_len * d.num_kv_heads * (d.head_dim / unit + d.head_dim_v / unit);
        let mut bindings = vec![
            (CacheSlot::State, self.state.as_entire_buffer_binding()),
            (CacheSlot::NewKey, new.key.clone()),
            (CacheSlot::NewValue, new.value.clone()),
            (CacheSlot::Key, key.as_entire_buffer_binding()),
            (CacheSlot::Value, value.as_entire_buffer_binding()),
        ];
        if let Some(rotary) = new.rotary {
            rotary.check(d.head_dim, self.size.pages_per_slot * self.shape.page_size)?;
            params.pairs = rotary.pairs() as u32;
            bindings.push((CacheSlot::Angles, rotary.angles().as_entire_buffer_binding()));
        }
        let query = match (&new.query, new.rotary) {
            (None, _) => None,
            (Some(_), None) => return Err(Error::invalid("query", "is bound, but there is no rotary to turn it")),
            (Some((query, spec, num_heads)), Some(rotary)) => {
                let shape = rows(*num_heads, d.head_dim);
                params.query_strides = cache_steps::strides(&self.gpu, "query", query, spec, shape)?;
                params.num_heads = *num_heads as u32;
                threads += d.batch * seq_len * num_heads * rotary.query_units(spec, shape)?;
                bindings.push((CacheSlot::Query, query.clone()));
                Some(spec.dtype)
            }
        };
        let rotary = new.rotary.map(DeviceRotary::pairing);
        cache_steps::bound(&self.gpu, CacheKey::Append { new: dtype, cache: self.shape.dtype, rotary, query }, params, threads, &bindings)
    }

    /// Attention of `seq_len_q` queries an item, f32 [batch, num_heads, seq_len_q, head_dim], to as many slots: every key visible, as
    /// [`Problem::new`] has it. To be changed as wanted, but for where the keys are, and made ready by [`Self::attention`].
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

    /// [`Self::problem`], made ready: item 0 is the sequence in `first_slot`. Bind it once for each layer.
    ///
    /// The tables buffer, if there is one, has no lengths and no page table: it is that of the problem without them.
    pub fn attention(&self, problem: &Problem, first_slot: usize, algorithm: Algorithm) -> Result<Attention> {
        let d = &problem.dims;
        self.check_slots(&(first_slot..first_slot.saturating_add(d.batch)))?;
        let own = self.problem(d.batch, d.num_heads, d.seq_len_q);
        let of = |p: &Problem| (p.dims, p.paged, p.visibility.kv_lengths, [Operand::Key, Operand::Value].map(|operand| *p.spec(operand)));
        if of(&own) != of(problem) {
            return Err(Error::invalid("problem", "its keys and values are not this cache's: begin with DeviceCache::problem"));
        }
        let state = [first_slot, 4 * self.size.slots + first_slot * self.size.pages_per_slot].map(|word| word as u32);
        let plan = Plan::on_cache(problem, self.gpu.caps(), algorithm, state)?;
        Attention::of_plan(&self.gpu, problem, plan, Some(self.state.clone()))
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

    /// Tells the device of a slot's sequence.
    fn put(&mut self, slot: usize, id: SequenceId) {
        self.slots[slot] = Some(id);
        self.add(slot, 0);
        self.write_state(State::Length, slot, self.pool.length(id).unwrap_or(0) as u32);
        // It fails for a sequence that is not there, and this one is.
        let _ = self.write_pages(slot, 0);
    }

    fn add(&mut self, slot: usize, count: u32) {
        if self.added[slot] != count {
            self.added[slot] = count;
            self.write_state(State::Added, slot, count);
        }
    }

    /// Writes a slot's pages from `first` on, and how many keys it has pages for, where that is news.
    fn write_pages(&self, slot: usize, first: usize) -> Result<()> {
        let pages = self.pool.pages_of(self.sequence(slot)?)?;
        if first > 0 && first == pages.len() {
            return Ok(());
        }
        let at = 4 * self.size.slots + slot * self.size.pages_per_slot + first;
        self.gpu.queue().write_buffer(&self.state, 4 * at as u64, bytemuck::cast_slice(&pages[first..]));
        self.write_state(State::Reserved, slot, (pages.len() * self.shape.page_size) as u32);
        Ok(())
    }

    fn write_state(&self, word: State, slot: usize, value: u32) {
        let at = word as usize * self.size.slots + slot;
        self.gpu.queue().write_buffer(&self.state, 4 * at as u64, &value.to_le_bytes());
    }

    /// Copies pages, in all pools. Rare, and so nothing is kept for it.
    fn record_copies(&self, copies: &[[u32; 2]], encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        let pairs = cache_steps::buffer_of(&self.gpu, "page copies", wgpu::BufferUsages::STORAGE, bytemuck::cast_slice(copies))?;
        for layer in &self.layers {
            for (pool, dim) in layer.iter().zip([self.shape.head_dim, self.shape.head_dim_v]) {
                let page_words = self.shape.dtype.bytes(dim) / 4 * self.shape.num_kv_heads * self.shape.page_size;
                let params = CacheParams { copies: copies.len() as u32, page_words: page_words as u32, ..CacheParams::default() };
                let bindings = [(CacheSlot::State, pairs.as_entire_buffer_binding()), (CacheSlot::Key, pool.as_entire_buffer_binding())];
                cache_steps::bound(&self.gpu, CacheKey::CopyPages, params, copies.len() * page_words, &bindings)?.record(encoder);
            }
        }
        Ok(())
    }
}

/// The pools of one layer.
fn pools(gpu: &Gpu, shape: &CacheShape, pages: usize) -> Result<[wgpu::Buffer; 2]> {
    let pool = |label, dim: usize| {
        let page = shape.page_size.checked_mul(shape.num_kv_heads).and_then(|rows| rows.checked_mul(shape.dtype.bytes(dim)));
        let bytes = page.and_then(|page| page.checked_mul(pages)).map_or(u64::MAX, |bytes| bytes as u64);
        check_bytes(label, bytes, gpu.caps())?;
        cache_steps::buffer(gpu, label, bytes)
    };
    Ok([pool("key", shape.head_dim)?, pool("value", shape.head_dim_v)?])
}
