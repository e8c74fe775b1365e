//! Where the rows and keys of an item lie, which keys a row sees, and what is added to its scores.

use std::ops::Range;

use super::kernel::Kernel;
use super::shared::LINE;
use super::simd::Simd;
use super::unit::{Job, Unit};
use crate::{Alibi, Alignment, Broadcast, Inputs, Problem};

/// One item of the batch, padded or packed.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) batch: usize,
    /// The item under which the operands' strides find it: 0 if packed.
    pub(super) stored: usize,
    pub(super) first_q: usize,
    pub(super) first_kv: usize,
    pub(super) rows: usize,
    /// Keys in memory, padding included.
    pub(super) keys: usize,
    /// Keys that are not padding.
    length: usize,
    /// Position of row 0.
    pub(super) offset: i64,
    prefix: usize,
}

impl Item {
    pub(super) fn new(problem: &Problem, inputs: &Inputs<'_>, batch: usize) -> Self {
        let d = &problem.dims;
        let v = &problem.visibility;
        let (stored, first_q, rows, first_kv, keys) = match problem.packed {
            None => (batch, 0, d.seq_len_q, 0, d.seq_len_kv),
            Some(_) => {
                let tokens = |cu: &[u32]| (cu[batch] as usize, (cu[batch + 1] - cu[batch]) as usize);
                let (first_q, rows) = tokens(inputs.cu_seqlens_q);
                let (first_kv, keys) = if problem.paged.is_some() { (0, 0) } else { tokens(inputs.cu_seqlens_kv) };
                (0, first_q, rows, first_kv, keys)
            }
        };
        // Of paged keys only those up to the length are anywhere.
        let keys = if problem.paged.is_some() { inputs.kv_lengths[batch] as usize } else { keys };
        let length = if v.kv_lengths { inputs.kv_lengths[batch] as usize } else { keys };
        let offset = v.alignment.unwrap_or(Alignment::TopLeft).offset(rows, length);
        let prefix = if v.prefix_lengths { inputs.prefix_lengths[batch] as usize } else { 0 };
        Self { batch, stored, first_q, first_kv, rows, keys, length, offset, prefix }
    }

    /// The keys that row i may see as far as arithmetic tells; 0..0 if there is none.
    pub(super) fn interval(&self, problem: &Problem, i: usize) -> Range<usize> {
        let interval = problem.visibility.interval(i as i64 + self.offset, self.prefix, self.length);
        if interval.is_empty() { 0..0 } else { interval }
    }

    /// Where the lse of a head's row i lies.
    pub(super) fn lse_place(&self, problem: &Problem, head: usize, i: usize) -> usize {
        let d = &problem.dims;
        match problem.packed {
            Some(_) => (self.first_q + i) * d.num_heads + head,
            None => (self.batch * d.num_heads + head) * d.seq_len_q + i,
        }
    }

    /// Whether scores get a part of their own for each pair, beyond the intervals.
    pub(super) fn has_extra(problem: &Problem) -> bool {
        let v = &problem.visibility;
        v.documents || v.mask.is_some() || problem.bias.is_some() || problem.alibi.is_some() || problem.relative_bias.is_some()
    }

