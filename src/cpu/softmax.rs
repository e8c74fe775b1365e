//! From scores to weights: softcap, biases, masking, and the running softmax.

use super::exp::{exp, exp2, tanh};
use super::kernel::SimdKernel;
use super::matrix::PAIRS;
use super::matrix_pack::{panel_offset, panel_words, store_pairs};
use super::simd::Simd;

/// Modifies scores in place before softmax: softcap, additive mask, and the rows' intervals.
pub(super) struct Modify<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    /// Factor on the scores before everything else.
    pub(super) scale: f32,
    pub(super) softcap: Option<f32>,
    pub(super) bias_first: bool,
    /// Additive mask, [key][lane]; -inf masks a pair.
    pub(super) additive_mask: Option<&'a [f32]>,
    /// First visible key of each lane and one past the last, as integers, counted from the first key of `scores`.
    pub(super) bounds: Option<(&'a [f32], &'a [f32])>,
}

impl<'a> Modify<'a> {
    /// Leaves the scores as they are.
    pub(super) const fn nothing(panel: usize, scores: &'a mut [f32]) -> Self {
        Self { panel, scores, scale: 1.0, softcap: None, bias_first: false, additive_mask: None, bounds: None }
    }
}

impl SimdKernel for Modify<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let len = self.scores.len();
        assert!(len.is_multiple_of(self.panel) && self.panel.is_multiple_of(V::LANES));
        assert!(self.additive_mask.is_none_or(|additive_mask| additive_mask.len() >= len));
        assert!(self.bounds.is_none_or(|(first, end)| first.len() >= self.panel && end.len() >= self.panel));
        // SAFETY: the machine has V's instructions by contract; `at` + LANES <= len, `lane` + LANES <= panel.
        unsafe {
            let masked = V::splat(f32::NEG_INFINITY);
            let lowest = V::splat(f32::MIN);
            let scale = V::splat(self.scale);
            for at in (0..len).step_by(V::LANES) {
                let place = self.scores.as_mut_ptr().add(at);
                let additive_mask = self.additive_mask.map(|additive_mask| V::load(additive_mask.as_ptr().add(at)));
                let mut score = V::load(place).mul(scale);
                if let (true, Some(additive_mask)) = (self.bias_first, additive_mask) {
                    score = score.add(additive_mask);
                }
                let sum = score;
                if let Some(softcap) = self.softcap {
                    let softcap = V::splat(softcap);
                    score = softcap.mul(tanh(score.div(softcap)));
                }
                if let (false, Some(additive_mask)) = (self.bias_first, additive_mask) {
                    score = score.add(additive_mask);
                }
                if let Some(additive_mask) = additive_mask {
                    score = additive_mask.select_less(lowest, masked, score);
                    if self.bias_first {
                        score = sum.select_less(lowest, masked, score);
                    }
                }
                if self.bias_first {
                    score = sum.select_less(lowest, masked, score);
                }
                if let Some((first, end)) = self.bounds {
                    let lane = at % self.panel;
                    let key = V::splat((at / self.panel) as f32);
                    score = key.select_less(V::load(first.as_ptr().add(lane)), masked, score);
                    score = key.select_less(V::load(end.as_ptr().add(lane)), score, masked);
                }
                score.store(place);
            }
        }
    }
}

/// One step of the running softmax: folds the scores into the running max and running sum, replaces them by
/// `exp(score - max)`, and sets `alpha` to the factor on earlier sums. `max` starts at `f32::MIN`, `sum` at 0.
///
/// A *loose* step keeps `max` where the sum of each lane's new weights is at most [`MOST_LOOSE`], as FlashAttention-4
/// does: earlier sums then stay as they are, and the max need not be known before the weights. Relative errors of its
/// weights: 2^-13 in one part, 2^-18 in two, and that of [`exp`] in three, all beside 2^-22 of the score's magnitude.
pub(super) struct Softmax<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    /// Factor on the scores.
    pub(super) scale: f32,
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) alpha: &'a mut [f32],
    /// Place for the weights as the matrix b of a product, and their number of parts. They do not replace the scores then.
    pub(super) packed: Option<(&'a mut [f32], usize)>,
    /// True if a step of packed weights may be loose. Set to true if it was.
    pub(super) loose: &'a mut bool,
}

/// Largest sum of a lane's weights in a loose step.
const MOST_LOOSE: f32 = 65536.0;
/// Limit on the magnitude of a max for a loose step.
const MODERATE: f32 = 65536.0;

