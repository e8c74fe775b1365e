//! Arithmetic of the fast path, written once for all instruction sets.
//!
//! Most of it works on *panels*: arrays [n][panel] in which the lanes of a vector are query rows. Scores are stored as
//! [key][query row], outputs as [dim][query row]. Therefore no row's max or sum crosses lanes, and both matrix products
//! are one kernel ([`super::product`]) that reads keys and values in place and broadcasts each of their elements.

use super::simd::{Isa, Simd};

/// Computation that [`Isa::run`] compiles for each instruction set.
pub(super) trait SimdKernel {
    /// # Safety
    /// The machine must support the instruction set of `V`.
    unsafe fn run<V: Simd>(self);
}

impl Isa {
    /// Runs a kernel with this instruction set.
    pub(super) fn run(self, kernel: impl SimdKernel) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m256, __m512};
            #[target_feature(enable = "avx512f")]
            unsafe fn avx512(kernel: impl SimdKernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<__m512>() }
            }
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2(kernel: impl SimdKernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<__m256>() }
            }
            match self {
                // SAFETY: only `Isa::available` returns this value, after a check of the machine.
                Self::Avx512 => return unsafe { avx512(kernel) },
                // SAFETY: as above.
                Self::Avx2 => return unsafe { avx2(kernel) },
                Self::Portable => {}
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            #[target_feature(enable = "neon")]
            unsafe fn neon(kernel: impl SimdKernel) {
                // SAFETY: this function has the features of the vector.
                unsafe { kernel.run::<std::arch::aarch64::float32x4_t>() }
            }
            match self {
                // SAFETY: only `Isa::available` returns this value, after a check of the machine.
                Self::Neon => return unsafe { neon(kernel) },
                Self::Portable => {}
            }
        }
        // SAFETY: arrays of f32 need no instruction set.
        unsafe { kernel.run::<[f32; 4]>() }
    }

    /// Number of lanes in a vector.
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

    /// Query rows in the widest panel.
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
