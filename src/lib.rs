//! Scaled dot-product attention on wgpu, with a CPU path that checks the GPU's kernels and runs where there is no GPU.
//!
//! ```
//! use wgpu_attention::{Backend, Dims, Engine, EngineOptions, Inputs, Problem};
//!
//! let problem = Problem::new(Dims::self_attention(1, 1, 2, 2));
//! let (query, key, value) = ([1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [1.0, 2.0, 3.0, 4.0]);
//! let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
//! let outputs = engine.attention(&problem, &Inputs::new(&query[..], &key[..], &value[..]))?;
//! assert_eq!(outputs.output.to_f32().len(), 4);
//! # Ok::<(), wgpu_attention::Error>(())
//! ```
//!
//! The module [`gpu`] records into an app's own encoder. Its page says what is deterministic, what recordings share, and
//! what may be called from which thread.
//!
//! Options are structs with public fields. Those with a default, and device capabilities, may get more fields in later
//! versions: end their literals with `..Default::default()` or `..DeviceCaps::webgpu_defaults()`, those of bindings with
//! `..Bindings::new(..)`.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[macro_use]
mod shader_text;

pub mod cache;
pub mod cpu;
mod custom;
mod engine;
mod error;
pub mod gpu;
pub mod layer;
#[cfg_attr(not(feature = "verify"), expect(dead_code, reason = "some of it is for the generator"))]
mod numbers;
pub mod onnx;
pub mod oracle;
pub mod plan;
mod problem;
mod progress;
pub mod rotary;
mod terms;
#[cfg(feature = "verify")]
pub mod verify;
mod wgsl;

pub use cpu::{Merged, Part, RowSums, merge};
pub use custom::{Owner, Table, TableType, Term};
pub use engine::{Canary, Engine, EngineOptions, TriedKernels, Tuned, TunedKernel};
pub use error::{Cause, Error, Result};
pub use half::{bf16, f16};
pub use numbers::{DType, Element, Hadamard, HostSlice, HostVec};
pub use problem::{
    Algorithm, Alibi, Alignment, AttentionFn, Backend, BackwardInputs, BlockList, BroadcastShape, Dims, Dropout, Gradients, Inputs, Layout,
    Outputs, PageTable, Paged, Problem, Returns, ScoreOrder, ScoreStage, Strides, SummedRows, TableData, TensorSpec, TileLists, Varlen,
    Visibility, WantGradients, gather,
};
pub use progress::{Progress, ProgressFn};
pub use terms::{TermWord, term_words};
pub use wgpu;

/// README examples, run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Examples of the guide, run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;

/// Examples of the page on masks and scores of one's own, run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../docs/terms.md")]
struct Terms;