impl SimdKernel for Softmax<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let len = self.scores.len();
        assert!(len.is_multiple_of(self.panel));
        assert!(self.max.len() >= self.panel && self.sum.len() >= self.panel && self.alpha.len() >= self.panel);
        let packed = self.packed.as_ref();
        assert!(packed.is_none_or(|(to, parts)| to.len() >= panel_words(*parts, len / self.panel, self.panel)));
        assert!(packed.is_some() || !*self.loose, "weights that replace their scores cannot be computed twice");
        // SAFETY: the machine has V's instructions by contract; the lengths were checked.
        unsafe {
            match self.panel / V::LANES {
                1 => self.vectors::<V, 1>(),
                2 => self.vectors::<V, 2>(),
                3 => self.vectors::<V, 3>(),
                4 => self.vectors::<V, 4>(),
                vectors => unreachable!("a panel of {vectors} vectors"),
            }
        }
    }
}

impl Softmax<'_> {
    #[inline(always)]
    unsafe fn vectors<V: Simd, const N: usize>(mut self) {
        let is_scaled = self.scale != 1.0;
        let parts = self.packed.as_ref().map_or(0, |(_, parts)| *parts);
        // SAFETY: passed on from the caller.
        unsafe {
            *self.loose = *self.loose
                && match parts {
                    1 => self.loose_step::<V, N, 1>(),
                    2 => self.loose_step::<V, N, 2>(),
                    _ => self.loose_step::<V, N, 3>(),
                };
            match parts {
                _ if *self.loose => {}
                0 if is_scaled => self.parts::<V, N, 0, true>(),
                0 => self.parts::<V, N, 0, false>(),
                1 if is_scaled => self.parts::<V, N, 1, true>(),
                1 => self.parts::<V, N, 1, false>(),
                2 if is_scaled => self.parts::<V, N, 2, true>(),
                2 => self.parts::<V, N, 2, false>(),
                _ if is_scaled => self.parts::<V, N, 3, true>(),
                _ => self.parts::<V, N, 3, false>(),
            }
        }
    }

    /// Tries a loose step. Changes nothing but the place of the weights if it returns false.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "max and sum stay in registers only if every index is a constant")]
    unsafe fn loose_step<V: Simd, const N: usize, const PARTS: usize>(&mut self) -> bool {
        // SAFETY: every index is below the lengths that `run` checked.
        unsafe {
            let keys = self.scores.len() / self.panel;
            let Some((to, _)) = &mut self.packed else { return false };
            let (to, step) = (to.as_mut_ptr(), panel_words(1, keys, self.panel));
            let scale = V::splat(self.scale * std::f32::consts::LOG2_E);
            let mut max = [V::splat(0.0); N];
            for v in 0..N {
                let old = V::load(self.max.as_ptr().add(v * V::LANES));
                if old.any_less(V::splat(-MODERATE)) || V::splat(MODERATE).any_less(old) {
                    return false;
                }
                max[v] = old.mul(V::splat(-std::f32::consts::LOG2_E));
            }
            let scores = self.scores.as_ptr();
            let exponent = |k: usize, v: usize| V::load(scores.add((k * N + v) * V::LANES)).mul_add(scale, max[v]);
            let mut sum = [V::splat(0.0); N];
            for pair in 0..keys.next_multiple_of(2 * PAIRS) / 2 {
                for v in 0..N {
                    let (mut even, mut odd) = (V::splat(0.0), V::splat(0.0));
                    if 2 * pair < keys {
                        even = loose_weight::<V, PARTS>(exponent(2 * pair, v));
                        sum[v] = sum[v].add(even);
                    }
                    if 2 * pair + 1 < keys {
                        odd = loose_weight::<V, PARTS>(exponent(2 * pair + 1, v));
                        sum[v] = sum[v].add(odd);
                    }
                    store_pairs(even, odd, PARTS, to.add(panel_offset(pair, v * V::LANES, N * V::LANES)), step);
                }
            }
            for v in 0..N {
                if V::splat(MOST_LOOSE).any_less(sum[v]) {
                    return false;
                }
            }
            for v in 0..N {
                let at = self.sum.as_mut_ptr().add(v * V::LANES);
                V::load(at).add(sum[v]).store(at);
            }
            true
        }
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "max and sum stay in registers only if every index is a constant")]
    unsafe fn parts<V: Simd, const N: usize, const PARTS: usize, const SCALED: bool>(self) {
        // SAFETY: every index is below the lengths that `run` checked.
        unsafe {
            let keys = self.scores.len() / self.panel;
            let scores = self.scores.as_mut_ptr();
            let scale = V::splat(self.scale);
            let score = |k: usize, v: usize| {
                let score = V::load(scores.add((k * N + v) * V::LANES));
                if SCALED { score.mul(scale) } else { score }
            };
            // Rounding keeps the order: the max of scaled scores is the scaled max, or the scaled min by a negative factor.
            let size = V::splat(self.scale.abs());
            let sign = V::splat(self.scale.signum());
            let mut max = [V::splat(f32::MIN); N];
            if SCALED && self.scale < 0.0 {
                for k in 0..keys {
                    for v in 0..N {
                        max[v] = V::load(scores.add((k * N + v) * V::LANES)).mul(sign).max(max[v]);
                    }
                }
            } else {
                for k in 0..keys {
                    for v in 0..N {
                        // A NaN score need not get into max; it makes the sum NaN.
                        max[v] = V::load(scores.add((k * N + v) * V::LANES)).max(max[v]);
                    }
                }
            }
            for v in 0..N {
                let old = V::load(self.max.as_ptr().add(v * V::LANES));
                max[v] = if SCALED { max[v].mul(size) } else { max[v] }.max(old);
            }
            let mut sum = [V::splat(0.0); N];
            let (to, step) = match self.packed {
                Some((to, _)) => (to.as_mut_ptr(), panel_words(1, keys, self.panel)),
                None => (scores, 0),
            };
            for k in (0..keys).step_by(2) {
                for v in 0..N {
                    let even = exp(score(k, v).sub(max[v]));
                    sum[v] = sum[v].add(even);
                    let mut odd = V::splat(0.0);
                    if k + 1 < keys {
                        odd = exp(score(k + 1, v).sub(max[v]));
                        sum[v] = sum[v].add(odd);
                    }
                    if PARTS > 0 {
                        store_pairs(even, odd, PARTS, to.add(panel_offset(k / 2, v * V::LANES, N * V::LANES)), step);
                        continue;
                    }
                    even.store(to.add((k * N + v) * V::LANES));
                    if k + 1 < keys {
                        odd.store(to.add(((k + 1) * N + v) * V::LANES));
                    }
                }
            }
            if PARTS > 0 {
                for pair in keys.div_ceil(2)..keys.next_multiple_of(2 * PAIRS) / 2 {
                    for v in 0..N {
                        let zero = V::splat(0.0);
                        store_pairs(zero, zero, PARTS, to.add(panel_offset(pair, v * V::LANES, N * V::LANES)), step);
                    }
                }
            }
            for v in 0..N {
                let at = v * V::LANES;
                let alpha = exp(V::load(self.max.as_ptr().add(at)).sub(max[v]));
                alpha.store(self.alpha.as_mut_ptr().add(at));
                max[v].store(self.max.as_mut_ptr().add(at));
                V::load(self.sum.as_ptr().add(at)).mul_add(alpha, sum[v]).store(self.sum.as_mut_ptr().add(at));
            }
        }
    }
}

