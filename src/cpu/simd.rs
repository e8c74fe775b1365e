//! Vectors of f32 lanes, and the instruction sets that this machine supports.
//!
//! The kernels in [`super::kernel`] are written once against [`Simd`] and compiled once for each [`Isa`].

use half::f16;

/// Vector register of f32 lanes.
///
/// # Safety
/// Every function needs the instruction set of its implementation; functions that take pointers need them valid, too.
pub(super) trait Simd: Copy {
    /// Number of lanes in a vector.
    const LANES: usize;
    /// Vectors in a row of the widest panel, chosen so that six rows of accumulators stay in registers.
    const VECTORS: usize;

    /// Loads `LANES` elements, unaligned.
    unsafe fn load(from: *const f32) -> Self;
    /// Stores `LANES` elements, unaligned.
    unsafe fn store(self, to: *mut f32);
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
    /// Shifts the bits of each lane left by 23, which moves an integer in the low bits into the exponent.
    unsafe fn exponent_from_low_bits(self) -> Self;
    /// `self < than ? yes : no`, lane by lane; `no` where an operand is NaN.
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self;

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

    /// `self * 2^n` for an n from `split_exponent`. A subnormal result may be flushed to 0.
    #[inline(always)]
    unsafe fn times_power(self, whole: Self) -> Self {
        // SAFETY: passed on from the caller.
        unsafe { self.mul(whole.exponent_from_low_bits()) }
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

    /// Prefetches the cache line at `at`, which need not be valid, into the second-level cache. The first level has
    /// fewer misses in flight: prefetching into it made a decoding step a quarter slower.
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}

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
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's `from` is valid for LANES elements.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's `to` is valid for LANES elements.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }
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
    unsafe fn exponent_from_low_bits(self) -> Self {
        self.map(|x| f32::from_bits(x.to_bits() << 23))
    }
    #[inline(always)]
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self {
        std::array::from_fn(|i| if self[i] < than[i] { yes[i] } else { no[i] })
    }
}

/// Instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// Instruction sets that this machine supports, the best one last.
    pub(super) fn available() -> impl DoubleEndedIterator<Item = Self> {
        let all = [
            Self::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512,
            #[cfg(target_arch = "aarch64")]
            Self::Neon,
        ];
        all.into_iter().filter(|isa| isa.is_available())
    }

    /// Best instruction set that this machine supports.
    pub(super) fn best() -> Self {
        Self::available().next_back().unwrap_or(Self::Portable)
    }

    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
        }
    }
}
