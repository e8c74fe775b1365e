//! Attention on the CPU: the oracle and the fast path.

pub mod backward;
pub mod naive;
pub mod naive_backward;
pub mod tiled;

mod backward_unit;
mod job;
mod kernel;
mod narrow;
mod pack;
mod peak;
mod product;
mod shared;
mod simd;
mod simd_neon;
mod simd_x86;
mod softmax;
mod tile;
mod unit;
mod visible;

pub use peak::multiply_add_gflops;

#[cfg(test)]
mod tests;
