//! Attention on the CPU: explicit SIMD, chosen at run time, on every core.

pub mod backward;
pub mod tiled;

mod backward_unit;
mod job;
mod kernel;
mod merge;
mod narrow;
mod pack;
mod peak;
mod product;
mod shared;
mod simd;
mod simd_neon;
mod simd_x86;
mod softmax;
mod term_tables;
mod tile;
mod unit;
mod user_terms;
mod visible;

pub use merge::{Merged, Part, RowSums, merge};
pub use peak::multiply_add_gflops;

#[cfg(test)]
mod tests;
