//! NEON vectors.
#![cfg(target_arch = "aarch64")]

use std::arch::aarch64::*;

use super::simd::Simd;

impl Simd for float32x4_t {
    const LANES: usize = 4;
    const VECTORS: usize = 4;

    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn splat(x: f32) -> Self {
        vdupq_n_f32(x)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn add(self, other: Self) -> Self {
        vaddq_f32(self, other)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn sub(self, other: Self) -> Self {
        vsubq_f32(self, other)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn mul(self, other: Self) -> Self {
        vmulq_f32(self, other)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn div(self, other: Self) -> Self {
        vdivq_f32(self, other)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        vfmaq_f32(addend, self, factor)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn max(self, other: Self) -> Self {
        vmaxq_f32(self, other)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn times_power(self, whole: Self) -> Self {
        vmulq_f32(self, vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(whole))))
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self {
        vbslq_f32(vcltq_f32(self, than), yes, no)
    }
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn store_sums(vectors: [Self; 4], to: *mut f32) {
        let [a, b, c, d] = vectors;
        // SAFETY: the caller's `to` is valid for 4 elements.
        unsafe { vst1q_f32(to, vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d))) };
    }
}
