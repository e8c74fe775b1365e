//! The oracle: attention and its gradients in f64, written to be checked by reading. Slow.

mod backward;
mod forward;
mod tables;
pub(crate) mod walk;
mod walk_math;
mod walk_value;

#[cfg(feature = "verify")]
pub(crate) use backward::{Operands, Pairs, pairs, sums};
pub use backward::{ReferenceGradients, gradients};
pub use forward::{Reference, attention};
#[cfg(feature = "verify")]
pub(crate) use forward::{hadamard, key_row, pairs_of};
