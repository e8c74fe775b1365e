//! The arithmetic of the fast path, written once for every instruction set.
//!
//! All of it works on *panels*: arrays [n][panel] in which the lanes of a vector are query rows. Scores are held as
//! [key][query row], outputs as [dim][query row]. So the maximum and the sum of a row never cross lanes, and both matrix
//! products are one kernel, [`Product`], that reads keys and values where they lie and broadcasts each of their numbers.

use half::{bf16, f16};

use super::simd::{Isa, Simd};

/// A computation that [`Isa::run`] compiles for the instruction set at hand.
pub(super) trait Kernel {
    /// # Safety
    /// The machine has the instruction set of `V`.
    unsafe fn run<V: Simd>(self);
}

impl Isa {
    /// Runs a kernel with this instruction set.
    pub(super) fn run(self, kernel: impl Kernel) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m256, __m512};
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512(kernel: impl Kernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<__m512>() }
            }
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2(kernel: impl Kernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<__m256>() }
            }
            match self {
                // SAFETY: only `Isa::available` hands out this value, after a check of the machine.
                Self::Avx512 => return unsafe { avx512(kernel) },
                // SAFETY: as above.
                Self::Avx2 => return unsafe { avx2(kernel) },
                Self::Portable => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            #[target_feature(enable = "neon")]
            unsafe fn neon(kernel: impl Kernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<std::arch::aarch64::float32x4_t>() }
            }
            match self {
                // SAFETY: only `Isa::available` hands out this value, after a check of the machine.
                Self::Neon => return unsafe { neon(kernel) },
                Self::Portable => {}
            }
        }
        // SAFETY: arrays of f32 need no instruction set.
        unsafe { kernel.run::<[f32; 4]>() }
    }

    /// Lanes of a vector.
    pub(super) fn lanes(self) -> usize {
        match self {
            Self::Portable => <[f32; 4]>::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::arch::x86_64::__m256::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => std::arch::x86_64::__m512::LANES,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::aarch64::float32x4_t::LANES,
        }
    }

    /// Query rows of the widest panel.
    pub(super) fn panel(self) -> usize {
        self.lanes()
            * match self {
                Self::Portable => <[f32; 4]>::VECTORS,
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => std::arch::x86_64::__m256::VECTORS,
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => std::arch::x86_64::__m512::VECTORS,
                #[cfg(target_arch = "aarch64")]
                Self::Neon => std::arch::aarch64::float32x4_t::VECTORS,
            }
    }
}

/// `c[m][lane] = alpha[lane] * c[m][lane] + sum over k of a[m * row_step + k * depth_step] * b[k][lane]`
///
/// for m < count, k < depth. Without `alpha`, c is only written. Scores: a = keys, b = the query panel, k = dim.
/// Weighted values: a = values read along the dims, b = weights, k = key, alpha = the rescaling of what is there.
pub(super) struct Product<'a> {
    pub(super) panel: usize,
    pub(super) count: usize,
    pub(super) depth: usize,
    pub(super) a: &'a [f32],
    pub(super) row_step: usize,
    pub(super) depth_step: usize,
    pub(super) b: &'a [f32],
    pub(super) b_step: usize,
    pub(super) c: &'a mut [f32],
    pub(super) c_step: usize,
    pub(super) alpha: Option<&'a [f32]>,
}

impl Kernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        assert!(self.count > 0 && self.depth > 0);
        assert!(self.a.len() > (self.count - 1) * self.row_step + (self.depth - 1) * self.depth_step);
        assert!(self.b.len() >= (self.depth - 1) * self.b_step + self.panel);
        assert!(self.c.len() >= (self.count - 1) * self.c_step + self.panel && self.c_step >= self.panel);
        assert!(self.alpha.is_none_or(|alpha| alpha.len() >= self.panel));
        // SAFETY: the machine has V's instructions by contract; the lengths were checked.
        unsafe {
            match self.panel / V::LANES {
                1 => self.rows::<V, 1>(),
                2 => self.rows::<V, 2>(),
                3 => self.rows::<V, 3>(),
                4 => self.rows::<V, 4>(),
                vectors => unreachable!("a panel of {vectors} vectors"),
            }
        }
    }
}

