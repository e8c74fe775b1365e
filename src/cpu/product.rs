//! Matrix products: queries with keys, weights with values.

use super::kernel::SimdKernel;
use super::pack::{Element, Rows};
use super::shared::LINE;
use super::simd::Simd;

/// Elements of a cache line.
const fn line<T>() -> usize {
    LINE * size_of::<f32>() / size_of::<T>()
}

/// Initial value that a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    Nothing,
    /// The contents of `c`.
    There,
    /// The contents of `c`, scaled by one factor per lane.
    Scaled(&'a [f32]),
}

/// `c[m][lane] = start + sum over k of a[m][k] * b[k][lane]` for lane < width
///
/// Scores: a = keys, b = query panel, k = dim. Weighted values: a = values along the dims, b = weights, k = key,
/// start = rescaled output. The start is added last, so that many keys are summed in levels, not in one long chain.
pub(super) struct Product<'a, T = f32> {
    pub(super) a: Rows<'a>,
    /// True if a[m][k] is element m of row k.
    pub(super) transposed: bool,
    pub(super) b: &'a [T],
    pub(super) b_step: usize,
    pub(super) c: &'a mut [f32],
    pub(super) c_step: usize,
    /// A multiple of the number of lanes.
    pub(super) width: usize,
    pub(super) start: Start<'a>,
    /// Prefetch distance in elements of `b`; `None` disables prefetching.
    pub(super) ahead: Option<usize>,
}

impl<'a, T> Product<'a, T> {
    /// Creates a product whose b and c are contiguous rows of `width` lanes.
    #[inline]
    pub(super) fn new(a: Rows<'a>, width: usize, b: &'a [T], c: &'a mut [f32], start: Start<'a>) -> Self {
        Self { a, transposed: false, b, b_step: width, c, c_step: width, width, start, ahead: None }
    }

    /// Numbers of rows and columns of a.
    fn shape(&self) -> (usize, usize) {
        if self.transposed { (self.a.width, self.a.count) } else { (self.a.count, self.a.width) }
    }
}

impl<T: Element> SimdKernel for Product<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (rows, columns) = self.shape();
        assert!(rows > 0 && columns > 0 && self.width.is_multiple_of(V::LANES));
        assert!(self.a.data.len() >= (self.a.count - 1) * self.a.step + self.a.width);
        assert!(self.b.len() >= (columns - 1) * self.b_step + self.width);
        assert!(self.c.len() >= (rows - 1) * self.c_step + self.width && self.c_step >= self.width);
        assert!(!matches!(self.start, Start::Scaled(alpha) if alpha.len() < self.width));
        let c = self.c.as_mut_ptr();
        for lane in (0..self.width).step_by(V::LANES * V::VECTORS) {
            // SAFETY: the machine has V's instructions by contract; the lengths were checked.
            unsafe {
                match (self.width - lane) / V::LANES {
                    1 => self.rows::<V, 1>(lane, c),
                    2 => self.rows::<V, 2>(lane, c),
                    3 if V::VECTORS > 2 => self.rows::<V, 3>(lane, c),
                    _ if V::VECTORS > 2 => self.rows::<V, 4>(lane, c),
                    _ => self.rows::<V, 2>(lane, c),
                }
            }
        }
    }
}

