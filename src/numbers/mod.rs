//! Numbers as they are stored: floats, quantised blocks, slices and vectors of either, and random ones for tests.

pub(crate) mod blocks;
mod dtype;
mod host;
mod random;

pub use dtype::DType;
pub(crate) use dtype::{BLOCK, block_words};
pub use host::{Element, HostSlice, HostVec};
pub(crate) use random::Random;
