//! Vectors of f32 lanes, which kernels are written against.

use half::{bf16, f16};

/// Vector register of f32 lanes.
///
/// # Safety
/// Every function needs the instruction set of its implementation; functions that take pointers need them valid, too.
pub(super) trait Simd: Copy {
    /// Number of lanes in a vector.
    const LANES: usize;
    /// Vectors in a row of the widest panel, chosen so that six rows of accumulators stay in registers.
    const VECTORS: usize;

    /// Broadcasts `x` to all lanes.
    unsafe fn splat(x: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, with one rounding where the hardware has it.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// Larger operand, lane by lane; `other` or NaN where one is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// True if `times_power` is infinite for an exponent over 127. Else such exponents are not allowed.
    const SATURATES: bool = false;

    /// `self * 2^n` for an n from `split_exponent`. A subnormal result may be flushed to 0.
    ///
    /// Without an instruction for it: the bits of n shifted left by 23, which moves an integer into the exponent.
    unsafe fn times_power(self, whole: Self) -> Self;
    /// `self < than ? yes : no`, lane by lane; `no` where an operand is NaN.
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self;

    /// True if a lane of `self` is less than that of `than`.
    #[inline(always)]
    unsafe fn any_less(self, than: Self) -> bool {
        let mut lanes = [0.0f32; 16];
        // SAFETY: LANES is at most 16.
        unsafe { self.select_less(than, Self::splat(1.0), Self::splat(0.0)).store(lanes.as_mut_ptr()) };
        lanes[..Self::LANES].contains(&1.0)
    }

    /// Each lane truncated to bf16: its upper 16 bits.
    #[inline(always)]
    unsafe fn upper(self) -> Self {
        // SAFETY: passed on from the caller.
        unsafe { self.map_bits(|bits| bits & 0xffff_0000) }
    }

    /// Adds half a unit of bf16 to each lane, so that its upper 16 bits are the nearest bf16. Ties round away from 0.
    #[inline(always)]
    unsafe fn round_upper(self) -> Self {
        // SAFETY: passed on from the caller.
        unsafe { self.map_bits(|bits| bits.wrapping_add(0x8000)) }
    }

    /// Pairs of bf16, as matrix instructions read them: the upper halves of `self` low, those of `odd` high.
    #[inline(always)]
    unsafe fn pair_upper(self, odd: Self) -> Self {
        let mut lanes = [0.0f32; 16];
        // SAFETY: LANES is at most 16.
        unsafe {
            odd.store(lanes.as_mut_ptr());
            let mut i = 0;
            self.map_bits(|bits| {
                i += 1;
                bits >> 16 | lanes[i - 1].to_bits() & 0xffff_0000
            })
        }
    }

    /// Stores the upper 16 bits of each lane.
    #[inline(always)]
    unsafe fn store_upper(self, to: *mut u16) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: LANES is at most 16; the caller's `to` is valid for LANES elements.
        unsafe {
            self.store(lanes.as_mut_ptr());
            for (i, lane) in lanes.iter().enumerate().take(Self::LANES) {
                to.add(i).write_unaligned((lane.to_bits() >> 16) as u16);
            }
        }
    }

    /// Applies `f` to the bits of each lane, in order.
    #[inline(always)]
    unsafe fn map_bits(self, mut f: impl FnMut(u32) -> u32) -> Self {
        let mut lanes = [0.0f32; 16];
        // SAFETY: LANES is at most 16.
        unsafe {
            self.store(lanes.as_mut_ptr());
            lanes[..Self::LANES].iter_mut().for_each(|x| *x = f32::from_bits(f(x.to_bits())));
            Self::load(lanes.as_ptr())
        }
    }

    /// Loads `LANES` elements, unaligned.
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's `from` is valid for LANES elements, and a vector is nothing else.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    /// Stores `LANES` elements, unaligned.
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's `to` is valid for LANES elements, and a vector is nothing else.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    /// Splits an exponent to base 2 into a remainder and the nearest integer, in the form of [`Self::times_power`].
    ///
    /// Adding 1.5 * 2^23 + 127 rounds to the integer: the low bits of the sum are the integer plus 127, an exponent.
    #[inline(always)]
    unsafe fn split_exponent(self) -> (Self, Self) {
        const ROUND: f32 = 12_582_912.0 + 127.0;
        // SAFETY: passed on from the caller.
        unsafe {
            let x = Self::splat(-127.0).max(self);
            let shifted = x.add(Self::splat(ROUND));
            (x.sub(shifted.sub(Self::splat(ROUND))), shifted)
        }
    }

    /// Loads `LANES` elements, widened to f32.
    #[inline(always)]
    unsafe fn widen_f16(from: *const f16) -> Self {
        let mut wide = [0.0f32; 16];
        for (i, x) in wide.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's `from` is valid for LANES elements.
            *x = unsafe { (*from.add(i)).to_f32() };
        }
        // SAFETY: LANES is at most 16.
        unsafe { Self::load(wide.as_ptr()) }
    }

    /// Loads `LANES` elements, widened to f32.
    #[inline(always)]
    unsafe fn widen_bf16(from: *const bf16) -> Self {
        let mut wide = [0.0f32; 16];
        for (i, x) in wide.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's `from` is valid for LANES elements.
            *x = f32::from_bits(u32::from(unsafe { *from.add(i) }.to_bits()) << 16);
        }
        // SAFETY: LANES is at most 16.
        unsafe { Self::load(wide.as_ptr()) }
    }

    /// Prefetches the cache line at `at`, which need not be valid, into the second-level cache. The first level has
    /// fewer misses in flight: prefetching into it made a decoding step a quarter slower.
    #[inline(always)]
    #[allow(unused_unsafe, reason = "the intrinsic has become safe after the oldest Rust that this crate supports")]
    unsafe fn prefetch(at: *const f32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch may use any address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
        }
        let _ = at;
    }

    /// Stores the sum of each vector's lanes to `to`.
    #[inline(always)]
    unsafe fn store_sums(vectors: [Self; 4], to: *mut f32) {
        for (i, vector) in vectors.into_iter().enumerate() {
            let mut lanes = [0.0f32; 16];
            // SAFETY: LANES is at most 16; the caller's `to` is valid for 4 elements.
            unsafe {
                vector.store(lanes.as_mut_ptr());
                *to.add(i) = lanes[..Self::LANES].iter().sum();
            }
        }
    }

    /// `to[c * to_step + r] = from[r * from_step + c]` for r, c < `LANES`.
    #[inline(always)]
    unsafe fn transpose(from: *const f32, from_step: usize, to: *mut f32, to_step: usize) {
        for r in 0..Self::LANES {
            for c in 0..Self::LANES {
                // SAFETY: the caller's `from` and `to` are valid for LANES rows of LANES elements at these steps.
                unsafe { *to.add(c * to_step + r) = *from.add(r * from_step + c) };
            }
        }
    }
}

/// Portable vector of four lanes, without intrinsics.
impl Simd for [f32; 4] {
    const LANES: usize = 4;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] / other[i])
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        std::array::from_fn(|i| self[i] * factor[i] + addend[i])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn times_power(self, whole: Self) -> Self {
        std::array::from_fn(|i| self[i] * f32::from_bits(whole[i].to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self {
        std::array::from_fn(|i| if self[i] < than[i] { yes[i] } else { no[i] })
    }
}
