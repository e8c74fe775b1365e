//! Page bookkeeping.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::problem::PageTable;

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
    pub(super) references: Vec<u32>,
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
        Error::check_sizes([("page_size", page_size)])?;
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
            return Err(Error::limit("pages of the pool", needed, self.free.len(), "free a sequence, or let the pool grow"));
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

pub(super) fn no_memory(needed: u64) -> Error {
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
