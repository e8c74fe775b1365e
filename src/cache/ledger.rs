//! Bookkeeping of a cache on a device: sequences in slots, and the words of the state that tell the device about them.

use super::pool::{PagePool, SequenceId};
use super::shape::{CacheShape, CacheSize};
use crate::error::{Error, Result};

/// Tokens for which [`Ledger::extend`] makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth<'a> {
    /// Number of tokens that each step appends to each slot, `[slots]`.
    pub tokens: &'a [usize],
    /// Number of steps.
    pub steps: usize,
}

/// Words to write to a cache's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// First word, of four bytes, in the state.
    pub offset: usize,
    /// Contents.
    pub words: Vec<u32>,
}

/// Bookkeeping of a cache on a device, as plain data: which sequence is in which slot, on which pages.
///
/// The owner of the device writes what [`Self::take_writes`] returns before it submits the next step. Writes must come
/// after the steps that were submitted before. A call that fails changes nothing. [`super::CachePlan::ledger`] creates it.
#[derive(Clone, Debug)]
pub struct Ledger {
    size: CacheSize,
    pool: PagePool,
    slots: Vec<Option<SequenceId>>,
    /// Number of tokens that a step adds to each slot, as written to the device.
    added: Vec<u32>,
    writes: Vec<StateWrite>,
}

/// Words of a cache's state for each slot. See shaders/cache/params.wgsl.
#[derive(Clone, Copy)]
enum State {
    Length = 0,
    Added = 1,
    Reserved = 2,
}

impl Ledger {
    /// Creates the bookkeeping of an empty cache, whose state is all zeros.
    pub(super) fn new(shape: &CacheShape, size: CacheSize) -> Result<Self> {
        let pool = PagePool::new(shape.page_size, shape.pages)?;
        Ok(Self { size, pool, slots: vec![None; size.slots], added: vec![0; size.slots], writes: Vec::new() })
    }

    /// Page bookkeeping.
    pub fn pool(&self) -> &PagePool {
        &self.pool
    }

    /// Returns what must be written to the state since the last call, in this order.
    pub fn take_writes(&mut self) -> Vec<StateWrite> {
        std::mem::take(&mut self.writes)
    }

    /// Starts an empty sequence. Returns its slot. Errors: no free slot.
    pub fn start(&mut self) -> Result<usize> {
        let slot = self.free_slot()?;
        let id = self.pool.start();
        self.put(slot, id);
        Ok(slot)
    }

    /// Starts a sequence with the first `prefix` tokens of another one, on shared pages. Returns its slot.
    pub fn fork(&mut self, slot: usize, prefix: usize) -> Result<usize> {
        let id = self.sequence(slot)?;
        let to = self.free_slot()?;
        let fork = self.pool.fork(id, prefix)?;
        self.put(to, fork);
        Ok(to)
    }

    /// Removes the sequence of a slot. Returns the pages that became free.
    pub fn free(&mut self, slot: usize) -> Result<Vec<u32>> {
        let freed = self.pool.free(self.sequence(slot)?)?;
        self.slots[slot] = None;
        self.add(slot, 0);
        self.write_state(State::Length, slot, 0);
        self.write_state(State::Reserved, slot, 0);
        Ok(freed)
    }

    /// Removes the tokens of a slot from `length` on, as after wrong speculation. Returns the pages that became free.
    pub fn truncate(&mut self, slot: usize, length: usize) -> Result<Vec<u32>> {
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

    /// Makes room for new tokens. Returns the pages to copy before the next step, (from, to), in the pools of every layer:
    /// shared ones that are about to be written. No page is a destination twice, and no destination is a source.
    ///
    /// It counts on all steps being run; [`Self::truncate`] takes tokens back. If the device needs nothing new, nothing
    /// is returned or written.
    ///
    /// Errors: an empty slot, a sequence longer than its pages, too few free pages.
    pub fn extend(&mut self, Growth { tokens, steps }: Growth<'_>) -> Result<Vec<[u32; 2]>> {
        if tokens.len() != self.size.slots {
            return Err(Error::invalid("tokens", format!("has {} numbers for {} slots", tokens.len(), self.size.slots)));
        }
        let page_size = self.pool.page_size();
        let capacity = self.size.capacity(page_size);
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
            let known = self.pool.length(id)?.div_ceil(page_size);
            let copy = self.pool.take(id, more)?;
            let first_new = known - usize::from(copy.is_some());
            copies.extend(copy.map(|(from, to)| [from.page, to]));
            self.write_pages(slot, first_new)?;
        }
        for (slot, &count) in tokens.iter().enumerate() {
            self.add(slot, count as u32);
        }
        Ok(copies)
    }

    /// Adds free pages, numbered from the last one on.
    pub fn grow(&mut self, more: usize) -> Result<()> {
        self.pool.grow(more)
    }

    fn sequence(&self, slot: usize) -> Result<SequenceId> {
        self.slots.get(slot).copied().flatten().ok_or_else(|| Error::invalid("slot", format!("there is no sequence in slot {slot}")))
    }

    fn free_slot(&self) -> Result<usize> {
        let (slots, remedy) = (self.size.slots, "free a sequence, or make the cache with more slots");
        self.slots.iter().position(Option::is_none).ok_or_else(|| Error::limit("slots of the cache", slots + 1, slots, remedy))
    }

    /// Writes the state of a slot's sequence.
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
    fn write_pages(&mut self, slot: usize, first: usize) -> Result<()> {
        let pages = self.pool.pages_of(self.sequence(slot)?)?;
        if first > 0 && first == pages.len() {
            return Ok(());
        }
        let (words, reserved) = (pages[first..].to_vec(), pages.len() * self.pool.page_size());
        if !words.is_empty() {
            self.writes.push(StateWrite { offset: self.size.page_table(slot) + first, words });
        }
        self.write_state(State::Reserved, slot, reserved as u32);
        Ok(())
    }

    fn write_state(&mut self, word: State, slot: usize, value: u32) {
        self.writes.push(StateWrite { offset: word as usize * self.size.slots + slot, words: vec![value] });
    }
}