impl Product<'_> {
    /// Six rows of c at a time; the last ones in two even parts.
    #[inline(always)]
    unsafe fn rows<V: Simd, const N: usize>(self) {
        let mut m = 0;
        while m < self.count {
            let left = self.count - m;
            let step = if left >= 12 || left == 6 { 6 } else { left.div_ceil(2).max(left.min(5)) };
            // SAFETY: passed on from the caller; m + step <= count.
            unsafe {
                match step {
                    1 => self.tile::<V, N, 1>(m),
                    2 => self.tile::<V, N, 2>(m),
                    3 => self.tile::<V, N, 3>(m),
                    4 => self.tile::<V, N, 4>(m),
                    5 => self.tile::<V, N, 5>(m),
                    _ => self.tile::<V, N, 6>(m),
                }
            }
            m += step;
        }
    }

    /// M rows of c with N vectors each, held in registers. One of the two steps is made a constant for the compiler.
    #[inline(always)]
    unsafe fn tile<V: Simd, const N: usize, const M: usize>(&self, m: usize) {
        // SAFETY: passed on from the caller.
        unsafe {
            if self.row_step == 1 {
                self.tile_at::<V, N, M>(m, 1, self.depth_step);
            } else if self.depth_step == 1 {
                self.tile_at::<V, N, M>(m, self.row_step, 1);
            } else {
                self.tile_at::<V, N, M>(m, self.row_step, self.depth_step);
            }
        }
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the accumulators stay in registers only if every index is a constant")]
    unsafe fn tile_at<V: Simd, const N: usize, const M: usize>(&self, m: usize, row_step: usize, depth_step: usize) {
        // SAFETY: m + M <= count, so all places are below the lengths that `run` checked. c is borrowed mutably by self,
        // and overlaps neither a nor b.
        unsafe {
            let a = self.a.as_ptr().add(m * row_step);
            let b = self.b.as_ptr();
            let c = self.c.as_ptr().cast_mut().add(m * self.c_step);
            let mut sum = [[V::splat(0.0); N]; M];
            if let Some(alpha) = self.alpha {
                for v in 0..N {
                    let alpha = V::load(alpha.as_ptr().add(v * V::LANES));
                    for r in 0..M {
                        sum[r][v] = V::load(c.add(r * self.c_step + v * V::LANES)).mul(alpha);
                    }
                }
            }
            for k in 0..self.depth {
                let mut lanes = [V::splat(0.0); N];
                for v in 0..N {
                    lanes[v] = V::load(b.add(k * self.b_step + v * V::LANES));
                }
                for r in 0..M {
                    let x = V::splat(*a.add(r * row_step + k * depth_step));
                    for v in 0..N {
                        sum[r][v] = x.mul_add(lanes[v], sum[r][v]);
                    }
                }
            }
            for r in 0..M {
                for v in 0..N {
                    sum[r][v].store(c.add(r * self.c_step + v * V::LANES));
                }
            }
        }
    }
}

/// `scores[r][j] = sum over k of query[r][k] * key[j][k]`, for few rows: here the lanes are dims.
///
/// Numbers between `depth` and the next whole vector are read too, and must be 0 in the query and finite in the keys.
/// Rows of scores have room for a multiple of four keys.
pub(super) struct Dots<'a> {
    pub(super) rows: usize,
    pub(super) keys: usize,
    pub(super) depth: usize,
    pub(super) query: &'a [f32],
    pub(super) query_step: usize,
    pub(super) key: &'a [f32],
    pub(super) key_step: usize,
    /// Rows that are read next, and their steps: as many and as wide as the keys. They come to the cache meanwhile.
    pub(super) next: &'a [(*const f32, usize)],
    pub(super) scores: &'a mut [f32],
    pub(super) scores_step: usize,
}

impl Kernel for Dots<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(mut self) {
        let width = self.depth.next_multiple_of(V::LANES);
        assert!(self.rows > 0 && self.keys > 0);
        assert!(self.query.len() >= (self.rows - 1) * self.query_step + width);
        assert!(self.key.len() >= (self.keys - 1) * self.key_step + width);
        assert!(self.scores.len() >= (self.rows - 1) * self.scores_step + self.keys.next_multiple_of(4));
        let mut r = 0;
        while r < self.rows {
            // Four rows and four keys fill the registers of AVX-512 and NEON.
            let step = (self.rows - r).min(V::VECTORS);
            // SAFETY: the machine has V's instructions by contract; r + step <= rows, and the lengths were checked.
            unsafe {
                match step {
                    1 => self.tile::<V, 1>(r),
                    2 => self.tile::<V, 2>(r),
                    3 => self.tile::<V, 3>(r),
                    _ => self.tile::<V, 4>(r),
                }
            }
            r += step;
        }
    }
}

