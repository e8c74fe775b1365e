//! Location of an item's rows and keys, the intervals of its rows, and their additive mask.

use std::ops::Range;

use crate::problem::{Alignment, Inputs, Problem};
use crate::terms::{RowAt, Status, TermSet, TileAt};

/// One item of the batch, padded or varlen.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) batch: usize,
    /// Batch index for the operands' strides: 0 if varlen.
    pub(super) stored: usize,
    pub(super) first_q: usize,
    pub(super) first_kv: usize,
    pub(super) rows: usize,
    /// Stored keys, padding included.
    pub(super) keys: usize,
    /// Keys that are not padding.
    pub(super) length: usize,
    /// Position of row 0.
    pub(super) offset: i64,
    prefix: usize,
    /// Terms of the problem.
    terms: TermSet,
}

impl Item {
    pub(super) fn new(problem: &Problem, inputs: &Inputs<'_>, batch: usize) -> Self {
        let d = &problem.dims;
        let v = &problem.visibility;
        let tokens = |cu: &[u32]| (cu[batch] as usize, (cu[batch + 1] - cu[batch]) as usize);
        let (mut stored, mut first_q, mut rows) = (batch, 0, d.seq_len_q);
        let (mut first_kv, mut keys) = (0, d.seq_len_kv);
        if problem.varlen.is_some() {
            (stored, (first_q, rows)) = (0, tokens(inputs.cu_seqlens_q));
        }
        if problem.paged.is_some() {
            keys = inputs.kv_lengths[batch] as usize; // paged keys past the length are not stored
        } else if problem.varlen.is_some() {
            (first_kv, keys) = tokens(inputs.cu_seqlens_kv);
        }
        let length = if v.kv_lengths { inputs.kv_lengths[batch] as usize } else { keys };
        let offset = v.alignment.unwrap_or(Alignment::TopLeft).offset(rows, length);
        let prefix = if v.prefix_lengths { inputs.prefix_lengths[batch] as usize } else { 0 };
        let terms = TermSet::of(problem);
        Self { batch, stored, first_q, first_kv, rows, keys, length, offset, prefix, terms }
    }

    fn row_at(&self, head: usize, row: usize) -> RowAt {
        RowAt { batch: self.batch, head, row, position: row as i64 + self.offset, prefix: self.prefix }
    }

    /// Interval of row i; 0..0 if it is empty.
    pub(super) fn interval(&self, problem: &Problem, i: usize) -> Range<usize> {
        let interval = problem.interval(self.terms, self.row_at(0, i), self.length);
        if interval.is_empty() { 0..0 } else { interval }
    }

    /// Smallest range of keys that contains the intervals of all `rows`.
    pub(super) fn seen_by_some(&self, problem: &Problem, rows: Range<usize>) -> Range<usize> {
        hull(rows.map(|i| self.interval(problem, i)))
    }

    /// Index of the lse of a head's row i.
    pub(super) fn lse_place(&self, problem: &Problem, head: usize, i: usize) -> usize {
        let d = &problem.dims;
        match problem.varlen {
            Some(_) => (self.first_q + i) * d.num_heads + head,
            None => (self.batch * d.num_heads + head) * d.seq_len_q + i,
        }
    }

    /// True if any built-in term knows what it shows of a tile.
    pub(super) fn knows_tiles(&self) -> bool {
        self.terms.iter().any(|(_, term)| term.status.is_some())
    }

    /// Least that the built-in terms show of a tile.
    pub(super) fn status(&self, problem: &Problem, inputs: &Inputs<'_>, tile: &TileAt) -> Status {
        let all = self.terms.iter().filter_map(|(_, term)| term.status);
        all.map(|status| status(problem, inputs, tile)).min().unwrap_or(Status::All)
    }

    /// Fills the additive mask of row i and these keys: the sum of all biases, or -inf where masked for any reason.
    pub(super) fn fill_additive_mask(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        (head, i): (usize, usize),
        keys: Range<usize>,
        to: &mut [f32],
    ) {
        let at = self.row_at(head, i);
        to.fill(0.0);
        for add in self.terms.iter().filter_map(|(_, term)| term.add) {
            add(problem, inputs, at, keys.start, to);
        }
        for mask in self.terms.iter().filter_map(|(_, term)| term.mask) {
            mask(problem, inputs, at, keys.start, to);
        }
        let seen = self.interval(problem, i);
        let inside = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        to[..inside(seen.start)].fill(f32::NEG_INFINITY);
        to[inside(seen.end)..].fill(f32::NEG_INFINITY);
    }
}

/// Smallest range that contains all; empty ones do not count.
pub(super) fn hull(ranges: impl Iterator<Item = Range<usize>>) -> Range<usize> {
    ranges.filter(|range| !range.is_empty()).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}
