//! Terms that users write in WGSL: which pairs are visible, and what becomes of their scores.
//!
//! The text is parsed and checked by naga and lowered to a straight-line [`Program`] for each of its functions. Kernels
//! contain the program, printed again, never the text: indices are clamped, divisions guarded, loops unrolled, and no
//! name of the user's can meet one of ours. The CPU path evaluates the program for many pairs at once; the oracle walks
//! naga's functions themselves.

mod access;
mod builder;
mod derive;
mod elementary;
pub(crate) mod emit;
pub(crate) mod evaluate;
mod expressions;
mod functions;
pub(crate) mod interval;
mod lower;
mod math;
pub(crate) mod owner;
mod parse;
pub(crate) mod program;
pub(crate) mod scalar;
pub(crate) mod schedule;
mod sizes;
pub(crate) mod status;
mod term;
#[cfg(all(test, feature = "verify"))]
mod tests;
pub(crate) mod tile;

pub(crate) use functions::Functions;
pub use functions::TableType;
pub use owner::Owner;
pub(crate) use owner::{Strides, TableGradient};
pub(crate) use term::ARE_READ;
pub use term::{Table, Term};
pub use tile::Status as TileStatus;
pub(crate) use tile::Tile;
