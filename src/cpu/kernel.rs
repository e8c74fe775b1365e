//! Arithmetic of the fast path, written once and compiled for each instruction set.
//!
//! Most of it works on *panels*: arrays [n][panel] in which the lanes of a vector are query rows. Scores are stored as
//! [key][query row], outputs as [dim][query row]. Therefore no row's max or sum crosses lanes, and both matrix products
//! are one kernel ([`super::product`]) that reads keys and values in place and broadcasts each of their elements.

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4_t;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

use super::simd::Simd;

/// Computation that [`Isa::run`] compiles for each instruction set.
pub(super) trait SimdKernel {
    /// # Safety
    /// The machine must support the instruction set of `V`.
    unsafe fn run<V: Simd>(self);
}

/// Instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    Portable,
    Neon,
    Avx2,
    Avx512,
}

impl Isa {
    /// Instruction sets that this machine supports, the best one last.
    pub(super) fn available() -> impl DoubleEndedIterator<Item = Self> {
        [Self::Portable, Self::Neon, Self::Avx2, Self::Avx512].into_iter().filter(|isa| match isa {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            _ => false,
        })
    }

    /// Best instruction set that this machine supports.
    pub(super) fn best() -> Self {
        Self::available().next_back().unwrap_or(Self::Portable)
    }

    /// Runs a kernel with this instruction set.
    pub(super) fn run(self, kernel: impl SimdKernel) {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512(kernel: impl SimdKernel) {
            // SAFETY: this function has the features of the vector.
            unsafe { kernel.run::<__m512>() }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2(kernel: impl SimdKernel) {
            // SAFETY: this function has the features of the vector.
            unsafe { kernel.run::<__m256>() }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon")]
        unsafe fn neon(kernel: impl SimdKernel) {
            // SAFETY: this function has the features of the vector.
            unsafe { kernel.run::<float32x4_t>() }
        }
        // SAFETY: only `Isa::available` returns the others, after a check of the machine; arrays need no instruction set.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2(kernel),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => neon(kernel),
                _ => kernel.run::<[f32; 4]>(),
            }
        }
    }

    /// Number of lanes in a vector.
    pub(super) fn lanes(self) -> usize {
        self.sizes()[0]
    }

    /// Query rows in the widest panel.
    pub(super) fn panel(self) -> usize {
        self.sizes()[1]
    }

    fn sizes(self) -> [usize; 2] {
        fn of<V: Simd>() -> [usize; 2] {
            [V::LANES, V::LANES * V::VECTORS]
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => of::<__m512>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => of::<__m256>(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => of::<float32x4_t>(),
            _ => of::<[f32; 4]>(),
        }
    }
}