impl Dots<'_> {
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the accumulators stay in registers only if every index is a constant")]
    unsafe fn tile<V: Simd, const R: usize>(&mut self, r: usize) {
        for j in (0..self.keys).step_by(4) {
            // SAFETY: rows are below r + R <= rows, keys below `keys`; each has whole vectors up to `depth`, as `run` checked.
            unsafe {
                let query = self.query.as_ptr().add(r * self.query_step);
                let key = self.key.as_ptr();
                // Past the last key, that one again: its scores go where there is room, and are not used.
                let at = [0, 1, 2, 3].map(|i| (j + i).min(self.keys - 1) * self.key_step);
                if r == 0 {
                    for i in 0..4 {
                        for &(next, step) in self.next {
                            for k in (0..self.depth).step_by(16) {
                                V::prefetch(next.wrapping_add((j + i) * step + k));
                            }
                        }
                    }
                }
                let mut sum = [[V::splat(0.0); 4]; R];
                for k in (0..self.depth).step_by(V::LANES) {
                    let mut keys = [V::splat(0.0); 4];
                    for i in 0..4 {
                        keys[i] = V::load(key.add(at[i] + k));
                    }
                    for row in 0..R {
                        let query = V::load(query.add(row * self.query_step + k));
                        for i in 0..4 {
                            sum[row][i] = query.mul_add(keys[i], sum[row][i]);
                        }
                    }
                }
                for row in 0..R {
                    V::store_sums(sum[row], self.scores.as_mut_ptr().add((r + row) * self.scores_step + j));
                }
            }
        }
    }
}

/// As [`Softmax`], for scores of which each row lies along the lanes; -inf fills the rows up to whole vectors.
pub(super) struct RowSoftmax<'a> {
    pub(super) scores: &'a mut [f32],
    pub(super) scores_step: usize,
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) alpha: &'a mut [f32],
}

impl Kernel for RowSoftmax<'_> {
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

/// What happens to scores before softmax, in place: softcap, the additive part, and hiding.
pub(super) struct Modify<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    pub(super) softcap: Option<f32>,
    pub(super) bias_first: bool,
    /// Like scores; -inf hides.
    pub(super) extra: Option<&'a [f32]>,
    /// Of each lane the first visible key and one past the last, as whole numbers, counted from the scores' first.
    pub(super) bounds: Option<(&'a [f32], &'a [f32])>,
}

impl Kernel for Modify<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let len = self.scores.len();
        assert!(len.is_multiple_of(self.panel) && self.panel.is_multiple_of(V::LANES));
        assert!(self.extra.is_none_or(|extra| extra.len() >= len));
        assert!(self.bounds.is_none_or(|(first, end)| first.len() >= self.panel && end.len() >= self.panel));
        // SAFETY: the machine has V's instructions by contract; `at` + LANES <= len, `lane` + LANES <= panel.
        unsafe {
            let hidden = V::splat(f32::NEG_INFINITY);
            let lowest = V::splat(f32::MIN);
            for at in (0..len).step_by(V::LANES) {
                let place = self.scores.as_mut_ptr().add(at);
                let extra = self.extra.map(|extra| V::load(extra.as_ptr().add(at)));
                let mut score = V::load(place);
                if let (true, Some(extra)) = (self.bias_first, extra) {
                    score = score.add(extra);
                }
                if let Some(softcap) = self.softcap {
                    let softcap = V::splat(softcap);
                    score = softcap.mul(tanh(score.div(softcap)));
                }
                if let (false, Some(extra)) = (self.bias_first, extra) {
                    score = score.add(extra);
                }
                if let Some(extra) = extra {
                    score = extra.select_less(lowest, hidden, score);
                }
                if let Some((first, end)) = self.bounds {
                    let lane = at % self.panel;
                    let key = V::splat((at / self.panel) as f32);
                    score = key.select_less(V::load(first.as_ptr().add(lane)), hidden, score);
                    score = key.select_less(V::load(end.as_ptr().add(lane)), score, hidden);
                }
                score.store(place);
            }
        }
    }
}

