//! Peak rates of the machine: the ceilings that benchmarks draw.
//!
//! Each thread of the current rayon pool repeats a short run for a tenth of a second, and its best run counts: a thread
//! that loses its core to another process for a while does not lower the rate. The rates of the threads add up.

use std::hint::black_box;
use std::time::Duration;
use web_time::Instant;

use super::kernel::{Isa, SimdKernel};
use super::matrix::{BlockOfC, Configured, KEEP, LANES, PAIRS, ROWS, TILE};
use super::matrix_block::Engine;
use super::simd::Simd;

/// Time that each thread measures for.
const LONG: Duration = Duration::from_millis(100);

/// Multiply-adds in each of `CHAINS` independent chains, enough to fill two pipelines of latency 4 or 5.
const STEPS: usize = 1 << 17;
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

/// Reads of an array, so many `times`, added up in 8 chains so that no addition waits for another.
struct Reads<'a> {
    array: &'a [f32],
    times: usize,
}

impl SimdKernel for Reads<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the machine has V's instructions by contract; each chunk has 8 vectors, and V at most 16 lanes.
        unsafe {
            let mut sums = [V::splat(0.0); 8];
            for _ in 0..self.times {
                for chunk in black_box(self.array).chunks_exact(8 * V::LANES) {
                    for (at, sum) in sums.iter_mut().enumerate() {
                        *sum = sum.add(V::load(chunk.as_ptr().add(at * V::LANES)));
                    }
                }
            }
            for sum in sums {
                V::load(lanes.as_ptr()).add(sum).store(lanes.as_mut_ptr());
            }
        }
        black_box(lanes);
    }
}

/// Peak rate of an instruction set that the CPU path can use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// Name, as `WGPU_ATTENTION_CPU` has it.
    pub name: &'static str,
    /// Multiply-adds of f32 vectors, 2 operations each, in GFLOP/s.
    pub multiply_add_gflops: f64,
    /// Matrix products of bf16 parts in GFLOP/s, where the set has instructions for them.
    pub matrix_gflops: Option<f64>,
}

/// Measures every instruction set of this machine, the one that the CPU path uses last. Takes 0.1 to 0.2 s for each.
pub fn peaks() -> Vec<Peak> {
    let others = Isa::available().filter(|&isa| isa != Isa::Twin && isa != Isa::best());
    let peak = |isa: Isa| Peak {
        name: isa.name(),
        multiply_add_gflops: rate((2 * STEPS * CHAINS * isa.lanes()) as f64, || (), |_| isa.run(MultiplyAdds)) / 1e9,
        matrix_gflops: isa.engine().map(matrix_gflops),
    };
    others.chain([Isa::best()]).map(peak).collect()
}

/// Measures how fast each thread reads an array of its own of `bytes` bytes again and again, all together in GB/s. An array
/// that fits in a cache measures that cache.
pub fn read_gb_s(bytes: usize) -> f64 {
    let (len, times) = (bytes / 4, (1 << 22) / bytes.clamp(1, 1 << 22));
    // From the beginning of a cache line on.
    let lines = |array: &Vec<f32>| Isa::best().run(Reads { array: &array[array.as_ptr().align_offset(64)..][..len], times });
    rate((4 * len * times) as f64, || vec![1.0f32; len + 16], lines) / 1e9
}

/// Measures tiles that are loaded once.
fn matrix_gflops(engine: Engine) -> f64 {
    let mut steps = vec![[KEEP; 2]; STEPS / 32];
    steps[0] = [0, 0];
    // Multiplying zeros takes the least power, so that nothing is slowed down for it.
    let (a, b) = ([0.0; ROWS * PAIRS], [0.0; 2 * TILE]);
    let run = |_: &()| {
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
    rate((2 * ROWS * 2 * LANES * 2 * PAIRS * steps.len()) as f64, || (), run) / 1e9
}

/// Work done per second by all threads: each makes its data, then does the `work` of a run as often as it can.
fn rate<T>(work: f64, data: impl Fn() -> T + Sync, run: impl Fn(&T) + Sync) -> f64 {
    // A broadcast reaches each thread; one thread may take all items of a loop before the others wake.
    let best = rayon::broadcast(|_| {
        let data = data();
        let (started, mut best) = (Instant::now(), f64::INFINITY);
        while started.elapsed() < LONG {
            let one = Instant::now();
            run(&data);
            best = best.min(one.elapsed().as_secs_f64());
        }
        best
    });
    best.into_iter().map(|seconds| work / seconds).sum()
}
