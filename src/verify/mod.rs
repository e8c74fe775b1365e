//! Verification: problems with known answers, run on anything that computes attention (feature `verify`).
//!
//! [`run_generated`] compares candidates with the f64 oracle on a fixed table of problems and on random problems.
//! [`run_dir`] compares them with the answers in case files. Both return [`Row`]s. A candidate is a name and a closure:
//!
//! ```
//! use wgpu_attention::verify::{Candidate, check, oracle, random};
//! use wgpu_attention::{Backend, Engine, EngineOptions, Inputs, Problem};
//!
//! let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
//! let attend = |problem: &Problem, inputs: &Inputs<'_>| engine.attention(problem, inputs);
//! let candidates = [Candidate { name: "oracle", attend: &oracle, engine: None },
//!     Candidate { name: "cpu", attend: &attend, engine: Some(&engine) }];
//! let case = random(7)?;
//! for candidate in candidates {
//!     println!("{} on {}: {}", case.name, candidate.name, check(&case, candidate.attend));
//! }
//! # Ok::<(), wgpu_attention::Error>(())
//! ```
//!
//! A case that a candidate calls [`Unsupported`](crate::Error::Unsupported) is skipped with its reason, never passed.

mod case;
mod case_file;
mod cases;
mod cases_backward;
mod cases_model;
mod cases_onnx;
mod cases_sdpa;
mod cases_serving;
mod compare;
mod expect;
mod expect_backward;
mod generate;
mod suite;
mod suite_backward;
mod table;

pub use case::{Case, Data, Extreme, Fill};
pub use case_file::{CaseFile, FileData, FileTensor};
pub use cases::check_file;
pub use compare::{Element, Mismatch, Tolerance, compare};
pub use expect::{Expected, ExpectedTensor, oracle};
pub use expect_backward::{AttendBackward, ExpectedGradients, backward_oracle};
pub use generate::{minimise, random, random_large, random_large_of, random_of, shrink};
pub use suite::{Candidate, Row, Verdict, check, check_against, count, run_case, run_dir, run_generated};
pub use suite_backward::{check_backward, check_backward_against, run_backward_case};
pub use table::table;
