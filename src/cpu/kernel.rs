//! Arithmetic of the fast path, written once and compiled for each instruction set.
//!
//! Most of it works on *panels*: arrays [n][panel] in which the lanes of a vector are query rows. Scores are stored as
//! [key][query row], outputs as [dim][query row]. Therefore no row's max or sum crosses lanes, and both matrix products
//! are one kernel ([`super::product`]) that reads keys and values in place and broadcasts each of their elements.

use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::float32x4_t;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
use std::arch::wasm32::v128;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{__m256, __m512};

use super::matrix_block::{Engine, LANES};
use super::simd::Simd;

/// Computation that [`Isa::run`] compiles for each instruction set.
pub(super) trait SimdKernel {
    /// # Safety
    /// The machine must support the instruction set of `V`.
    unsafe fn run<V: Simd>(self);
}

/// Instruction set that the kernels are compiled for, and that matrix products use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// Portable vectors, with the scalar twin of matrix tiles. For tests: it is slow.
    Twin,
    Portable,
    /// NEON with matrix products of bf16. Not the best: no machine has timed it.
    NeonBf16,
    Neon,
    Wasm,
    Avx2,
    /// AVX-512 with dot products of bf16 pairs for bf16 problems. Not the best: on a Sapphire Rapids, a dot product takes
    /// as long as four multiply-adds of the same width, which do twice its work.
    Avx512Bf16,
    Avx512,
    /// AVX-512 with matrix tiles.
    Amx,
}

/// Environment variable that names an instruction set, to use it instead of the best one.
const VARIABLE: &str = "WGPU_ATTENTION_CPU";

/// True if this is WebAssembly with vectors.
const WASM: bool = cfg!(all(target_arch = "wasm32", target_feature = "simd128"));

impl Isa {
    /// Instruction sets that this machine supports, the best one last.
    pub(super) fn available() -> impl DoubleEndedIterator<Item = Self> {
        const ALL: [Isa; 9] =
            [Isa::Twin, Isa::Portable, Isa::NeonBf16, Isa::Neon, Isa::Wasm, Isa::Avx2, Isa::Avx512Bf16, Isa::Avx512, Isa::Amx];
        ALL.into_iter().filter(|isa| match isa {
            // WebAssembly with vectors runs only where they are: the others would be downloaded in vain.
            Self::Twin | Self::Portable => !WASM,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16 => super::matrix_neon::has_products(),
            Self::Wasm => WASM,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => is_x86_feature_detected!("avx512f"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => super::matrix_x86::has_dots(),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => super::matrix_x86::has_tiles(),
            _ => false,
        })
    }

    /// Best instruction set that this machine supports, or the one that the environment variable names.
    pub(super) fn best() -> Self {
        if WASM {
            return Self::Wasm;
        }
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Self::available().next_back().unwrap_or(Self::Portable);
            let Ok(name) = std::env::var(VARIABLE) else { return best };
            let named = Self::available().find(|isa| isa.name() == name);
            if named.is_none() {
                let names: Vec<_> = Self::available().map(Self::name).collect();
                log::warn!("{VARIABLE} is {name:?}; this machine has {}", names.join(", "));
            }
            named.unwrap_or(best)
        })
    }

    /// Name, as the environment variable has it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Twin => "twin",
            Self::Portable => "portable",
            Self::Neon => "neon",
            Self::NeonBf16 => "neon-bf16",
            Self::Wasm => "simd128",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Amx => "amx",
        }
    }

    /// Engine of matrix products, if there is one.
    pub(super) const fn engine(self) -> Option<Engine> {
        match self {
            Self::Twin if !WASM => Some(Engine::Twin),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Some(Engine::Dots),
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Some(Engine::Tiles),
            #[cfg(target_arch = "aarch64")]
            Self::NeonBf16 => Some(Engine::Mmla),
            _ => None,
        }
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
                Self::Avx512 | Self::Avx512Bf16 | Self::Amx => avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2(kernel),
                #[cfg(target_arch = "aarch64")]
                Self::Neon | Self::NeonBf16 => neon(kernel),
                #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
                _ => kernel.run::<v128>(),
                #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
                _ => kernel.run::<[f32; 4]>(),
            }
        }
    }

    /// Number of lanes in a vector.
    pub(super) fn lanes(self) -> usize {
        self.sizes()[0]
    }

    /// Number that the width of every panel is a multiple of.
    pub(super) fn panel_unit(self) -> usize {
        if self.engine().is_some() { LANES } else { self.lanes() }
    }

    /// Query rows in the widest panel.
    pub(super) fn panel(self) -> usize {
        self.sizes()[1].max(self.panel_unit())
    }

    fn sizes(self) -> [usize; 2] {
        fn of<V: Simd>() -> [usize; 2] {
            [V::LANES, V::LANES * V::VECTORS]
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 | Self::Amx => of::<__m512>(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => of::<__m256>(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon | Self::NeonBf16 => of::<float32x4_t>(),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            _ => of::<v128>(),
            #[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
            _ => of::<[f32; 4]>(),
        }
    }
}
