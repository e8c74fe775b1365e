//! Where the rows and keys of an item lie, which keys a row sees, and what is added to its scores.

use std::ops::Range;

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
    offset: i64,
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
                let (first_kv, keys) = tokens(inputs.cu_seqlens_kv);
                (0, first_q, rows, first_kv, keys)
            }
        };
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

    /// Whether scores get a part of their own for each pair, beyond the intervals.
    pub(super) fn has_extra(problem: &Problem) -> bool {
        let v = &problem.visibility;
        v.documents || v.mask.is_some() || problem.bias.is_some() || problem.alibi.is_some() || problem.relative_bias.is_some()
    }

    /// What is added to the scores of row i and these keys: all biases; -inf where the key is hidden, for whatever reason.
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
        if let Some(alibi) = problem.alibi {
            let slope = inputs.alibi_slopes[head];
            // Distances are whole numbers below 2^32: exact in f64, rounded once in f32.
            for (x, j) in to.iter_mut().zip(keys.start as i64..) {
                let distance = (j - position) as f32;
                *x += match alibi {
                    Alibi::Signed => slope * distance,
                    Alibi::Symmetric => -slope * distance.abs(),
                };
            }
        }
        if let Some(max) = problem.relative_bias {
            let max = i64::from(max);
            let table = &inputs.relative_bias[head * (2 * max as usize + 1)..][..2 * max as usize + 1];
            for (x, j) in to.iter_mut().zip(keys.start as i64..) {
                *x += table[((position - j).clamp(-max, max) + max) as usize];
            }
        }
        let hide = |x: &mut f32, hidden: bool| *x = if hidden { f32::NEG_INFINITY } else { *x };
        if v.documents {
            let own = inputs.documents_q[self.batch * d.seq_len_q + i];
            let documents = &inputs.documents_kv[self.batch * d.seq_len_kv + keys.start..][..keys.len()];
            to.iter_mut().zip(documents).for_each(|(x, &document)| hide(x, document != own));
        }
        if let Some(shape) = v.mask {
            match along_keys(shape, index) {
                (at, 0) => to.iter_mut().for_each(|x| hide(x, !inputs.mask[at])),
                (at, _) => to.iter_mut().zip(&inputs.mask[at..]).for_each(|(x, &seen)| hide(x, !seen)),
            }
        }
        let seen = self.interval(problem, i);
        let inside = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        to[..inside(seen.start)].fill(f32::NEG_INFINITY);
        to[inside(seen.end)..].fill(f32::NEG_INFINITY);
    }
}

/// Where [b, h, i, j] lies, and the step along the keys.
fn along_keys(shape: Broadcast, index: [usize; 4]) -> (usize, usize) {
    let strides = shape.strides();
    (index.iter().zip(strides).map(|(index, stride)| index * stride).sum(), strides[3])
}
