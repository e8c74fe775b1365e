//! Matrix products: queries with keys, weights with values.

use super::kernel::SimdKernel;
use super::shared::LINE;
use super::simd::Simd;

/// Initial value that a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Nothing,
    /// The contents of `c`.
    There,
    /// The contents of `c`, scaled by one factor per lane.
    Scaled(&'a [f32]),
}

/// `c[m][lane] = start + sum over k of a[m * row_step + k * depth_step] * b[k][lane]` for m < count, k < depth
///
/// Scores: a = keys, b = query panel, k = dim. Weighted values: a = values along the dims, b = weights, k = key,
/// start = rescaled output. The start is added last, so that many keys are summed in levels, not in one long chain.
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
    pub(super) start: Start<'a>,
    /// Prefetch distance in elements of `b`; `None` disables prefetching.
    pub(super) ahead: Option<usize>,
}

impl SimdKernel for Product<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        assert!(self.count > 0 && self.depth > 0);
        assert!(self.a.len() > (self.count - 1) * self.row_step + (self.depth - 1) * self.depth_step);
        assert!(self.b.len() >= (self.depth - 1) * self.b_step + self.panel);
        assert!(self.c.len() >= (self.count - 1) * self.c_step + self.panel && self.c_step >= self.panel);
        assert!(!matches!(self.start, Start::Scaled(alpha) if alpha.len() < self.panel));
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
    /// Covers the rows of c with tiles of 6, or of 12 in a narrow panel. The last 7 to 11 rows take two tiles.
    #[inline(always)]
    unsafe fn rows<V: Simd, const N: usize>(self) {
        let mut m = 0;
        while m < self.count {
            let left = self.count - m;
            // A narrow panel leaves registers for twice the rows.
            if left >= 12 && 2 * N <= V::VECTORS {
                // SAFETY: passed on from the caller; m + 12 <= count.
                unsafe { self.tile::<V, N, 12>(m) };
                m += 12;
                continue;
            }
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

    /// Computes M rows of c with N vectors each in registers. A step of 1 is passed as a constant, for the compiler.
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
        // SAFETY: m + M <= count, so all indices are below the lengths that `run` checked. c is borrowed mutably by
        // self, and overlaps neither a nor b.
        unsafe {
            let a = self.a.as_ptr().add(m * row_step);
            let b = self.b.as_ptr();
            let c = self.c.as_ptr().cast_mut().add(m * self.c_step);
            let mut sum = [[V::splat(0.0); N]; M];
            for k in 0..self.depth {
                let mut lanes = [V::splat(0.0); N];
                for v in 0..N {
                    lanes[v] = V::load(b.add(k * self.b_step + v * V::LANES));
                    if let Some(ahead) = self.ahead {
                        V::prefetch(b.wrapping_add(k * self.b_step + v * V::LANES + ahead));
                    }
                }
                for r in 0..M {
                    let x = V::splat(*a.add(r * row_step + k * depth_step));
                    for v in 0..N {
                        sum[r][v] = x.mul_add(lanes[v], sum[r][v]);
                    }
                }
            }
            for v in 0..N {
                let alpha = match self.start {
                    Start::Scaled(alpha) => V::load(alpha.as_ptr().add(v * V::LANES)),
                    Start::Nothing | Start::There => V::splat(1.0),
                };
                for r in 0..M {
                    let place = c.add(r * self.c_step + v * V::LANES);
                    if !matches!(self.start, Start::Nothing) {
                        sum[r][v] = V::load(place).mul_add(alpha, sum[r][v]);
                    }
                    sum[r][v].store(place);
                }
            }
        }
    }
}

/// `scores[r][j] = sum over k of query[r][k] * key[j][k]` for few rows, with dims as lanes.
///
/// Elements from `depth` to the next whole vector are read too: they must be 0 in the query and finite in the keys.
/// Rows of scores must have room for a multiple of four keys.
pub(super) struct Dots<'a> {
    pub(super) rows: usize,
    pub(super) keys: usize,
    pub(super) depth: usize,
    pub(super) query: &'a [f32],
    pub(super) query_step: usize,
    pub(super) key: &'a [f32],
    pub(super) key_step: usize,
    /// Prefetch distance in elements of `key`; `None` disables prefetching.
    pub(super) ahead: Option<usize>,
    pub(super) scores: &'a mut [f32],
    pub(super) scores_step: usize,
}

impl SimdKernel for Dots<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(mut self) {
        let width = self.depth.next_multiple_of(V::LANES);
        assert!(self.rows > 0 && self.keys > 0);
        assert!(self.query.len() >= (self.rows - 1) * self.query_step + width);
        assert!(self.key.len() >= (self.keys - 1) * self.key_step + width);
        assert!(self.scores.len() >= (self.rows - 1) * self.scores_step + self.keys.next_multiple_of(4));
        let mut r = 0;
        while r < self.rows {
            // AVX-512 and NEON have registers for four rows and four keys, the others for two rows.
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
            // SAFETY: rows are below r + R <= rows, keys below `keys`; `run` checked that each has whole vectors.
            unsafe {
                let query = self.query.as_ptr().add(r * self.query_step);
                let key = self.key.as_ptr();
                // The last key stands in for keys past it; their scores go to the padding of the row and are not used.
                let at = [0, 1, 2, 3].map(|i| (j + i).min(self.keys - 1) * self.key_step);
                if let (Some(ahead), 0) = (self.ahead, r) {
                    for at in at {
                        for k in (0..self.depth).step_by(LINE) {
                            V::prefetch(key.wrapping_add(at + k + ahead));
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
