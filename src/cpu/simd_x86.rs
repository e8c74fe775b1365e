//! AVX2 (with FMA) and AVX-512F vectors.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use half::f16;

use super::simd::Simd;

impl Simd for __m512 {
    const LANES: usize = 16;
    const VECTORS: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's `from` is valid for 16 elements.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's `to` is valid for 16 elements.
        unsafe { _mm512_storeu_ps(to, self) }
    }
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
    unsafe fn exponent_from_low_bits(self) -> Self {
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self)))
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self, than), no, yes)
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
    unsafe fn widen_f16(from: *const f16) -> Self {
        // SAFETY: the caller's `from` is valid for 16 elements of 16 bits.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(unused_unsafe, reason = "the intrinsic has become safe after the oldest Rust that this crate supports")]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a prefetch may use any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
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
        // Transposes 4x4 blocks inside the 128-bit parts: column 4q + i of rows 4g.. is part q of quads[4g + i].
        let mut quads = rows;
        for g in 0..4 {
            let [a, b, c, d] = [rows[4 * g], rows[4 * g + 1], rows[4 * g + 2], rows[4 * g + 3]];
            let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            quads[4 * g] = _mm512_shuffle_ps::<0x44>(ab_low, cd_low);
            quads[4 * g + 1] = _mm512_shuffle_ps::<0xee>(ab_low, cd_low);
            quads[4 * g + 2] = _mm512_shuffle_ps::<0x44>(ab_high, cd_high);
            quads[4 * g + 3] = _mm512_shuffle_ps::<0xee>(ab_high, cd_high);
        }
        // Then transposes the 128-bit parts among the four groups of rows.
        for i in 0..4 {
            let [a, b, c, d] = [quads[i], quads[4 + i], quads[8 + i], quads[12 + i]];
            let (ab_even, ab_odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
            let (cd_even, cd_odd) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
            let columns = [
                _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even),
                _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd),
                _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even),
                _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd),
            ];
            for (q, column) in columns.into_iter().enumerate() {
                // SAFETY: the caller's `to` is valid for 16 rows of 16 elements.
                unsafe { column.store(to.add((4 * q + i) * to_step)) };
            }
        }
    }
}

impl Simd for __m256 {
    const LANES: usize = 8;
    const VECTORS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's `from` is valid for 8 elements.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's `to` is valid for 8 elements.
        unsafe { _mm256_storeu_ps(to, self) }
    }
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
    unsafe fn exponent_from_low_bits(self) -> Self {
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self)))
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
    #[allow(unused_unsafe, reason = "the intrinsic has become safe after the oldest Rust that this crate supports")]
    unsafe fn prefetch(at: *const f32) {
        // SAFETY: a prefetch may use any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
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
