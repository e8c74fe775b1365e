//! Projection Y[m, n] = sum over k of X[m, k] · W[n, k], plus b[n], on every core.
//!
//! The plain algorithm is three nested loops. For speed, rows of X are packed so that a vector holds one k of
//! neighbouring rows, and rows of W so that one k of a block of rows is contiguous. A block of sums then stays in
//! registers for the whole of k, and every element of W is broadcast against the vectors of X.

use rayon::prelude::*;

/// Rows of X that share one packing of W: 128 x 1024 elements stay in a 1 MiB second-level cache.
const CHUNK: usize = 128;
/// Rows of X interleaved in vectors: two of AVX-512, four of AVX2, eight of NEON.
const LANES: usize = 32;
/// Rows of X below which packing W does not pay: 9 rows of 384 take 2 times, 1 row of 4096 takes 6 times as long.
const FEW: usize = 16;

/// x [m, k] · weight [n, k]ᵀ + bias [n] -> [m, n], all contiguous. [`super::Linear`] has checked the lengths.
pub(super) fn matmul(x: &[f32], weight: &[f32], bias: Option<&[f32]>, k: usize, n: usize) -> Vec<f32> {
    if x.is_empty() {
        return Vec::new();
    }
    if x.len() / k < FEW {
        return matmul_few(x, weight, bias, k, n);
    }
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512F. 12 rows x 32 lanes are 24 of the 32 vector registers.
            return matmul_with::<12>(x, weight, bias, k, n, |x, w, sums| unsafe { multiply_avx512(x, w, sums) });
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has AVX2 and FMA. 3 rows x 32 lanes are 12 of the 16 vector registers.
            return matmul_with::<3>(x, weight, bias, k, n, |x, w, sums| unsafe { multiply_avx2(x, w, sums) });
        }
    }
    matmul_with::<3>(x, weight, bias, k, n, |x, w, sums| multiply(x, w, sums, |x, w, sum| sum + x * w))
}

/// Packed product: `multiply` computes the sums of ROWS rows of W and LANES rows of X.
fn matmul_with<const ROWS: usize>(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    k: usize,
    n: usize,
    multiply: impl Fn(&[[f32; LANES]], &[[f32; ROWS]], &mut [[f32; LANES]; ROWS]) + Sync,
) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / k * n];
    let mut blocks = vec![[0.0f32; ROWS]; n.div_ceil(ROWS) * k];
    blocks.par_chunks_mut(k).zip(weight.par_chunks(ROWS * k)).for_each(|(block, weight)| interleave(weight, block));
    y.par_chunks_mut(CHUNK * n).zip(x.par_chunks(CHUNK * k)).for_each(|(y, x)| {
        let mut panels = vec![[0.0f32; LANES]; x.len().div_ceil(LANES * k) * k];
        panels.chunks_exact_mut(k).zip(x.chunks(LANES * k)).for_each(|(panel, x)| interleave(x, panel));
        let panels: Vec<_> = panels.chunks_exact(k).collect();
        // Sums are stored as [block of W rows][panel of X rows][row of W][row of X].
        let mut sums = vec![[[0.0f32; LANES]; ROWS]; n.div_ceil(ROWS) * panels.len()];
        sums.par_chunks_mut(panels.len()).zip(blocks.par_chunks(k)).with_min_len(2).for_each(|(sums, block)| {
            for (panel, sums) in panels.iter().zip(sums) {
                multiply(panel, block, sums);
            }
        });
        for (row, y) in y.chunks_exact_mut(n).enumerate() {
            for (block, y) in y.chunks_mut(ROWS).enumerate() {
                let sums = &sums[block * panels.len() + row / LANES];
                for (column, (y, sums)) in y.iter_mut().zip(sums).enumerate() {
                    *y = sums[row % LANES] + bias.map_or(0.0, |bias| bias[block * ROWS + column]);
                }
            }
        }
    });
    y
}

