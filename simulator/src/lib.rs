//! A GPU that holds still: runs a WGSL compute shader on the CPU as a GPU is *allowed* to run it, and reports what WGSL does not define
//! or promise.
//!
//! Subgroups have any size and their lanes any order; invocations reach memory in an order that a seed says; workgroup memory and what
//! nobody wrote in a buffer is poison. A data race, an access out of bounds, a barrier that not everybody reaches and the like
//! ([`Rule`]) are [`Finding`]s, each with its line.
//!
//! ```
//! use wgpu_attention_simulator::{Binding, Buffer, Options, Rule, Shader};
//!
//! let shader = Shader::new("
//!     @group(0) @binding(0) var<storage, read_write> sums: array<u32>;
//!     var<workgroup> tile: array<u32, 64>;
//!     @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
//!         tile[i] = i;
//!         // A workgroupBarrier() is missing here.
//!         sums[i] = tile[63u - i];
//!     }")?;
//! let mut buffers = [Buffer::unwritten(256, 0)];
//! let report = shader.dispatch(&mut buffers, &[Binding { binding: 0, buffer: 0, offset: 0, size: 256 }], [1, 1, 1], &Options::default())?;
//! assert_eq!(report.findings[0].rule, Rule::Race);
//! # Ok::<(), wgpu_attention_simulator::Error>(())
//! ```
//!
//! What is not looked for: values of results (compare them with an oracle), kinds of memory order finer than barriers, textures,
//! 16-bit arithmetic, cooperative matrices.
//!
//! Expressions (`eval`, `math`) know nothing of memory and workgroups: they evaluate naga's IR for all lanes of a register file.

mod access;
mod coverage;
mod dispatch;
mod eval;
mod expressions;
mod lower;
mod machine;
mod math;
mod memory;
mod program;
mod report;
mod subgroup;
mod types;
mod value;

pub use dispatch::{Binding, Options, Report, Shader};
pub use memory::Buffer;
pub use program::Declared;
pub use report::{Finding, Rule};
pub use subgroup::LaneOrder;

use std::fmt;

/// Reasons why a shader does not run at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// It is not WGSL; naga's message.
    Shader(String),
    /// It uses what the simulator does not have.
    Unsupported(String),
    /// The bindings do not fit what it declares.
    Bindings(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shader(message) => f.write_str(message),
            Self::Unsupported(what) => write!(f, "the simulator has no {what}"),
            Self::Bindings(why) => write!(f, "bindings: {why}"),
        }
    }
}

impl std::error::Error for Error {}