    /// What is added to the scores of row i and these keys: all biases; -inf where the key is hidden, for whatever reason.
    #[inline(always)]
    pub(super) fn fill_extra(&self, problem: &Problem, inputs: &Inputs<'_>, (head, i): (usize, usize), keys: Range<usize>, to: &mut [f32]) {
        let d = &problem.dims;
        let v = &problem.visibility;
        let position = i as i64 + self.offset;
        let index = [self.batch, head, i, keys.start];
        match problem.bias {
            None => to.fill(0.0),
            Some(shape) => match along_keys(shape, index) {
                (at, 0) => to.fill(inputs.bias[at]),
                (at, _) => to.copy_from_slice(&inputs.bias[at..at + keys.len()]),
            },
        }
        // Of key keys.start, from the row's position.
        let distance = keys.start as i64 - position;
        if let Some(alibi) = problem.alibi {
            let slope = inputs.alibi_slopes[head];
            let add = |x: &mut f32, distance: f32| {
                *x += match alibi {
                    Alibi::Signed => slope * distance,
                    Alibi::Symmetric => -slope * distance.abs(),
                };
            };
            // Distances are rounded once. Few are too large for the vectors' integers.
            match (i32::try_from(distance), i32::try_from(distance + to.len() as i64)) {
                (Ok(distance), Ok(_)) => to.iter_mut().enumerate().for_each(|(j, x)| add(x, (distance + j as i32) as f32)),
                _ => to.iter_mut().enumerate().for_each(|(j, x)| add(x, (distance + j as i64) as f32)),
            }
        }
        if let Some(max) = problem.relative_bias {
            let max = i64::from(max);
            let table = &inputs.relative_bias[head * (2 * max as usize + 1)..][..2 * max as usize + 1];
            for (j, x) in to.iter_mut().enumerate() {
                *x += table[((-distance - j as i64).clamp(-max, max) + max) as usize];
            }
        }
        if v.documents {
            let own = inputs.documents_q[self.batch * d.seq_len_q + i];
            let documents = &inputs.documents_kv[self.batch * d.seq_len_kv + keys.start..][..keys.len()];
            for (x, &document) in to.iter_mut().zip(documents) {
                *x = if document == own { *x } else { f32::NEG_INFINITY };
            }
        }
        if let Some(shape) = v.mask {
            match along_keys(shape, index) {
                (at, 0) if inputs.mask[at] => {}
                (_, 0) => to.fill(f32::NEG_INFINITY),
                (at, _) => {
                    for (x, &seen) in to.iter_mut().zip(&inputs.mask[at..at + keys.len()]) {
                        *x = if seen { *x } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
        let seen = self.interval(problem, i);
        let inside = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        to[..inside(seen.start)].fill(f32::NEG_INFINITY);
        to[inside(seen.end)..].fill(f32::NEG_INFINITY);
    }
}

/// [`Item::fill_extra`] for some rows of a unit, which are `step` apart in `to`, with zeros between them and `step`.
pub(super) struct Extra<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) unit: &'a Unit,
    /// Counted from the unit's first.
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) to: &'a mut [f32],
    pub(super) step: usize,
    /// What has been found out about the result.
    pub(super) kind: &'a mut ExtraKind,
}

/// What an additive part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtraKind {
    Zero,
    Mixed,
    AllHidden,
}

impl Kernel for Extra<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (job, keys) = (self.job, self.keys);
        let item = &job.items[self.unit.item];
        // All are -inf if both their `or` and their `and` are; all are 0 if no bit but the sign is in their `or`.
        let (mut or, mut and) = (0, u32::MAX);
        for (r, row) in self.rows.zip(self.to.chunks_exact_mut(self.step)) {
            let at = self.unit.row(job.problem, r);
            let (row, padding) = row.split_at_mut(keys.len());
            padding.fill(0.0);
            item.fill_extra(job.problem, job.inputs, at, keys.clone(), row);
            if let Some((bias, 1)) = job.problem.bias.map(|shape| along_keys(shape, [item.batch, at.0, at.1, keys.end])) {
                // The next block of this row is too far from this one for the hardware to expect it.
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
            (HIDDEN, HIDDEN) => ExtraKind::AllHidden,
            (or, _) if or << 1 == 0 => ExtraKind::Zero,
            _ => ExtraKind::Mixed,
        };
    }
}

/// Where [b, h, i, j] lies, and the step along the keys.
fn along_keys(shape: Broadcast, index: [usize; 4]) -> (usize, usize) {
    let strides = shape.strides();
    (index.iter().zip(strides).map(|(index, stride)| index * stride).sum(), strides[3])
}
