//! Peak arithmetic rate of the machine: the ceiling that benchmarks draw.

use std::hint::black_box;
use web_time::Instant;

use super::kernel::{Isa, SimdKernel};
use super::matrix::{BlockOfC, Configured, KEEP, LANES, PAIRS, ROWS, TILE};
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
    (2 * STEPS * CHAINS * isa.lanes()) as f64 / seconds(|| isa.run(MultiplyAdds)) / 1e9
}

/// Measures the peak rate of matrix products of bf16 in GFLOP/s, likewise: tiles that are loaded once. `None` where the
/// CPU path has no such instructions.
pub fn matrix_gflops() -> Option<f64> {
    let engine = Isa::best().engine()?;
    let mut steps = vec![[KEEP; 2]; STEPS / 32];
    steps[0] = [0, 0];
    // Multiplying zeros takes the least power, so that nothing is slowed down for it.
    let (a, b) = ([0.0; ROWS * PAIRS], [0.0; 2 * TILE]);
    let run = || {
        let mut c = [0.0f32; ROWS * 2 * LANES];
        let (a, b, of_c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
        let block = BlockOfC { a, a_step: PAIRS, b, steps: &steps, is_wide: true, adds: false, c: of_c, c_step: 2 * LANES };
        // SAFETY: a and b have the tiles of the first step, which all others keep; c is a block; the machine has the engine.
        unsafe {
            let _configured = Configured::new(engine);
            engine.compute(block);
        }
        black_box(c);
    };
    Some((2 * ROWS * 2 * LANES * 2 * PAIRS * steps.len()) as f64 / seconds(run) / 1e9)
}

/// Least time that all threads of the current rayon pool take for one run each, divided by their number.
fn seconds(run: impl Fn() + Sync) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let started = Instant::now();
        // A broadcast reaches each thread; one thread may take all items of a loop before the others wake.
        rayon::broadcast(|_| run());
        best = best.min(started.elapsed().as_secs_f64());
    }
    best / rayon::current_num_threads() as f64
}
