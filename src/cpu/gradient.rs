//! Backward arithmetic on a panel's scores: from scores to weights and score gradients, and the dropout mask.

use std::ops::Range;

use super::kernel::SimdKernel;
use super::simd::Simd;
use super::softmax::exp;
use crate::problem::{Dropout, DropoutRule};

/// Replaces scores by weights, and products of output gradients with values by score gradients. Scores are [key][lane],
/// -inf where masked; there both results are 0, whatever the products hold.
pub(super) struct Gradient<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    pub(super) products: &'a mut [f32],
    /// Max of each lane, with `exp(score - max) * factor` as weight. A lane without visible keys has factor 0.
    pub(super) max: &'a [f32],
    pub(super) factor: &'a [f32],
    pub(super) delta: &'a [f32],
    /// Dropout factors of the weights.
    pub(super) dropout_mask: Option<&'a [f32]>,
    pub(super) softcap: Option<Slope<'a>>,
}

/// Data for the derivative of softcap * tanh(x / softcap), which is 1 - tanh².
pub(super) struct Slope<'a> {
    pub(super) softcap: f32,
    /// Capped scores, if biases come after the softcap. Replaced by the biases' gradients, which bypass the softcap.
    pub(super) capped: Option<&'a mut [f32]>,
}

impl SimdKernel for Gradient<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let len = self.scores.len();
        assert!(len.is_multiple_of(self.panel) && self.panel.is_multiple_of(V::LANES) && self.products.len() >= len);
        assert!(self.max.len() >= self.panel && self.factor.len() >= self.panel && self.delta.len() >= self.panel);
        assert!(self.dropout_mask.is_none_or(|dropout_mask| dropout_mask.len() >= len));
        let (softcap, mut capped) = match self.softcap {
            Some(Slope { softcap, capped }) => (Some(softcap), capped),
            None => (None, None),
        };
        assert!(capped.as_ref().is_none_or(|capped| capped.len() >= len));
        // SAFETY: the machine has V's instructions by contract; `at` + LANES <= len, `lane` + LANES <= panel.
        unsafe {
            let (zero, one, lowest, tiny) = (V::splat(0.0), V::splat(1.0), V::splat(f32::MIN), V::splat(f32::MIN_POSITIVE));
            for at in (0..len).step_by(V::LANES) {
                let lane = at % self.panel;
                let factor = V::load(self.factor.as_ptr().add(lane));
                // A lane without visible keys may hold any scores.
                let score = factor.select_less(tiny, V::splat(f32::NEG_INFINITY), V::load(self.scores.as_ptr().add(at)));
                let mut weight = exp(score.sub(V::load(self.max.as_ptr().add(lane)))).mul(factor);
                let mut product = V::load(self.products.as_ptr().add(at));
                let plain = weight;
                if let Some(dropout_mask) = self.dropout_mask {
                    let dropout_mask = V::load(dropout_mask.as_ptr().add(at));
                    weight = weight.mul(dropout_mask);
                    product = product.mul(dropout_mask);
                }
                let mut gradient = plain.mul(product.sub(V::load(self.delta.as_ptr().add(lane))));
                if let Some(softcap) = softcap {
                    let tanh = match &capped {
                        Some(capped) => V::load(capped.as_ptr().add(at)),
                        None => score,
                    };
                    let tanh = tanh.mul(V::splat(1.0 / softcap));
                    if let Some(capped) = &mut capped {
                        score.select_less(lowest, zero, gradient).store(capped.as_mut_ptr().add(at));
                    }
                    gradient = gradient.mul(one.sub(tanh.mul(tanh)));
                }
                score.select_less(lowest, zero, weight).store(self.scores.as_mut_ptr().add(at));
                score.select_less(lowest, zero, gradient).store(self.products.as_mut_ptr().add(at));
            }
        }
    }
}

/// Computes the dropout factors of weights, [key][lane].
pub(super) struct DropoutMask<'a> {
    /// Query row of each lane.
    pub(super) rows: &'a [u32],
    /// batch x num_heads + head of each lane.
    pub(super) pairs: &'a [u32],
    pub(super) keys: Range<usize>,
    pub(super) dropout: Dropout,
    pub(super) drop: DropoutRule,
    pub(super) to: &'a mut [f32],
}

impl SimdKernel for DropoutMask<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        /// Lanes at a time; divides every panel width.
        const N: usize = 4;
        let panel = self.rows.len();
        let (rows, pairs) = (self.rows.as_chunks::<N>().0, self.pairs.as_chunks::<N>().0);
        for quad in self.keys.start / 4..self.keys.end.div_ceil(4) {
            for (chunk, (&rows, &pairs)) in rows.iter().zip(pairs).enumerate() {
                let words = self.dropout.words_of(pairs, rows, quad);
                for (c, words) in words.iter().enumerate() {
                    let key = 4 * quad + c;
                    if !self.keys.contains(&key) {
                        continue;
                    }
                    let to = &mut self.to[(key - self.keys.start) * panel + chunk * N..][..N];
                    for (to, &word) in to.iter_mut().zip(words) {
                        *to = self.drop.scale(word);
                    }
                }
            }
        }
    }
}