/// [`matmul`] for few rows: W is read once, unpacked.
fn matmul_few(x: &[f32], weight: &[f32], bias: Option<&[f32]>, k: usize, n: usize) -> Vec<f32> {
    let m = x.len() / k;
    let mut transposed = vec![0.0; m * n];
    transposed.par_chunks_mut(32 * m).zip(weight.par_chunks(32 * k)).for_each(|(y, weight)| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: the processor has AVX-512F.
                return unsafe { dots_avx512(x, weight, k, y) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: the processor has AVX2 and FMA.
                return unsafe { dots_avx2(x, weight, k, y) };
            }
        }
        dots(x, weight, k, y, |x, w, sum| sum + x * w);
    });
    let mut y = Vec::with_capacity(m * n);
    for row in 0..m {
        y.extend(transposed.iter().skip(row).step_by(m).enumerate().map(|(column, sum)| sum + bias.map_or(0.0, |bias| bias[column])));
    }
    y
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dots_avx512(x: &[f32], weight: &[f32], k: usize, out: &mut [f32]) {
    dots(x, weight, k, out, |x, w, sum| x.mul_add(w, sum));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dots_avx2(x: &[f32], weight: &[f32], k: usize, out: &mut [f32]) {
    dots(x, weight, k, out, |x, w, sum| x.mul_add(w, sum));
}

/// Dot products out[row of W][row of X], in LANES partial sums.
#[inline(always)]
fn dots(x: &[f32], weight: &[f32], k: usize, out: &mut [f32], multiply_add: impl Fn(f32, f32, f32) -> f32) {
    for (out, w) in out.chunks_exact_mut(x.len() / k).zip(weight.chunks_exact(k)) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(k)) {
            let (w, w_rest) = w.as_chunks::<LANES>();
            let (x, x_rest) = x.as_chunks::<LANES>();
            let mut sums = [0.0f32; LANES];
            for (x, w) in x.iter().zip(w) {
                for (sum, (&x, &w)) in sums.iter_mut().zip(x.iter().zip(w)) {
                    *sum = multiply_add(x, w, *sum);
                }
            }
            let rest: f32 = x_rest.iter().zip(w_rest).map(|(x, w)| x * w).sum();
            *out = sums.iter().sum::<f32>() + rest;
        }
    }
}

/// Interleaves up to WIDTH rows of k elements as [k][WIDTH], in steps of k that stay in L1. Missing rows stay 0.
fn interleave<const WIDTH: usize>(rows: &[f32], out: &mut [[f32; WIDTH]]) {
    let k = out.len();
    for (step, out) in out.chunks_mut(32).enumerate() {
        for (place, row) in rows.chunks_exact(k).enumerate() {
            for (out, &number) in out.iter_mut().zip(&row[step * 32..]) {
                out[place] = number;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_avx512(x: &[[f32; LANES]], w: &[[f32; 12]], sums: &mut [[f32; LANES]; 12]) {
    multiply(x, w, sums, |x, w, sum| x.mul_add(w, sum));
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_avx2(x: &[[f32; LANES]], w: &[[f32; 3]], sums: &mut [[f32; LANES]; 3]) {
    multiply(x, w, sums, |x, w, sum| x.mul_add(w, sum));
}

/// Computes sums[row][lane] = sum over k of x[k][lane] · w[k][row].
#[inline(always)]
fn multiply<const ROWS: usize>(
    x: &[[f32; LANES]],
    w: &[[f32; ROWS]],
    sums: &mut [[f32; LANES]; ROWS],
    multiply_add: impl Fn(f32, f32, f32) -> f32,
) {
    let mut registers = [[0.0f32; LANES]; ROWS];
    for (x, w) in x.iter().zip(w) {
        for (sums, &w) in registers.iter_mut().zip(w) {
            for (sum, &x) in sums.iter_mut().zip(x) {
                *sum = multiply_add(x, w, *sum);
            }
        }
    }
    *sums = registers;
}

/// Transposes [rows, columns] to [columns, rows].
pub(super) fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut to = vec![0.0; rows * columns];
    // Square tiles stay in cache.
    const SIDE: usize = 32;
    for first_row in (0..rows).step_by(SIDE) {
        for first_column in (0..columns).step_by(SIDE) {
            for row in first_row..rows.min(first_row + SIDE) {
                for column in first_column..columns.min(first_column + SIDE) {
                    to[column * rows + row] = data[row * columns + column];
                }
            }
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests tails of every tile, packed and not. The error is at most k + 1 roundings of the sum of magnitudes.
    #[test]
    fn agrees_with_three_loops() {
        let mut state = 1u32;
        let mut draw = |len: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
            };
            (0..len).map(|_| next()).collect()
        };
        for m in [0, 1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 300] {
            for (k, n) in [(1, 1), (3, 5), (31, 13), (32, 12), (33, 100), (100, 33)] {
                let (x, weight, bias) = (draw(m * k), draw(n * k), draw(n));
                for bias in [None, Some(&bias[..])] {
                    let y = matmul(&x, &weight, bias, k, n);
                    assert_eq!(y.len(), m * n);
                    for (at, &y) in y.iter().enumerate() {
                        let (x, w) = (&x[at / n * k..][..k], &weight[at % n * k..][..k]);
                        let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
                        let start = bias.map_or(0.0, |bias| f64::from(bias[at % n]));
                        let (sum, size) = products.fold((start, start.abs()), |(sum, size), p| (sum + p, size + p.abs()));
                        let bound = (k + 1) as f64 * f64::from(f32::EPSILON) * size;
                        assert!((f64::from(y) - sum).abs() <= bound, "{m}x{n}x{k} at {at}: {y} instead of {sum}");
                    }
                }
            }
        }
    }
}
