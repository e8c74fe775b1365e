//! Keeping some of the last tokens of a sequence, as after speculation: which token slots are copied where.

use super::pool::{PagePool, SequenceId};
use crate::error::{Error, Result};
use crate::problem::PageTable;

/// Tokens that [`super::Ledger::keep`] keeps in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptRows<'a> {
    /// Slot of the sequence.
    pub slot: usize,
    /// Number of last tokens of which only some are kept.
    pub last: usize,
    /// Those that are kept, as ascending indices into the last tokens.
    pub rows: &'a [usize],
}

/// Work that [`PagePool::keep`] leaves to the owner of the data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Copies of single tokens (from, to), to be made one after the other: a token slot that one reads may be written by a
    /// later one. Token slots are numbered `page * page_size + slot`; no pair is of equal numbers.
    pub moves: Vec<[usize; 2]>,
    /// Pages that became free.
    pub freed: Vec<u32>,
}

impl PagePool {
    /// Keeps those of the last `last` tokens of a sequence whose indices among them are `rows`, and removes the others. The
    /// kept tokens take the places of the first of the last tokens, in their order.
    ///
    /// Tokens before the first that is removed stay where they are. A page that others move to is copied first if another
    /// sequence shares it.
    ///
    /// Errors: more tokens than the sequence has, rows that are not ascending or not among the last tokens, too few free
    /// pages for copies; with a window, also those of [`Self::truncate`] to as many tokens as stay, and a row on a page that was
    /// given back. The last tokens of one step can always be kept.
    pub fn keep(&mut self, id: SequenceId, last: usize, rows: &[usize]) -> Result<Compaction> {
        let length = self.length(id)?;
        let Some(base) = length.checked_sub(last) else {
            return Err(Error::invalid("last", format!("is {last}, but the sequence has {length} tokens")));
        };
        if rows.windows(2).any(|pair| pair[0] >= pair[1]) || rows.last().is_some_and(|&row| row >= last) {
            return Err(Error::invalid("rows", format!("{rows:?} are not ascending indices into the last {last} tokens")));
        }
        let mut kept = self.prefix(id, "rows", base + rows.len())?;
        let old = self.pages_of(id)?.to_vec();
        let page_size = self.page_size();
        let is_there = |token: usize| old[token / page_size] != PageTable::UNUSED;
        let moving = rows.iter().enumerate().map(|(to, row)| [base + row, base + to]);
        // Tokens that no row sees any more need not move.
        let moving: Vec<[usize; 2]> = moving.filter(|&[from, to]| from > to && is_there(to)).collect();
        if let Some([from, _]) = moving.iter().find(|[from, _]| !is_there(*from)) {
            let why = format!("keep token {from}, whose page was given back: extend by fewer steps at a time");
            return Err(Error::invalid("rows", why));
        }
        let first = moving.first().map_or(kept.pages.len() * page_size, |&[_, to]| to);
        let is_shared = |&at: &usize| old[at] != PageTable::UNUSED && self.references[old[at] as usize] > 1;
        let shared: Vec<usize> = (first / page_size..kept.pages.len()).filter(is_shared).collect();
        let available = self.free_pages();
        if shared.len() > available {
            return Err(Error::limit("pages of the pool", shared.len(), available, "free a sequence, or let the pool grow"));
        }
        for &at in &shared {
            kept.pages[at] = self.take_page().unwrap_or(PageTable::UNUSED); // there are enough
        }
        let before = first - if shared.contains(&(first / page_size)) { first % page_size } else { 0 };
        let slot = |pages: &[u32], token: usize| pages[token / page_size] as usize * page_size + token % page_size;
        let all = (before..first).map(|token| [token, token]).chain(moving);
        let moves = all.map(|[from, to]| [slot(&old, from), slot(&kept.pages, to)]).collect();
        let rest = shared.into_iter().chain(kept.pages.len()..old.len()).map(|at| old[at]).collect();
        self.replace(id, kept);
        Ok(Compaction { moves, freed: self.release_all(rest) })
    }
}
