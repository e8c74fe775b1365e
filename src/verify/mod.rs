//! Verification: problems with known answers, run on anything that computes attention (feature `verify`).
//!
//! Generated problems go this way, one file for each step:
//!
//! 1. **Problem.** [`table`] lists fixed problems, [`random`] draws them from a seed (`table.rs`, `generate.rs`).
//! 2. **Data.** [`Case::new`] generates the [`Data`] that a [`Fill`] describes. It poisons whatever must not matter
//!    with NaN, infinity and 1e4 (`case.rs`).
//! 3. **Reference.** [`Expected`] and [`ExpectedGradients`] run the f64 oracle. Each element of its answer comes with the
//!    error that f32 arithmetic may make there, a bound derived from the data (`expect.rs`, `expect_backward.rs`).
//! 4. **Comparison.** [`ExpectedTensor::compare`] looks at the shape, then NaN and infinity, then errors (`compare.rs`).
//! 5. **Verdict.** [`check`] and [`check_backward`] run a candidate: passed, failed, or skipped where it calls a
//!    problem [`Unsupported`](crate::Error::Unsupported). [`run_generated`] returns a [`Row`] for each forward pass and
//!    each backward pass, and reduces failing problems by [`minimise`] (`suite.rs`).
//!
//! Users' terms: [`run_terms`] runs somebody's own on problems with many options, and [`check_derivatives`] holds the
//! derivatives of their scores against differences (`term_suite.rs`, `derivative.rs`).
//!
//! [`run_dir`] compares candidates with the answers in case files (`files/`), which bring problem, data, reference and
//! tolerance along. A candidate is a name and a closure:
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

mod case;
mod compare;
pub(crate) mod derivative;
mod expect;
mod expect_backward;
mod files;
mod generate;
mod random_templates;
pub(crate) mod random_text;
pub(crate) mod rounding;
mod suite;
mod table;
mod term_suite;
mod user_terms;

pub use case::{Case, Data, Extreme, Fill};
pub use compare::{Element, Mismatch};
pub use derivative::{Derivative, WrongDerivative, check_derivatives};
pub use expect::{Expected, ExpectedTensor, oracle};
pub use expect_backward::{AttendBackward, ExpectedGradients, backward_oracle};
pub use files::{CaseFile, check_file, check_file_backward, run_dir};
pub use generate::{minimise, random, random_large_of, random_of, random_text_of, shrink};
pub use suite::{
    Awaited, Candidate, Row, Subject, Verdict, check, check_against, check_backward, check_backward_against, count, run_backward_case,
    run_case, run_derivatives, run_generated, run_generated_async,
};
pub use table::table;
pub use term_suite::run_terms;
