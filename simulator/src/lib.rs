//! Simulator that runs a WGSL compute shader on the CPU as a GPU is *allowed* to run it, and reports what WGSL does not
//! define or promise.
//!
//! Subgroups have any size and their lanes any order; invocations reach memory in an order drawn from a seed; workgroup
//! memory and unwritten parts of buffers are poison. Data races, accesses out of bounds, non-uniform barriers and the
//! other [`Rule`]s are reported as [`Finding`]s with their line.
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
//! Not checked: the values of results (compare them with an oracle) and memory orders finer than barriers. Not
//! supported: textures, 16-bit arithmetic, cooperative matrices.
//!
//! Expressions (`eval`, `math`) are independent of memory and workgroups: they evaluate naga's IR for all lanes.

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

/// Reason why a shader cannot run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The text is not valid WGSL; has naga's message.
    Shader(String),
    /// The shader uses something that the simulator does not support.
    Unsupported(String),
    /// The bindings do not match the shader's declarations.
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
