//! The oracle: attention and its gradients in f64, written to be checked by reading. Slow.

mod backward;
mod forward;

#[cfg(feature = "verify")]
pub(crate) use backward::{Operands, Pairs, pairs, sums};
pub use backward::{ReferenceGradients, gradients};
#[cfg(feature = "verify")]
pub(crate) use forward::key_row;
pub use forward::{Reference, attention};
