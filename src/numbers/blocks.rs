//! Quantised storage: blocks of 32 elements under one scale.
//!
//! ```text
//! x_i ~ scale * q_i      i in 0..32, q_i an integer: -127..=127 for q8, -8..=7 for q4
//! ```
//!
//! | type | four-byte words of a block | bytes per element |
//! |---|---|---|
//! | q8 | scale, then 8 words of four signed bytes, lowest byte first | 1.125 |
//! | q4 | scale, then 4 words of eight signed 4-bit values, lowest first | 0.625 |
//!
//! Let m be the element of largest magnitude. The scale is |m| / 127 for q8, and -m / 8 for q4, so that m itself
//! becomes -8 (as in ggml's q8_0 and q4_0). It is an f32 rounded away from 0 to 16 significant bits. q_i is x_i / scale
//! rounded to nearest, ties away from 0. The error is at most half a scale: |m| / 253 for q8; |m| / 15.9 for q4, or
//! |m| / 7.9 near -m.
//!
//! Because the scale has few bits, `scale * q` is exact in f32, and so is the choice of the nearest q. Shaders produce
//! the same bits although their division is not correctly rounded (shaders/cache/blocks.wgsl).
//! A block that contains NaN or a magnitude of 2^127 or more is NaN as a whole. A block entirely below 2^-100 is 0.

use super::dtype::{BLOCK, DType, block_words};

/// Magnitude below which a block is stored as 0. It avoids arithmetic on values that a shader may flush to 0.
const TINY_BITS: u32 = 27 << 23; // 2^-100

/// Bits of one q.
const fn bits(dtype: DType) -> usize {
    if matches!(dtype, DType::Q4) { 4 } else { 8 }
}

/// Dequantises the element at `index` of `words`.
pub(crate) fn get(dtype: DType, words: &[u32], index: usize) -> f32 {
    let block = &words[index / BLOCK * block_words(dtype)..];
    let (i, bits) = (index % BLOCK, bits(dtype));
    let word = block[1 + i * bits / 32] as i32;
    let q = word << (32 - bits - i * bits % 32) >> (32 - bits);
    f32::from_bits(block[0]) * q as f32
}

/// Dequantises whole blocks.
#[inline(always)]
pub(crate) fn widen(dtype: DType, words: &[u32], to: &mut [f32]) {
    if dtype == DType::Q4 { widen_blocks::<5, 8, 4>(words, to) } else { widen_blocks::<9, 4, 8>(words, to) }
}

/// Dequantises blocks of `WORDS` words, a scale and words of `COUNT` values of `BITS` bits.
#[inline(always)]
fn widen_blocks<const WORDS: usize, const COUNT: usize, const BITS: usize>(words: &[u32], to: &mut [f32]) {
    for (block, to) in words.as_chunks::<WORDS>().0.iter().zip(to.as_chunks_mut::<BLOCK>().0) {
        let scale = f32::from_bits(block[0]);
        for (word, to) in block[1..].iter().zip(to.as_chunks_mut::<COUNT>().0) {
            *to = std::array::from_fn(|i| scale * ((*word as i32) << (32 - BITS - BITS * i) >> (32 - BITS)) as f32);
        }
    }
}

/// Quantises whole blocks. See `quantise` of shaders/cache/blocks.wgsl.
pub(crate) fn narrow(dtype: DType, from: &[f32], words: &mut [u32]) {
    for (from, block) in from.chunks_exact(BLOCK).zip(words.chunks_exact_mut(block_words(dtype))) {
        narrow_block(dtype, from, block);
    }
}

