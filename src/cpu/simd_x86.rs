//! AVX2 (with FMA) and AVX-512F vectors.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::simd::Simd;

/// Mask of the upper 16 bits of a lane.
const UPPER: i32 = 0xffff_0000_u32 as i32;

impl Simd for __m512 {
    const SATURATES: bool = true;
    const LANES: usize = 16;
    const VECTORS: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn splat(x: f32) -> Self {
        _mm512_set1_ps(x)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn add(self, other: Self) -> Self {
        _mm512_add_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn sub(self, other: Self) -> Self {
        _mm512_sub_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul(self, other: Self) -> Self {
        _mm512_mul_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn div(self, other: Self) -> Self {
        _mm512_div_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        _mm512_fmadd_ps(self, factor, addend)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn max(self, other: Self) -> Self {
        _mm512_max_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, than), no, yes)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn any_less(self, than: Self) -> bool {
        _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, than) != 0
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn split_exponent(self) -> (Self, Self) {
        let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self);
        (_mm512_sub_ps(self, whole), whole)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn times_power(self, whole: Self) -> Self {
        _mm512_scalef_ps(self, whole)
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn upper(self) -> Self {
        _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self), _mm512_set1_epi32(UPPER)))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn round_upper(self) -> Self {
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self), _mm512_set1_epi32(0x8000)))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn pair_upper(self, odd: Self) -> Self {
        /// `a & b | c`, bit by bit.
        const AND_OR: i32 = 0xea;
        let (even, odd) = (_mm512_srli_epi32::<16>(_mm512_castps_si512(self)), _mm512_castps_si512(odd));
        _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<AND_OR>(odd, _mm512_set1_epi32(UPPER), even))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store_upper(self, to: *mut u16) {
        let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_castps_si512(self)));
        // SAFETY: the caller's `to` is valid for 16 elements of 16 bits.
        unsafe { _mm256_storeu_si256(to.cast(), upper) };
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen_f16(from: *const f16) -> Self {
        // SAFETY: the caller's `from` is valid for 16 elements of 16 bits.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn widen_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's `from` is valid for 16 elements of 16 bits.
        let upper = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(from.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store_sums(vectors: [Self; 4], to: *mut f32) {
        let [a, b, c, d] = vectors;
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let quarters = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(ab, cd), _mm512_shuffle_ps::<0xee>(ab, cd));
        let halves = _mm512_add_ps(quarters, _mm512_shuffle_f32x4::<0x4e>(quarters, quarters));
        let all = _mm512_add_ps(halves, _mm512_shuffle_f32x4::<0xb1>(halves, halves));
        // SAFETY: the caller's `to` is valid for 4 elements.
        unsafe { _mm_storeu_ps(to, _mm512_castps512_ps128(all)) };
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        let mut rows = [_mm512_setzero_ps(); 16];
        for (i, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller's `from` is valid for 16 rows of 16 elements.
            *row = unsafe { Self::load(from.add(i * from_step)) };
        }
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        // Interleaving rows i and i + 8 rotates the bits of (row, column) by one; four times exchanges row and column.
        for _ in 0..4 {
            let before = rows;
            for i in 0..8 {
                rows[2 * i] = _mm512_permutex2var_ps(before[i], low, before[i + 8]);
                rows[2 * i + 1] = _mm512_permutex2var_ps(before[i], high, before[i + 8]);
            }
        }
        for (i, row) in rows.into_iter().enumerate() {
            // SAFETY: the caller's `to` is valid for 16 rows of 16 elements.
            unsafe { row.store(to.add(i * to_step)) };
        }
    }
}

impl Simd for __m256 {
    const LANES: usize = 8;
    const VECTORS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn splat(x: f32) -> Self {
        _mm256_set1_ps(x)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn add(self, other: Self) -> Self {
        _mm256_add_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sub(self, other: Self) -> Self {
        _mm256_sub_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mul(self, other: Self) -> Self {
        _mm256_mul_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn div(self, other: Self) -> Self {
        _mm256_div_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        _mm256_fmadd_ps(self, factor, addend)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn max(self, other: Self) -> Self {
        _mm256_max_ps(self, other)
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn times_power(self, whole: Self) -> Self {
        _mm256_mul_ps(self, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(whole))))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self {
        _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(self, than))
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn widen_f16(from: *const f16) -> Self {
        // SAFETY: the caller's `from` is valid for 8 elements of 16 bits.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store_sums(vectors: [Self; 4], to: *mut f32) {
        let [a, b, c, d] = vectors;
        let halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
        let all = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
        // SAFETY: the caller's `to` is valid for 4 elements.
        unsafe { _mm_storeu_ps(to, all) };
    }
}