/// One step of the running softmax: `max` and `sum` take in the scores, which become `exp(score - max)`;
/// `alpha` is the factor on what was summed before. `max` starts at `f32::MIN`, `sum` at 0.
pub(super) struct Softmax<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) alpha: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        assert!(self.scores.len().is_multiple_of(self.panel));
        assert!(self.max.len() >= self.panel && self.sum.len() >= self.panel && self.alpha.len() >= self.panel);
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
    #[expect(clippy::needless_range_loop, reason = "max and sum stay in registers only if every index is a constant")]
    unsafe fn vectors<V: Simd, const N: usize>(self) {
        // SAFETY: every place is below the lengths that `run` checked.
        unsafe {
            let keys = self.scores.len() / self.panel;
            let scores = self.scores.as_mut_ptr();
            let mut max = [V::splat(f32::MIN); N];
            for v in 0..N {
                max[v] = V::load(self.max.as_ptr().add(v * V::LANES));
            }
            for k in 0..keys {
                for v in 0..N {
                    // A NaN score does not get into max; it shows in the sum.
                    max[v] = V::load(scores.add((k * N + v) * V::LANES)).max(max[v]);
                }
            }
            let mut sum = [V::splat(0.0); N];
            for k in 0..keys {
                for v in 0..N {
                    let place = scores.add((k * N + v) * V::LANES);
                    let weight = exp(V::load(place).sub(max[v]));
                    weight.store(place);
                    sum[v] = sum[v].add(weight);
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

/// Final weights in place of scores: `exp(score - max) * factor`, 0 where hidden.
pub(super) struct Weights<'a> {
    pub(super) panel: usize,
    pub(super) scores: &'a mut [f32],
    pub(super) max: &'a [f32],
    pub(super) factor: &'a [f32],
}

impl Kernel for Weights<'_> {
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

/// Rows of 16-bit numbers as f32, exactly: `to[r * to_step + c] = from[r * from_step + c]` for r < rows, c < width.
pub(super) struct Widen<'a, T> {
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) from: &'a [T],
    pub(super) from_step: usize,
    pub(super) to: &'a mut [f32],
    pub(super) to_step: usize,
}

impl Kernel for Widen<'_, f16> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        for r in 0..self.rows {
            let from = &self.from[r * self.from_step..][..self.width];
            let to = &mut self.to[r * self.to_step..][..self.width];
            let whole = self.width - self.width % V::LANES;
            for c in (0..whole).step_by(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; c + LANES <= width.
                unsafe { V::widen_f16(from.as_ptr().add(c)).store(to.as_mut_ptr().add(c)) };
            }
            for c in whole..self.width {
                to[c] = from[c].to_f32();
            }
        }
    }
}

impl Kernel for Widen<'_, bf16> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        for r in 0..self.rows {
            let from = &self.from[r * self.from_step..][..self.width];
            let to = &mut self.to[r * self.to_step..][..self.width];
            for c in 0..self.width {
                to[c] = f32::from_bits(u32::from(from[c].to_bits()) << 16);
            }
        }
    }
}

/// `to[c * to_step + r] = from[r * from_step + c]` for r < rows, c < columns.
pub(super) struct Transpose<'a> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) from: &'a [f32],
    pub(super) from_step: usize,
    pub(super) to: &'a mut [f32],
    pub(super) to_step: usize,
}

impl Kernel for Transpose<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { rows, columns, from, from_step, to, to_step } = self;
        assert!(rows > 0 && columns > 0);
        assert!(from.len() >= (rows - 1) * from_step + columns && to.len() >= (columns - 1) * to_step + rows);
        let (whole_rows, whole_columns) = (rows - rows % V::LANES, columns - columns % V::LANES);
        for r in (0..whole_rows).step_by(V::LANES) {
            for c in (0..whole_columns).step_by(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; the block ends inside what was checked.
                unsafe { V::transpose(from.as_ptr().add(r * from_step + c), from_step, to.as_mut_ptr().add(c * to_step + r), to_step) };
            }
        }
        for r in 0..rows {
            let first = if r < whole_rows { whole_columns } else { 0 };
            for c in first..columns {
                to[c * to_step + r] = from[r * from_step + c];
            }
        }
    }
}

