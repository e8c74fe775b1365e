//! The WebAssembly modules of the npm package `wgpu-attention`: planner and CPU path as pure functions. The package's
//! JavaScript owns devices, buffers and workers, and runs the plans.
#![cfg(target_family = "wasm")]
#![cfg_attr(not(all(feature = "cpu", feature = "verify")), allow(dead_code, reason = "each module needs a part of the requests"))]

#[cfg(feature = "cache")]
pub mod cache;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "plan")]
pub mod device;
mod errors;
mod object;
mod progress;
mod request;
#[cfg(any(feature = "cache", feature = "cpu"))]
mod stored;
#[cfg_attr(not(feature = "terms"), path = "no_terms.rs")]
mod terms;
#[cfg(feature = "verify")]
pub mod verify;
