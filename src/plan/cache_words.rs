//! Places in the state of a cache, from which attention on the cache reads lengths and page table.

use super::limits::place_tables;
use crate::error::Result;
use crate::problem::{Problem, TableLayout};

/// Places in a cache's state and tables that attention on the cache reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheWords {
    /// Number of words of the state.
    pub(crate) state: u32,
    /// First words of the lengths and of the page table in the state.
    pub(crate) kv_lengths: u32,
    pub(crate) page_table: u32,
    /// Number of heads in the tables, and the index among them of the problem's first head.
    pub(crate) num_heads: usize,
    pub(crate) first_head: usize,
}

impl CacheWords {
    /// Problem whose vectors are in the tables buffer: that of all heads, without lengths and page table.
    pub(super) fn in_tables(&self, problem: &Problem) -> Problem {
        let mut others = problem.clone();
        (others.paged, others.visibility.kv_lengths) = (None, false);
        others.dims.num_heads = self.num_heads;
        others
    }

    /// Number of key/value heads of all banks, and the index among them of the problem's first.
    pub(super) fn kv_heads(&self, problem: &Problem) -> [usize; 2] {
        let group = problem.dims.group().max(1);
        [self.num_heads / group, self.first_head / group]
    }

    /// Places of the vectors of `problem`, and the size of the tables buffer.
    pub(super) fn tables(&self, problem: &Problem) -> Result<(TableLayout, u32)> {
        let (mut layout, words) = place_tables(&self.in_tables(problem))?;
        let first_head = self.first_head as u32;
        layout.alibi_slopes += first_head;
        layout.sinks += first_head;
        layout.relative_bias += first_head * problem.relative_bias_columns() as u32;
        (layout.kv_lengths, layout.page_table) = (self.kv_lengths, self.page_table);
        Ok((layout, words))
    }
}
