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

#![cfg_attr(docsrs, feature(doc_cfg))]

mod blocks;
pub mod cache;
mod canary;
mod choice;
mod control;
pub mod cpu;
mod dropout;
mod dtype;
mod engine;
mod error;
pub mod gpu;
mod gradients;
mod inputs;
pub mod layer;
mod merge;
pub mod onnx;
mod paged;
pub mod plan;
mod problem;
#[cfg_attr(not(feature = "verify"), expect(dead_code, reason = "some of it is for the generator"))]
mod random;
pub mod rotary;
mod shader;
mod tables;
mod tensor;
#[cfg_attr(not(feature = "verify"), expect(dead_code, reason = "some of it is for the generator"))]
mod terms;
mod tune;
#[cfg(feature = "verify")]
pub mod verify;
mod visibility;

pub use choice::{Algorithm, Backend};
pub use control::Progress;
pub use dropout::Dropout;
pub use dtype::{DType, Element, HostSlice, HostVec};
pub use engine::{Engine, EngineOptions};
pub use error::{Error, Result};
pub use gradients::{BackwardInputs, Gradients, WantGradients};
pub use half::{bf16, f16};
pub use inputs::{AttentionFn, Inputs, Outputs};
pub use merge::{Merged, Part, merge};
pub use paged::{PageTable, Paged};
pub use problem::{Alibi, Dims, Problem, Returns, ScoreOrder, ScoreStage, Varlen};
pub use tensor::{Layout, Strides, TensorSpec, gather};
pub use terms::{TermWord, term_words};
pub use tune::{Tuned, TunedKernel};
pub use visibility::{Alignment, BroadcastShape, Visibility};
pub use wgpu;

/// README examples, run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Examples of the guide, run as doctests.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;