impl<T: Element> Product<'_, T> {
    /// Covers the rows of c with tiles of 6, or of 12 where N vectors are few. The last 7 to 11 rows take two tiles.
    #[inline(always)]
    unsafe fn rows<V: Simd, const N: usize>(&self, lane: usize, c: *mut f32) {
        let (rows, mut m) = (self.shape().0, 0);
        while m < rows {
            let left = rows - m;
            // Few vectors leave registers for twice the rows.
            let step = match left {
                12.. if 2 * N <= V::VECTORS => 12,
                6 | 12.. => 6,
                _ => left.div_ceil(2).max(left.min(5)),
            };
            // SAFETY: passed on from the caller; m + step <= rows.
            unsafe {
                match step {
                    1 => self.tile::<V, N, 1>(m, lane, c),
                    2 => self.tile::<V, N, 2>(m, lane, c),
                    3 => self.tile::<V, N, 3>(m, lane, c),
                    4 => self.tile::<V, N, 4>(m, lane, c),
                    5 => self.tile::<V, N, 5>(m, lane, c),
                    12 if 2 * N <= V::VECTORS => self.tile::<V, N, 12>(m, lane, c),
                    _ => self.tile::<V, N, 6>(m, lane, c),
                }
            }
            m += step;
        }
    }

    /// Computes M rows of c with N vectors each in registers. A step of 1 is passed as a constant, for the compiler.
    #[inline(always)]
    unsafe fn tile<V: Simd, const N: usize, const M: usize>(&self, m: usize, lane: usize, c: *mut f32) {
        // SAFETY: passed on from the caller.
        unsafe {
            if self.transposed {
                self.tile_at::<V, N, M>(m, lane, c, (1, self.a.step));
            } else {
                self.tile_at::<V, N, M>(m, lane, c, (self.a.step, 1));
            }
        }
    }

    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the accumulators stay in registers only if every index is a constant")]
    unsafe fn tile_at<V: Simd, const N: usize, const M: usize>(
        &self,
        m: usize,
        lane: usize,
        c: *mut f32,
        (row_step, column_step): (usize, usize),
    ) {
        // SAFETY: m + M <= rows and lane + N * LANES <= width, so all indices are below the lengths that `run` checked.
        unsafe {
            let a = self.a.data.as_ptr().add(m * row_step);
            let b = self.b.as_ptr().add(lane);
            let c = c.add(m * self.c_step + lane);
            let mut sum = [[V::splat(0.0); N]; M];
            for k in 0..self.shape().1 {
                let mut lanes = [V::splat(0.0); N];
                for v in 0..N {
                    lanes[v] = T::load(b.add(k * self.b_step + v * V::LANES));
                    if let (Some(ahead), true) = (self.ahead, (v * V::LANES).is_multiple_of(line::<T>())) {
                        V::prefetch(b.wrapping_add(k * self.b_step + v * V::LANES + ahead).cast());
                    }
                }
                for r in 0..M {
                    let x = V::splat(*a.add(r * row_step + k * column_step));
                    for v in 0..N {
                        sum[r][v] = x.mul_add(lanes[v], sum[r][v]);
                    }
                }
            }
            for v in 0..N {
                let alpha = match self.start {
                    Start::Scaled(alpha) => V::load(alpha.as_ptr().add(lane + v * V::LANES)),
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
/// Elements from the width of a row to the next whole vector are read too: they must be 0 in the query and finite in the keys.
/// Rows of scores must have room for a multiple of four keys.
pub(super) struct Dots<'a, T> {
    pub(super) query: Rows<'a>,
    pub(super) key: Rows<'a, T>,
    /// Prefetch distance in elements of `key`; `None` disables prefetching.
    pub(super) ahead: Option<usize>,
    pub(super) scores: &'a mut [f32],
    pub(super) scores_step: usize,
}

impl<T: Element> SimdKernel for Dots<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Simd>(mut self) {
        let rows = self.query.count;
        assert!(rows > 0 && self.key.count > 0 && self.query.width == self.key.width);
        let width = self.query.width.next_multiple_of(V::LANES);
        assert!(self.query.data.len() >= (rows - 1) * self.query.step + width);
        assert!(self.key.data.len() >= (self.key.count - 1) * self.key.step + width);
        assert!(self.scores.len() >= (rows - 1) * self.scores_step + self.key.count.next_multiple_of(4));
        let mut r = 0;
        while r < rows {
            // AVX-512 and NEON have registers for four rows and four keys, the others for two rows.
            let step = (rows - r).min(V::VECTORS);
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

impl<T: Element> Dots<'_, T> {
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "the accumulators stay in registers only if every index is a constant")]
    unsafe fn tile<V: Simd, const R: usize>(&mut self, r: usize) {
        let (keys, depth) = (self.key.count, self.key.width);
        for j in (0..keys).step_by(4) {
            // SAFETY: rows are below r + R <= rows, keys below `keys`; `run` checked that each has whole vectors.
            unsafe {
                let query = self.query.data.as_ptr().add(r * self.query.step);
                let key = self.key.data.as_ptr();
                // The last key stands in for keys past it; their scores go to the padding of the row and are not used.
                let at = [0, 1, 2, 3].map(|i| (j + i).min(keys - 1) * self.key.step);
                if let (Some(ahead), 0) = (self.ahead, r) {
                    for at in at {
                        for k in (0..depth).step_by(line::<T>()) {
                            V::prefetch(key.wrapping_add(at + k + ahead).cast());
                        }
                    }
                }
                let mut sum = [[V::splat(0.0); 4]; R];
                for k in (0..depth).step_by(V::LANES) {
                    let mut keys = [V::splat(0.0); 4];
                    for i in 0..4 {
                        keys[i] = T::load(key.add(at[i] + k));
                    }
                    for row in 0..R {
                        let query = V::load(query.add(row * self.query.step + k));
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