/// e^x for x <= 0, with a relative error of at most 2^-23; exactly 0 from -88 down, where the result is subnormal. NaN stays.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a polynomial of degree 6, minimax in the relative error (3e-9).
/// n is rounded, and moved into the exponent, by adding 1.5 * 2^23 + 127: the low bits of that sum are n + 127.
#[inline(always)]
unsafe fn exp<V: Simd>(x: V) -> V {
    const ROUND: f32 = 12_582_912.0 + 127.0;
    // The high part has 9 bits: its product with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // SAFETY: passed on from the caller.
    unsafe {
        let x = V::splat(-88.0).max(x);
        let shifted = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
        let n = shifted.sub(V::splat(ROUND));
        let r = n.mul_add(V::splat(-LN_2_HIGH), x);
        let r = n.mul_add(V::splat(-LN_2_LOW), r);
        let mut power = V::splat(0.001_381_453_6);
        for coefficient in [0.008_368_745, 0.041_668_393, 0.166_665_21, 0.499_999_94, 1.0, 1.0] {
            power = power.mul_add(r, V::splat(coefficient));
        }
        power.mul(shifted.exponent_from_low_bits())
    }
}

/// tanh(x), to within 2e-7: near 0 by the odd polynomial of Cephes, else by (1 - e^-2|x|) / (1 + e^-2|x|).
#[inline(always)]
unsafe fn tanh<V: Simd>(x: V) -> V {
    // SAFETY: passed on from the caller.
    unsafe {
        let zero = V::splat(0.0);
        let one = V::splat(1.0);
        let size = x.max(zero.sub(x));
        let e = exp(size.mul(V::splat(-2.0)));
        let far = one.sub(e).div(one.add(e));
        let square = size.mul(size);
        let mut near = V::splat(-5.704_988_7e-3);
        for coefficient in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
            near = near.mul_add(square, V::splat(coefficient));
        }
        let near = near.mul(square).mul_add(size, size);
        let result = size.select_less(V::splat(0.625), near, far);
        x.select_less(zero, zero.sub(result), result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies exp or tanh to whole vectors.
    struct Map<'a>(&'a mut [f32], bool);

    impl Kernel for Map<'_> {
        #[inline(always)]
        unsafe fn run<V: Simd>(self) {
            for chunk in self.0.chunks_exact_mut(V::LANES) {
                // SAFETY: the machine has V's instructions by contract; the chunk is a vector long.
                unsafe {
                    let x = V::load(chunk.as_ptr());
                    if self.1 { exp(x) } else { tanh(x) }.store(chunk.as_mut_ptr());
                }
            }
        }
    }

    #[test]
    fn exp_is_right() {
        let x: Vec<f32> = (0..1 << 20).map(|i| -87.3 * (i as f32 / (1 << 20) as f32)).collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            isa.run(Map(&mut y, true));
            let error = |(&x, &y): (&f32, &f32)| (f64::from(y) / f64::from(x).exp() - 1.0).abs();
            let worst = x.iter().zip(&y).map(error).fold(0.0, f64::max);
            assert!(worst <= f64::from(f32::EPSILON), "{isa:?}: {worst:e}");
            let mut special = [0.0, -88.0, -1e30, f32::NEG_INFINITY, f32::NAN, -0.0, f32::MIN, -500.0].repeat(2);
            isa.run(Map(&mut special, true));
            assert_eq!(special[..4], [1.0, 0.0, 0.0, 0.0], "{isa:?}");
            assert!(special[4].is_nan() && special[5..8] == [1.0, 0.0, 0.0], "{isa:?}: {special:?}");
        }
    }

    #[test]
    fn tanh_is_right() {
        let x: Vec<f32> = (0..1 << 18).map(|i| (i as f32 / (1 << 18) as f32 - 0.5) * 40.0).collect();
        for isa in Isa::available() {
            let mut y = x.clone();
            isa.run(Map(&mut y, false));
            let worst = x.iter().zip(&y).map(|(&x, &y)| (f64::from(y) - f64::from(x).tanh()).abs()).fold(0.0, f64::max);
            assert!(worst <= 2e-7, "{isa:?}: {worst:e}");
            let mut special = [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, 1e-30, 0.0].repeat(2);
            isa.run(Map(&mut special, false));
            assert_eq!(special[..3], [0.0, 1.0, -1.0], "{isa:?}");
            assert!(special[3].is_nan() && special[4..8] == [1.0, -1.0, 1e-30, 0.0], "{isa:?}: {special:?}");
        }
    }
}
