//! A vector of f32 lanes, and which of its kinds this machine has.
//!
//! The kernels in [`super::kernel`] are written once against [`Simd`] and compiled once for each [`Isa`].

use half::f16;

/// A vector register of f32 lanes.
///
/// # Safety
/// Every function needs the instruction set of its implementation; those that take pointers need valid places besides.
pub(super) trait Simd: Copy {
    /// Lanes of a vector.
    const LANES: usize;
    /// Vectors side by side in the widest panel, such that six times as many accumulators stay in registers.
    const VECTORS: usize;

    /// `LANES` numbers from `from`, unaligned.
    unsafe fn load(from: *const f32) -> Self;
    /// `LANES` numbers to `to`, unaligned.
    unsafe fn store(self, to: *mut f32);
    /// The same number in each lane.
    unsafe fn splat(x: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, with one rounding where the hardware has it.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// The larger; if one is NaN then `other` or NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// The bits of each lane, shifted left by 23: what moves an integer in the low bits into the exponent.
    unsafe fn exponent_from_low_bits(self) -> Self;
    /// `self < than ? yes : no` lane by lane; `no` where one is NaN.
    unsafe fn select_less(self, than: Self, yes: Self, no: Self) -> Self;

    /// Of an exponent to base 2: what is left of its nearest whole number, and that number as [`Self::times_power`] takes it.
    ///
    /// It is found, and moved into the exponent, by adding 1.5 * 2^23 + 127: the low bits of that sum are the number and 127.
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

    /// `self` times 2 to the power of `whole`; 0 where that is subnormal, or subnormal.
    #[inline(always)]
    unsafe fn times_power(self, whole: Self) -> Self {
        // SAFETY: passed on from the caller.
        unsafe { self.mul(whole.exponent_from_low_bits()) }
    }

    /// `LANES` numbers, widened.
    #[inline(always)]
    unsafe fn widen_f16(from: *const f16) -> Self {
        let mut wide = [0.0f32; 16];
        for (i, x) in wide.iter_mut().enumerate().take(Self::LANES) {
            // SAFETY: the caller's `from` is valid for LANES numbers.
            *x = unsafe { (*from.add(i)).to_f32() };
        }
        // SAFETY: LANES is at most 16.
        unsafe { Self::load(wide.as_ptr()) }
    }

    /// Asks for the cache line at `at`, which need not be valid, in the second-level cache: the first has fewer misses in flight, and a
    /// step of decoding took a quarter longer that way.
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}

    /// Stores the sum of each vector's lanes to `to`.
    #[inline(always)]
    unsafe fn store_sums(vectors: [Self; 4], to: *mut f32) {
        for (i, vector) in vectors.into_iter().enumerate() {
            let mut lanes = [0.0f32; 16];
            // SAFETY: LANES is at most 16; the caller's `to` is valid for 4 numbers.
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
                // SAFETY: the caller's `from` and `to` are valid for LANES rows of LANES numbers at these steps.
                unsafe { *to.add(c * to_step + r) = *from.add(r * from_step + c) };
            }
        }
    }
}

/// No intrinsics: what the compiler makes of four lanes.
impl Simd for [f32; 4] {
    const LANES: usize = 4;
    const VECTORS: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's `from` is valid for LANES numbers.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's `to` is valid for LANES numbers.
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

/// An instruction set that the kernels are compiled for.
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
    /// Those that this machine has, the best one last.
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

    /// The best that this machine has.
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
