//! Location of an item's rows and keys, the intervals of its rows, and the additive mask.

use std::ops::Range;

use super::kernel::SimdKernel;
use super::shared::LINE;
use super::simd::Simd;
use super::unit::{Job, Unit};
use crate::problem::{Alignment, Inputs, Problem, along_keys};
use crate::terms::{RowAt, TermSet};

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
    length: usize,
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
        let (stored, first_q, rows, first_kv, keys) = match problem.varlen {
            None => (batch, 0, d.seq_len_q, 0, d.seq_len_kv),
            Some(_) => {
                let tokens = |cu: &[u32]| (cu[batch] as usize, (cu[batch + 1] - cu[batch]) as usize);
                let (first_q, rows) = tokens(inputs.cu_seqlens_q);
                let (first_kv, keys) = if problem.paged.is_some() { (0, 0) } else { tokens(inputs.cu_seqlens_kv) };
                (0, first_q, rows, first_kv, keys)
            }
        };
        // Paged keys past the length are not stored.
        let keys = if problem.paged.is_some() { inputs.kv_lengths[batch] as usize } else { keys };
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

    /// Index of the lse of a head's row i.
    pub(super) fn lse_place(&self, problem: &Problem, head: usize, i: usize) -> usize {
        let d = &problem.dims;
        match problem.varlen {
            Some(_) => (self.first_q + i) * d.num_heads + head,
            None => (self.batch * d.num_heads + head) * d.seq_len_q + i,
        }
    }

    /// True if scores need an additive mask besides the intervals.
    pub(super) fn has_additive_mask(problem: &Problem) -> bool {
        problem.terms().any(|term| term.add.is_some() || term.mask.is_some())
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

/// Runs [`Item::fill_additive_mask`] for some rows of a unit, which are `step` apart in `to` and zero-padded to `step`.
pub(super) struct AdditiveMask<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) unit: &'a Unit,
    /// Counted from the unit's first row.
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) to: &'a mut [f32],
    pub(super) step: usize,
    /// Set to the kind of the result.
    pub(super) kind: &'a mut MaskKind,
}

/// Contents of an additive mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MaskKind {
    Zero,
    Mixed,
    AllHidden,
}

impl SimdKernel for AdditiveMask<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (job, keys) = (self.job, self.keys);
        let item = &job.items[self.unit.item];
        // All elements are -inf if both `or` and `and` of their bits are; all are 0 if `or` has at most the sign bit.
        let (mut or, mut and) = (0, u32::MAX);
        for (r, row) in self.rows.zip(self.to.chunks_exact_mut(self.step)) {
            let at = self.unit.row(job.problem, r);
            let (row, padding) = row.split_at_mut(keys.len());
            padding.fill(0.0);
            item.fill_additive_mask(job.problem, job.inputs, at, keys.clone(), row);
            if let Some((bias, 1)) = job.problem.bias.map(|_| along_keys(job.problem.bias, [item.batch, at.0, at.1, keys.end])) {
                // The next block of this row is too far away for the hardware prefetcher.
                for ahead in (0..keys.len()).step_by(LINE) {
                    // SAFETY: the machine has V's instructions by contract.
                    unsafe { V::prefetch(job.inputs.bias.as_ptr().wrapping_add(bias + ahead)) };
                }
            }
            for x in row {
                or |= x.to_bits();
                and &= x.to_bits();
            }
        }
        const HIDDEN: u32 = f32::NEG_INFINITY.to_bits();
        *self.kind = match (or, and) {
            (HIDDEN, HIDDEN) => MaskKind::AllHidden,
            (or, _) if or << 1 == 0 => MaskKind::Zero,
            _ => MaskKind::Mixed,
        };
    }
}
