//! Numbers as they are stored: floats, quantised blocks, rotations before them, slices and vectors, and random ones for tests.

pub(crate) mod blocks;
mod dtype;
mod hadamard;
mod host;
pub(crate) mod pages;
mod random;

pub use dtype::DType;
pub(crate) use dtype::{BLOCK, block_words};
pub use hadamard::Hadamard;
pub use host::{Element, HostSlice, HostVec};
pub(crate) use random::Random;
