//! Paged keys and values: a pool of pages, and a table of pages for each item.

use std::ops::Range;

use super::{Inputs, Problem};
use crate::custom::{Tile, TileStatus};
use crate::error::{Error, Result};

/// Keys and values in a pool of pages, as serving engines keep them. See [`crate::Problem::paged`].
///
/// Key j of item b is token slot `j % page_size` of page `page_table[b, j / page_size]`. Pools are
/// [pages, num_kv_heads, page_size, dim] in [`crate::Layout::Bhsd`] (FlashInfer's HND) and
/// [pages, page_size, num_kv_heads, dim] in [`crate::Layout::Bshd`] (NHD). Strides and offset describe pools in which
/// keys and values are interleaved.
/// Nothing past an item's length is read: entries of the table there may hold anything, token slots NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Paged {
    /// Number of token slots per page; at least 1.
    pub page_size: usize,
    /// Number of pages in the pool.
    pub pages: usize,
    /// Width of the page table.
    pub pages_per_item: usize,
}

/// Page table of a batch with its lengths, for [`crate::Inputs::page_table`] and [`crate::Inputs::kv_lengths`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    /// Number of token slots per page.
    pub page_size: usize,
    /// Width of the table.
    pub pages_per_item: usize,
    /// Pages of each item, [batch, pages_per_item]; [`PageTable::UNUSED`] where an item has fewer, or does not see one.
    pub entries: Vec<u32>,
    /// Number of keys of each item, `[batch]`.
    pub kv_lengths: Vec<u32>,
}

impl PageTable {
    /// Entry where an item has no page. In front of its length it stands for keys that the problem masks for every row,
    /// by its window or by a user's term as a whole; otherwise the table is refused.
    pub const UNUSED: u32 = u32::MAX;

    /// Builds the table from the pages and the length of each item. An item must have exactly the pages for its length.
    pub fn new<'a>(page_size: usize, items: impl IntoIterator<Item = (&'a [u32], usize)>) -> Result<Self> {
        if page_size == 0 {
            return Err(Error::invalid("page_size", "is 0; it must be at least 1"));
        }
        let items: Vec<(&[u32], usize)> = items.into_iter().collect();
        let pages_per_item = items.iter().map(|(pages, _)| pages.len()).max().unwrap_or(0);
        let mut table = Self { page_size, pages_per_item, ..Self::default() };
        for (item, (pages, length)) in items.into_iter().enumerate() {
            if length.div_ceil(page_size) != pages.len() {
                let why = format!("item {item} of length {length} has {} pages of {page_size}", pages.len());
                return Err(Error::invalid("kv_lengths", why));
            }
            let length = u32::try_from(length).map_err(|_| Error::invalid("kv_lengths", format!("{length} is more than u32 counts")))?;
            table.entries.extend_from_slice(pages);
            table.entries.resize((item + 1) * pages_per_item, Self::UNUSED);
            table.kv_lengths.push(length);
        }
        Ok(table)
    }

    /// Builds the table from FlashInfer's form: item b has the pages `indices[indptr[b]..indptr[b + 1]]`, and
    /// `last_page_len[b]` token slots of its last page are filled (1 to page_size; ignored for an item without pages).
    pub fn from_indices(page_size: usize, indptr: &[u32], indices: &[u32], last_page_len: &[u32]) -> Result<Self> {
        if indptr.len() != last_page_len.len() + 1 {
            let why = format!("has {} elements for {} items; it must have one more than items", indptr.len(), last_page_len.len());
            return Err(Error::invalid("indptr", why));
        }
        let items = indptr.windows(2).zip(last_page_len).map(|(ends, &last)| {
            let why = || format!("{}..{} are no places among {} indices", ends[0], ends[1], indices.len());
            let pages = indices.get(ends[0] as usize..ends[1] as usize).ok_or_else(|| Error::invalid("indptr", why()))?;
            if pages.is_empty() {
                return Ok((pages, 0));
            }
            if last == 0 || last as usize > page_size {
                return Err(Error::invalid("last_page_len", format!("{last} is not between 1 and the page size {page_size}")));
            }
            Ok((pages, (pages.len() - 1) * page_size + last as usize))
        });
        Self::new(page_size, items.collect::<Result<Vec<_>>>()?)
    }

    /// Longest length: the smallest valid `seq_len_kv`.
    pub fn longest(&self) -> usize {
        self.kv_lengths.iter().max().map_or(0, |&longest| longest as usize)
    }

    /// Returns what a problem with this table and a pool of `pages` pages needs as [`crate::Problem::paged`].
    pub fn paged(&self, pages: usize) -> Paged {
        Paged { page_size: self.page_size, pages, pages_per_item: self.pages_per_item }
    }
}

impl Problem {
    /// True if it is known that no row of an item sees any of `keys`: they come before the window of its first row, or a
    /// user's term shows none of them.
    pub(crate) fn hides(&self, inputs: &Inputs<'_>, item: usize, keys: Range<usize>) -> bool {
        let (d, length) = (&self.dims, inputs.kv_lengths[item] as usize);
        let rows = match self.varlen {
            Some(_) => (inputs.cu_seqlens_q[item + 1] - inputs.cu_seqlens_q[item]) as usize,
            None => d.seq_len_q,
        };
        if rows == 0 || keys.is_empty() {
            return true;
        }
        let offset = self.visibility.alignment.map_or(0, |alignment| alignment.offset(rows, length));
        if self.visibility.window_left.is_some_and(|left| keys.end as i64 <= offset - i64::from(left)) {
            return true;
        }
        let ends = |range: Range<usize>| [range.start as i64, range.end as i64 - 1];
        let (rows, keys, one) = (ends(0..rows), ends(keys), |x: usize| [x as i64; 2]);
        let tile = |kv_head: usize| -> Tile {
            let heads = ends(kv_head * d.group()..(kv_head + 1) * d.group());
            [one(item), heads, one(kv_head), rows, keys, rows.map(|row| row + offset), keys, [rows[1] + 1; 2], one(length)]
        };
        self.user_terms.iter().enumerate().any(|(index, term)| {
            let tables = self.tables_of(index, inputs.term_tables);
            let status = term.functions().status.as_ref();
            status.is_some_and(|rule| (0..d.num_kv_heads).all(|kv_head| rule.of(&tile(kv_head), &tables) == TileStatus::None))
        })
    }
}