/// Variant of [`Softmax`] for rows of scores that run along the lanes, padded with -inf to whole vectors.
pub(super) struct RowSoftmax<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) scores_step: usize,
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) alpha: &'a mut [f32],
}

impl SimdKernel for RowSoftmax<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        assert!(self.scores_step.is_multiple_of(V::LANES));
        let rows = self.scores.chunks_exact_mut(self.scores_step).zip(self.max).zip(self.sum).zip(self.alpha);
        for (((row, max), sum), alpha) in rows {
            // SAFETY: the machine has V's instructions by contract; a row is whole vectors, and so is `lanes`.
            unsafe {
                let mut lanes = [0.0f32; 16];
                let mut vector = V::splat(*max);
                for at in (0..row.len()).step_by(V::LANES) {
                    vector = V::load(row.as_ptr().add(at)).max(vector);
                }
                vector.store(lanes.as_mut_ptr());
                let new = lanes[..V::LANES].iter().fold(*max, |a, &b| a.max(b));
                let mut vector = V::splat(0.0);
                for at in (0..row.len()).step_by(V::LANES) {
                    let place = row.as_mut_ptr().add(at);
                    let weight = exp(V::load(place).sub(V::splat(new)));
                    weight.store(place);
                    vector = vector.add(weight);
                }
                vector.store(lanes.as_mut_ptr());
                *alpha = (*max - new).exp();
                *sum = *sum * *alpha + lanes[..V::LANES].iter().sum::<f32>();
                *max = new;
            }
        }
    }
}

/// Replaces scores by final weights: `exp(score - max) * factor`, 0 where masked.
pub(super) struct Weights<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    pub(super) max: &'a [f32],
    pub(super) factor: &'a [f32],
}

