//! The CPU: the oracle, and the fast path.

pub mod naive;
pub mod tiled;
