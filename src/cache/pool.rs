//! Page bookkeeping.

use std::collections::{BTreeMap, BTreeSet};

use super::retention::Retention;
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
///
/// A pool with a window ([`Self::windowed`]) gives pages back when a sequence grows from L tokens on: page k stays if it has
/// a token that a row at position L or later sees, which is `(k + 1) * page_size > L - window_left`, or one of the first
/// tokens, which is `k * page_size < first_tokens`. So a sequence that gains n tokens at a time has at most
/// `ceil((window_left + n) / page_size) + 1` pages, and those of its first tokens. The others leave
/// [`PageTable::UNUSED`] in its list, so that positions stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagePool {
    page_size: usize,
    retention: Retention,
    /// Number of sequences that have each page.
    pub(super) references: Vec<u32>,
    free: Vec<u32>,
    sequences: BTreeMap<SequenceId, Sequence>,
    started: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) pages: Vec<u32>,
    pub(super) length: usize,
    /// Number of pages that were given back. They follow those of the first tokens.
    given_back: usize,
}

/// Change of a sequence's pages, in the order in which they were made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Page `at` was given back.
    GaveBack { sequence: SequenceId, at: usize, page: u32 },
    /// The last page was left to the others that share it. The page that is taken next replaces it: `slots` are to copy.
    Left { sequence: SequenceId, slots: Slots },
    /// A free page was taken as page `at`.
    Took { sequence: SequenceId, at: usize, page: u32 },
}

impl PagePool {
    /// Creates a pool of free pages. Errors: a page_size of 0, more pages than u32 can index, no memory.
    pub fn new(page_size: usize, pages: usize) -> Result<Self> {
        Error::check_sizes([("page_size", page_size)])?;
        let retention = Retention::default();
        let mut pool = Self { page_size, retention, references: Vec::new(), free: Vec::new(), sequences: BTreeMap::new(), started: 0 };
        pool.grow(pages)?;
        Ok(pool)
    }

    /// Creates a pool that gives back pages before a window. Rows see `window_left` tokens before their own, so a window of
    /// 1,024 tokens is 1023, and the first tokens of their sequence.
    pub fn windowed(page_size: usize, pages: usize, window_left: u32, first_tokens: u32) -> Result<Self> {
        Self::keeping(page_size, pages, Retention { window_left: Some(window_left), first_tokens })
    }