impl SimdKernel for Weights<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        assert!(self.scores.len().is_multiple_of(self.panel) && self.panel.is_multiple_of(V::LANES));
        assert!(self.max.len() >= self.panel && self.factor.len() >= self.panel);
        // SAFETY: the machine has V's instructions by contract; `at` + LANES <= len, `lane` + LANES <= panel.
        unsafe {
            for at in (0..self.scores.len()).step_by(V::LANES) {
                let lane = at % self.panel;
                let place = self.scores.as_mut_ptr().add(at);
                let score = V::load(place);
                let weight = exp(score.sub(V::load(self.max.as_ptr().add(lane)))).mul(V::load(self.factor.as_ptr().add(lane)));
                score.select_less(V::splat(f32::MIN), V::splat(0.0), weight).store(place);
            }
        }
    }
}

/// Replaces scores by weights, and products of output gradients with values by score gradients. Scores are [key][lane],
/// -inf where masked; there both results are 0, whatever the products hold.
pub(super) struct Gradient<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    /// Factor on the scores.
    pub(super) scale: f32,
    pub(super) products: &'a mut [f32],
    /// Max of each lane, with `exp(score - max) * factor` as weight. A lane without visible keys has factor 0.
    pub(super) max: &'a [f32],
    pub(super) factor: &'a [f32],
    pub(super) delta: &'a [f32],
    /// Dropout factors of the weights.
    pub(super) dropout_mask: Option<&'a [f32]>,
    pub(super) softcap: Option<f32>,
    /// Capped scores, if biases or the user's terms come after the softcap. Replaced by gradients that bypass the softcap.
    pub(super) capped: Option<&'a mut [f32]>,
    /// Derivatives of the scores by what they were before the user's terms.
    pub(super) slopes: Option<&'a [f32]>,
}

impl SimdKernel for Gradient<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let len = self.scores.len();
        assert!(len.is_multiple_of(self.panel) && self.panel.is_multiple_of(V::LANES) && self.products.len() >= len);
        assert!(self.max.len() >= self.panel && self.factor.len() >= self.panel && self.delta.len() >= self.panel);
        assert!(self.dropout_mask.is_none_or(|dropout_mask| dropout_mask.len() >= len));
        assert!(self.slopes.is_none_or(|slopes| slopes.len() >= len));
        let Self { softcap, mut capped, .. } = self;
        assert!(capped.as_ref().is_none_or(|capped| capped.len() >= len));
        // SAFETY: the machine has V's instructions by contract; `at` + LANES <= len, `lane` + LANES <= panel.
        unsafe {
            let scale = V::splat(self.scale);
            let (zero, one, lowest, tiny) = (V::splat(0.0), V::splat(1.0), V::splat(f32::MIN), V::splat(f32::MIN_POSITIVE));
            for at in (0..len).step_by(V::LANES) {
                let lane = at % self.panel;
                let factor = V::load(self.factor.as_ptr().add(lane));
                // A lane without visible keys may hold any scores.
                let score = factor.select_less(tiny, V::splat(f32::NEG_INFINITY), V::load(self.scores.as_ptr().add(at)).mul(scale));
                let mut weight = exp(score.sub(V::load(self.max.as_ptr().add(lane)))).mul(factor);
                let mut product = V::load(self.products.as_ptr().add(at));
                let plain = weight;
                if let Some(dropout_mask) = self.dropout_mask {
                    let dropout_mask = V::load(dropout_mask.as_ptr().add(at));
                    weight = weight.mul(dropout_mask);
                    product = product.mul(dropout_mask);
                }
                let mut gradient = plain.mul(product.sub(V::load(self.delta.as_ptr().add(lane))));
                if let Some(slopes) = self.slopes {
                    gradient = gradient.mul(V::load(slopes.as_ptr().add(at)));
                }
                if let Some(softcap) = softcap {
                    // The derivative of softcap * tanh(x / softcap) is 1 - tanh².
                    let tanh = capped.as_ref().map_or(score, |capped| V::load(capped.as_ptr().add(at)));
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

/// 2^x, as exact as a weight of so many parts needs to be. At least 2^127 where x is more.
#[inline(always)]
unsafe fn loose_weight<V: Simd, const PARTS: usize>(x: V) -> V {
    // SAFETY: passed on from the caller.
    unsafe {
        let most = V::splat(127.0);
        let x = if V::SATURATES { x } else { most.select_less(x, most, x) };
        match PARTS {
            1 => exp2::<V, 3>(x),
            2 => exp2::<V, 4>(x),
            _ => exp2::<V, 5>(x),
        }
    }
}