fn narrow_block(dtype: DType, from: &[f32], block: &mut [u32]) {
    let (mut top, mut sign) = (0, 0);
    for bits in from.iter().map(|x| x.to_bits()) {
        if bits & 0x7fff_ffff > top {
            (top, sign) = (bits & 0x7fff_ffff, bits & 0x8000_0000);
        }
    }
    block.fill(0);
    if top >= 0x7f00_0000 {
        block[0] = 0x7fc0_0000;
        return;
    }
    if top < TINY_BITS {
        return;
    }
    let (factor, least, most) = if dtype == DType::Q4 { (0.125, -8, 7) } else { (1.0 / 127.0, -127, 127) };
    // 16 significant bits, rounded away from 0.
    let magnitude = ((f32::from_bits(top) * factor).to_bits() + 0xff) & !0xff;
    block[0] = if dtype == DType::Q4 { magnitude | (sign ^ 0x8000_0000) } else { magnitude };
    let scale = f32::from_bits(block[0]);
    let half = 0.5 * f32::from_bits(magnitude);
    let bits = bits(dtype);
    for (i, &x) in from.iter().enumerate() {
        // Truncation is off by at most 1, and the remainder is exact.
        let guess = (x / scale) as i32;
        let away = if (x < 0.0) == (scale < 0.0) { 1 } else { -1 };
        let q = if (x - scale * guess as f32).abs() >= half { guess + away } else { guess };
        let q = q.clamp(least, most);
        block[1 + i * bits / 32] |= (q as u32 & ((1 << bits) - 1)) << (i * bits % 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(dtype: DType, from: &[f32]) -> Vec<f32> {
        let mut words = vec![7; from.len() / BLOCK * block_words(dtype)];
        narrow(dtype, from, &mut words);
        let mut back = vec![0.0; from.len()];
        widen(dtype, &words, &mut back);
        let same = |(i, x): (usize, &f32)| get(dtype, &words, i).to_bits() == x.to_bits() || x.is_nan();
        assert!(back.iter().enumerate().all(same), "{dtype}");
        back
    }

    #[test]
    fn off_by_no_more_than_documented() {
        let mut rng = fastrand::Rng::with_seed(3);
        for round in 0..2000 {
            let size = 2f32.powi(rng.i32(-90..90));
            let mut from: Vec<f32> = (0..BLOCK).map(|_| (rng.f32() * 2.0 - 1.0) * size).collect();
            if round % 3 == 0 {
                from.iter_mut().for_each(|x| *x = (*x / size * 8.0).round() * size / 8.0); // ties
            }
            let top = from.iter().fold(0.0f32, |top, x| top.max(x.abs()));
            for (dtype, share) in [(DType::Q8, 253.0), (DType::Q4, 7.9)] {
                for (x, y) in from.iter().zip(there_and_back(dtype, &from)) {
                    assert!((x - y).abs() <= top / share, "{dtype}: {x} became {y} under {top}");
                    assert!(dtype == DType::Q8 || (x - y).abs() <= top / 15.9 || x.abs() > 0.93 * top, "{x} became {y} under {top}");
                }
            }
        }
    }

    #[test]
    fn edges() {
        let mut from = [0.0; 2 * BLOCK];
        from[40] = f32::NAN;
        from[3] = -5.0;
        from[4] = 5.0;
        for (dtype, near) in [(DType::Q8, 0.02), (DType::Q4, 0.65)] {
            let back = there_and_back(dtype, &from);
            assert!(back[0] == 0.0 && (back[3] + 5.0).abs() < 0.0003 && (back[4] - 5.0).abs() < near, "{back:?}");
            assert!(back[BLOCK..].iter().all(|x| x.is_nan()));
            from[40] = f32::NEG_INFINITY;
            assert!(there_and_back(dtype, &from)[BLOCK..].iter().all(|x| x.is_nan()));
            assert_eq!(there_and_back(dtype, &[1e-38; BLOCK]), [0.0; BLOCK]);
            assert!(there_and_back(dtype, &[f32::MAX; BLOCK]).iter().all(|x| x.is_nan()));
            assert!(there_and_back(dtype, &[1e38; BLOCK]).iter().all(|x| x.is_finite()));
        }
    }
}
