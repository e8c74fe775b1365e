//! Attention on the CPU: explicit SIMD, chosen at run time, on every core.

pub mod backward;
pub mod tiled;

mod backward_matrix;
mod backward_unit;
mod bias_gradient;
mod exp;
mod job;
mod kernel;
mod key_sums;
mod matrix;
mod matrix_block;
mod matrix_neon;
mod matrix_pack;
mod matrix_twin;
mod matrix_x86;
mod merge;
mod narrow;
mod pack;
mod peak;
mod pool;
mod product;
mod shared;
mod simd;
mod simd_neon;
mod simd_wasm;
mod simd_x86;
mod softmax;
mod status;
mod term_tables;
mod tile;
mod tile_list;
mod unit;
mod user_grid;
mod user_status;
mod user_term;
mod user_terms;
mod visible;

pub use crate::custom::TileStatus;
pub use merge::{Merged, Part, RowSums, merge};
pub use peak::{Peak, peaks, read_gb_s};
pub use status::Tiles;

pub(crate) use user_status::check_status;

#[cfg(test)]
mod matrix_tests;
#[cfg(test)]
mod tests;