    /// Creates a pool that keeps what `retention` says.
    pub(super) fn keeping(page_size: usize, pages: usize, retention: Retention) -> Result<Self> {
        Ok(Self { retention, ..Self::new(page_size, pages)? })
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
    ///
    /// Errors: a prefix that is longer than the sequence, or whose next token would see pages that were given back.
    pub fn fork(&mut self, id: SequenceId, prefix: usize) -> Result<SequenceId> {
        let sequence = self.prefix(id, "prefix", prefix)?;
        for &page in sequence.pages.iter().filter(|&&page| page != PageTable::UNUSED) {
            self.references[page as usize] += 1;
        }
        Ok(self.add(sequence))
    }

    /// Removes a sequence. Returns the pages that became free.
    pub fn free(&mut self, id: SequenceId) -> Result<Vec<u32>> {
        self.sequence(id)?;
        let Sequence { pages, .. } = self.sequences.remove(&id).unwrap_or_default();
        Ok(self.release_all(pages))
    }

    /// Removes the tokens of a sequence from `length` on. Returns the pages that became free.
    ///
    /// Errors: more tokens than the sequence has, or so few that the next one would see pages that were given back. After
    /// one step, its tokens can always be removed.
    pub fn truncate(&mut self, id: SequenceId, length: usize) -> Result<Vec<u32>> {
        let kept = self.prefix(id, "length", length)?;
        let rest = self.sequence(id)?.pages[kept.pages.len()..].to_vec();
        self.replace(id, kept);
        Ok(self.release_all(rest))
    }

    /// Gives a sequence other pages and another length.
    pub(super) fn replace(&mut self, id: SequenceId, sequence: Sequence) {
        self.sequences.insert(id, sequence);
    }

    /// First `length` tokens of a sequence, if all that the next token sees of them is there.
    pub(super) fn prefix(&self, id: SequenceId, argument: &'static str, length: usize) -> Result<Sequence> {
        let sequence = self.sequence(id)?;
        if length > sequence.length {
            return Err(Error::invalid(argument, format!("is {length}, but the sequence has {} tokens", sequence.length)));
        }
        let (pages, unseen) = (length.div_ceil(self.page_size), self.retention.unseen(self.page_size, length));
        let gone_end = unseen.start + sequence.given_back;
        if unseen.end < gone_end.min(pages) {
            let why = format!(
                "is {length}, but pages in the window of its next token were given back: keep at least {} tokens, or at most {}, or \
                 extend by fewer steps at a time",
                gone_end * self.page_size + self.retention.window_left.unwrap_or(0) as usize,
                unseen.start * self.page_size
            );
            return Err(Error::invalid(argument, why));
        }
        let given_back = sequence.given_back.min(pages.saturating_sub(unseen.start));
        Ok(Sequence { pages: sequence.pages[..pages].to_vec(), length, given_back })
    }

    /// Drops one reference to each of these pages. Returns those that are free now.
    pub(super) fn release_all(&mut self, pages: Vec<u32>) -> Vec<u32> {
        pages.into_iter().filter(|&page| page != PageTable::UNUSED && self.release(page)).collect()
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

    /// Pages of a sequence, in token order; [`PageTable::UNUSED`] where one was given back.
    pub fn pages_of(&self, id: SequenceId) -> Result<&[u32]> {
        Ok(&self.sequence(id)?.pages)
    }

    /// Reserves room for `tokens` more tokens. Fails with [`Error::Limit`] unless there are pages for all of them.
    pub fn append(&mut self, id: SequenceId, tokens: usize) -> Result<Append> {
        let start = self.length(id)?;
        let copy = copies(&self.take(&[(id, tokens)], 1)?).next();
        Ok(Append { copy, slots: slots(self.pages_of(id)?, self.page_size, start..start + tokens) })
    }

    /// Reserves room for steps that append so many tokens to each of some different sequences. Returns the changes.
    ///
    /// Steps run one after the other, so a page that no later step sees may be another one's at the next step. That
    /// is why pages are given back and taken step by step, by all sequences. Without a window, all steps are one.
    pub(super) fn take(&mut self, growing: &[(SequenceId, usize)], steps: usize) -> Result<Vec<Change>> {
        let mut ids = BTreeSet::new();
        if let Some((id, _)) = growing.iter().find(|(id, _)| !ids.insert(id)) {
            return Err(Error::invalid("sequence", format!("{id:?} is there twice")));
        }
        for &(id, tokens) in growing {
            let end = tokens.checked_mul(steps).and_then(|tokens| self.length(id).ok()?.checked_add(tokens));
            if end.is_none() {
                self.sequence(id)?;
                return Err(Error::invalid("tokens", format!("{steps} times {tokens} more overflow")));
            }
        }
        if growing.iter().all(|&(_, tokens)| tokens == 0) {
            return Ok(Vec::new());
        }
        let (rounds, per_round) = if self.retention.window_left.is_some() { (steps, 1) } else { (steps.min(1), steps) };
        let (available, mut changes) = (self.free.len(), Vec::new());
        for round in 0..rounds {
            for &(sequence, tokens) in growing {
                self.give_back(sequence, round * tokens, &mut changes);
            }
            for &(sequence, tokens) in growing {
                if round == 0 {
                    self.leave_shared(sequence, &mut changes);
                }
                let missing = self.take_free(sequence, (round + 1) * per_round * tokens, &mut changes);
                if missing > 0 {
                    changes.into_iter().rev().for_each(|change| self.undo(change));
                    return Err(Error::limit("pages of the pool", available + missing, available, "free a sequence, or let the pool grow"));
                }
            }
        }
        for &(id, tokens) in growing {
            self.sequences.entry(id).and_modify(|sequence| sequence.length += tokens * steps);
        }
        Ok(changes)
    }

    /// Gives back the pages of a sequence that no row sees from `more` tokens after its length on.
    fn give_back(&mut self, id: SequenceId, more: usize, changes: &mut Vec<Change>) {
        let Some(mut sequence) = self.sequences.get_mut(&id).map(std::mem::take) else { return };
        let unseen = self.retention.unseen(self.page_size, sequence.length + more);
        for at in unseen.start + sequence.given_back..unseen.end {
            let page = std::mem::replace(&mut sequence.pages[at], PageTable::UNUSED);
            sequence.given_back += 1;
            self.release(page);
            changes.push(Change::GaveBack { sequence: id, at, page });
        }
        self.sequences.insert(id, sequence);
    }

    /// Leaves the last page of a sequence, if it is partly filled, to the other sequences that share it.
    fn leave_shared(&mut self, id: SequenceId, changes: &mut Vec<Change>) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let filled = sequence.length % self.page_size;
        let shared = |&page: &u32| filled > 0 && self.references[page as usize] > 1;
        if let Some(page) = sequence.pages.last().copied().filter(shared) {
            sequence.pages.pop();
            self.references[page as usize] -= 1;
            changes.push(Change::Left { sequence: id, slots: Slots { page, first: 0, count: filled } });
        }
    }

    /// Takes pages until a sequence has room for `more` tokens after its length. Returns the number of pages that are missing.
    fn take_free(&mut self, id: SequenceId, more: usize, changes: &mut Vec<Change>) -> usize {
        let Some(Sequence { pages, length, .. }) = self.sequences.get_mut(&id) else { return 0 };
        let needed = (*length + more).div_ceil(self.page_size);
        while pages.len() < needed {
            let Some(page) = self.free.pop() else { return needed - pages.len() };
            changes.push(Change::Took { sequence: id, at: pages.len(), page });
            self.references[page as usize] = 1;
            pages.push(page);
        }
        0
    }

    /// Takes a free page, if there is one.
    pub(super) fn take_page(&mut self) -> Option<u32> {
        let page = self.free.pop()?;
        self.references[page as usize] = 1;
        Some(page)
    }

    /// Takes back the last change.
    fn undo(&mut self, change: Change) {
        let (Change::GaveBack { sequence: id, .. } | Change::Left { sequence: id, .. } | Change::Took { sequence: id, .. }) = change;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        match change {
            Change::GaveBack { at, page, .. } => {
                sequence.pages[at] = page;
                sequence.given_back -= 1;
                if self.references[page as usize] == 0 {
                    self.free.pop();
                }
                self.references[page as usize] += 1;
            }
            Change::Left { slots, .. } => {
                sequence.pages.push(slots.page);
                self.references[slots.page as usize] += 1;
            }
            Change::Took { page, .. } => {
                sequence.pages.pop();
                self.references[page as usize] = 0;
                self.free.push(page);
            }
        }
    }

    /// Page table of a batch of sequences. Where a page was given back it has [`PageTable::UNUSED`], which a problem must
    /// not see.
    pub fn table(&self, batch: &[SequenceId]) -> Result<PageTable> {
        let items = batch.iter().map(|&id| self.sequence(id).map(|sequence| (&sequence.pages[..], sequence.length)));
        PageTable::new(self.page_size, items.collect::<Result<Vec<_>>>()?)
    }
}

/// Copies to make before anything is written: these token slots, to the same slots of another page.
pub(super) fn copies(changes: &[Change]) -> impl Iterator<Item = (Slots, u32)> {
    changes.windows(2).filter_map(|pair| match *pair {
        [Change::Left { slots, .. }, Change::Took { page, .. }] => Some((slots, page)),
        _ => None,
    })
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
