//! Peak arithmetic rate of the machine: the ceiling that benchmarks draw.

use std::hint::black_box;
use std::time::Instant;

use super::kernel::{Isa, SimdKernel};
use super::simd::Simd;

/// Multiply-adds in each of `CHAINS` independent chains, enough to fill two pipelines of latency 4 or 5.
const STEPS: usize = 1 << 18;
const CHAINS: usize = 12;

/// Chains of multiply-adds that touch no memory.
struct MultiplyAdds;

impl SimdKernel for MultiplyAdds {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the machine has V's instructions by contract; V has at most 16 lanes.
        unsafe {
            let (factor, addend) = (V::splat(black_box(0.999)), V::splat(black_box(0.001)));
            let mut chains = [V::splat(black_box(1.0)); CHAINS];
            for _ in 0..STEPS {
                for chain in &mut chains {
                    *chain = chain.mul_add(factor, addend);
                }
            }
            for chain in chains {
                V::load(lanes.as_ptr()).add(chain).store(lanes.as_mut_ptr());
            }
        }
        black_box(lanes);
    }
}

/// Measures the peak rate of the current rayon pool in GFLOP/s: multiply-adds of registers, 2 operations each, with the
/// instruction set that the CPU path uses. Takes about a tenth of a second.
pub fn multiply_add_gflops() -> f64 {
    let isa = Isa::best();
    let threads = rayon::current_num_threads();
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let started = Instant::now();
        // A broadcast reaches each thread; one thread may take all items of a loop before the others wake.
        rayon::broadcast(|_| isa.run(MultiplyAdds));
        best = best.min(started.elapsed().as_secs_f64());
    }
    (2 * STEPS * CHAINS * isa.lanes() * threads) as f64 / best / 1e9
}
