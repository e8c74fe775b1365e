//! Vectors of WebAssembly, with one rounding per multiply-add where it is compiled with `relaxed-simd`.
//!
//! A module with vectors runs only where all of them are known, so compiling decides, not the machine.
#![cfg(all(target_arch = "wasm32", target_feature = "simd128"))]

use std::arch::wasm32::*;

use super::simd::Simd;

impl Simd for v128 {
    const LANES: usize = 4;
    /// Browsers map a vector to one of 16 registers on x86-64.
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        f32x4_splat(x)
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        f32x4_add(self, other)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        f32x4_sub(self, other)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        f32x4_mul(self, other)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        f32x4_div(self, other)
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        #[cfg(target_feature = "relaxed-simd")]
        return f32x4_relaxed_madd(self, factor, addend);
        #[cfg(not(target_feature = "relaxed-simd"))]
        f32x4_add(f32x4_mul(self, factor), addend)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        f32x4_pmax(other, self)
    }
    #[inline(always)]
    unsafe fn times_power(self, whole: Self) -> Self {
        f32x4_mul(self, i32x4_shl(whole, 23))
    }
    #[inline(always)]
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self {
        v128_bitselect(yes, no, f32x4_lt(self, than))
    }
    #[inline(always)]
    unsafe fn upper(self) -> Self {
        v128_and(self, u32x4_splat(0xffff_0000))
    }
    #[inline(always)]
    unsafe fn round_upper(self) -> Self {
        i32x4_add(self, i32x4_splat(0x8000))
    }
    #[inline(always)]
    unsafe fn store_sums(vectors: [Self; 4], to: *mut f32) {
        let [a, b, c, d] = vectors;
        let ab = f32x4_add(i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<2, 6, 3, 7>(a, b));
        let cd = f32x4_add(i32x4_shuffle::<0, 4, 1, 5>(c, d), i32x4_shuffle::<2, 6, 3, 7>(c, d));
        let all = f32x4_add(i32x4_shuffle::<0, 1, 4, 5>(ab, cd), i32x4_shuffle::<2, 3, 6, 7>(ab, cd));
        // SAFETY: the caller's `to` is valid for 4 elements.
        unsafe { all.store(to) };
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        // SAFETY: the caller's `from` is valid for 4 rows of 4 elements.
        let [a, b, c, d] = [0, 1, 2, 3].map(|row| unsafe { Self::load(from.add(row * from_step)) });
        let (ac, bd) = (i32x4_shuffle::<0, 4, 1, 5>(a, c), i32x4_shuffle::<0, 4, 1, 5>(b, d));
        let (ca, db) = (i32x4_shuffle::<2, 6, 3, 7>(a, c), i32x4_shuffle::<2, 6, 3, 7>(b, d));
        let columns = [
            i32x4_shuffle::<0, 4, 1, 5>(ac, bd),
            i32x4_shuffle::<2, 6, 3, 7>(ac, bd),
            i32x4_shuffle::<0, 4, 1, 5>(ca, db),
            i32x4_shuffle::<2, 6, 3, 7>(ca, db),
        ];
        for (row, column) in columns.into_iter().enumerate() {
            // SAFETY: the caller's `to` is valid for 4 rows of 4 elements.
            unsafe { column.store(to.add(row * to_step)) };
        }
    }
}
