//! Bookkeeping of a cache on a device: sequences in slots, and the words of the state that tell the device about them.

use super::keep::KeptRows;
use super::pool::{Change, PagePool, SequenceId, copies};
use super::shape::{CacheShape, CacheSize};
use crate::error::{Error, Result};
use crate::problem::PageTable;

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
        let pool = PagePool::keeping(shape.page_size, shape.pages, shape.retention())?;
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
    ///
    /// Errors: no free slot, and those of [`PagePool::fork`].
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
    ///
    /// Errors: those of [`PagePool::truncate`].
    pub fn truncate(&mut self, slot: usize, length: usize) -> Result<Vec<u32>> {
        let id = self.sequence(slot)?;
        let freed = self.pool.truncate(id, length)?;
        self.put(slot, id);
        Ok(freed)
    }

    /// Keeps some of the last tokens of some slots: [`PagePool::keep`], one slot after the other. Returns the copies to make in
    /// the pools of every layer, in this order, before anything else is written there ([`super::Compaction::moves`]).
    ///
    /// Errors: those of [`PagePool::keep`], for any slot.
    pub fn keep(&mut self, kept: &[KeptRows<'_>]) -> Result<Vec<[usize; 2]>> {
        let ids = kept.iter().map(|kept| self.sequence(kept.slot)).collect::<Result<Vec<_>>>()?;
        let before = (kept.len() > 1).then(|| self.pool.clone());
        let compact = |(&id, kept): (&SequenceId, &KeptRows<'_>)| self.pool.keep(id, kept.last, kept.rows);
        let compactions = ids.iter().zip(kept).map(compact).collect::<Result<Vec<_>>>();
        if let (Err(_), Some(before)) = (&compactions, before) {
            self.pool = before;
        }
        let moves = compactions?.into_iter().flat_map(|compaction| compaction.moves).collect();
        kept.iter().zip(ids).for_each(|(kept, id)| self.put(kept.slot, id));
        Ok(moves)
    }

    /// Number of tokens in a slot, once all steps that [`Self::extend`] was told of have run.
    pub fn length(&self, slot: usize) -> Result<usize> {
        self.pool.length(self.sequence(slot)?)
    }

    /// Pages of a slot's sequence, in token order; [`PageTable::UNUSED`] where one was given back.
    pub fn pages(&self, slot: usize) -> Result<&[u32]> {
        self.pool.pages_of(self.sequence(slot)?)
    }

    /// Makes room for new tokens. Returns the pages to copy before the next step, (from, to), in the pools of every layer:
    /// shared ones that are about to be written. No page is a destination twice, and no destination is a source.
    ///
    /// With a window, it first gives back the pages that no step sees any more; those that a step is the last to see hold
    /// tokens of later steps. [`PagePool`] says which pages stay.
    ///
    /// It counts on all steps being run; [`Self::truncate`] takes tokens back. If the device needs nothing new, nothing
    /// is returned or written.
    ///
    /// Errors: an empty slot, a sequence longer than its pages, too few free pages.
    pub fn extend(&mut self, Growth { tokens, steps }: Growth<'_>) -> Result<Vec<[u32; 2]>> {
        if tokens.len() != self.size.slots {
            return Err(Error::invalid("tokens", format!("has {} numbers for {} slots", tokens.len(), self.size.slots)));
        }
        let capacity = self.size.capacity(self.pool.page_size());
        let mut growing = Vec::new();
        for (slot, &count) in tokens.iter().enumerate().filter(|&(_, &count)| count > 0) {
            let id = self.sequence(slot)?;
            let end = self.pool.length(id)?.saturating_add(count.saturating_mul(steps));
            if end > capacity || u32::try_from(count).is_err() {
                return Err(Error::limit("tokens of a slot", end, capacity, "make the cache with more pages_per_slot"));
            }
            growing.push((id, count));
        }
        let changes = self.pool.take(&growing, steps)?;
        for slot in (0..if changes.is_empty() { 0 } else { self.size.slots }).filter(|&slot| tokens[slot] > 0) {
            self.write_taken(slot, &changes)?;
        }
        for (slot, &count) in tokens.iter().enumerate() {
            self.add(slot, count as u32);
        }
        Ok(copies(&changes).map(|(from, to)| [from.page, to]).collect())
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
        let _ = self.write_pages(slot);
    }

    fn add(&mut self, slot: usize, count: u32) {
        if self.added[slot] != count {
            self.added[slot] = count;
            self.write_state(State::Added, slot, count);
        }
    }

    /// Writes the pages of a slot. A page that was given back is page 0 to the device: nothing of it is visible.
    fn write_pages(&mut self, slot: usize) -> Result<()> {
        let pages = self.pool.pages_of(self.sequence(slot)?)?;
        let words: Vec<u32> = pages.iter().map(|&page| if page == PageTable::UNUSED { 0 } else { page }).collect();
        self.write_entries(slot, 0, words);
        Ok(())
    }

    /// Writes the pages that a slot took. Those that it has given back since are written too, because earlier steps use
    /// them; so the entries of pages given back stay as they are.
    fn write_taken(&mut self, slot: usize, changes: &[Change]) -> Result<()> {
        let of = self.sequence(slot)?;
        let mut taken = changes.iter().filter_map(|&change| match change {
            Change::Took { sequence, at, page } if sequence == of => Some((at, page)),
            _ => None,
        });
        if let Some((first, page)) = taken.next() {
            let words = std::iter::once(page).chain(taken.map(|(_, page)| page)).collect();
            self.write_entries(slot, first, words);
        }
        Ok(())
    }

    /// Writes the last entries of a slot's page table, from `first` on, and the number of keys that its pages hold.
    fn write_entries(&mut self, slot: usize, first: usize, words: Vec<u32>) {
        let reserved = (first + words.len()) * self.pool.page_size();
        if !words.is_empty() {
            self.writes.push(StateWrite { offset: self.size.page_table(slot) + first, words });
        }
        self.write_state(State::Reserved, slot, reserved as u32);
    }

    fn write_state(&mut self, word: State, slot: usize, value: u32) {
        self.writes.push(StateWrite { offset: word as usize * self.size.slots + slot, words: vec![value] });
    }
}
