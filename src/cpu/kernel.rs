//! The arithmetic of the fast path, written once for every instruction set.
//!
//! Most of it works on *panels*: arrays [n][panel] in which the lanes of a vector are query rows. Scores are held as
//! [key][query row], outputs as [dim][query row]. So the maximum and the sum of a row never cross lanes, and both matrix
//! products are one kernel ([`super::product`]) that reads keys and values where they lie and broadcasts each of their numbers.

use super::simd::{Isa, Simd};

/// A computation that [`Isa::run`] compiles for the instruction set at hand.
pub(super) trait Kernel {
    /// # Safety
    /// The machine has the instruction set of `V`.
    unsafe fn run<V: Simd>(self);
}

impl Isa {
    /// Runs a kernel with this instruction set.
    pub(super) fn run(self, kernel: impl Kernel) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m256, __m512};
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512(kernel: impl Kernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<__m512>() }
            }
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2(kernel: impl Kernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<__m256>() }
            }
            match self {
                // SAFETY: only `Isa::available` hands out this value, after a check of the machine.
                Self::Avx512 => return unsafe { avx512(kernel) },
                // SAFETY: as above.
                Self::Avx2 => return unsafe { avx2(kernel) },
                Self::Portable => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            #[target_feature(enable = "neon")]
            unsafe fn neon(kernel: impl Kernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<std::arch::aarch64::float32x4_t>() }
            }
            match self {
                // SAFETY: only `Isa::available` hands out this value, after a check of the machine.
                Self::Neon => return unsafe { neon(kernel) },
                Self::Portable => {}
            }
        }
        // SAFETY: arrays of f32 need no instruction set.
        unsafe { kernel.run::<[f32; 4]>() }
    }

    /// Lanes of a vector.
    pub(super) fn lanes(self) -> usize {
        match self {
            Self::Portable => <[f32; 4]>::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => std::arch::x86_64::__m256::LANES,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => std::arch::x86_64::__m512::LANES,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::aarch64::float32x4_t::LANES,
        }
    }

    /// Query rows of the widest panel.
    pub(super) fn panel(self) -> usize {
        self.lanes()
            * match self {
                Self::Portable => <[f32; 4]>::VECTORS,
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => std::arch::x86_64::__m256::VECTORS,
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => std::arch::x86_64::__m512::VECTORS,
                #[cfg(target_arch = "aarch64")]
                Self::Neon => std::arch::aarch64::float32x4_t::VECTORS,
            }
    }
}
