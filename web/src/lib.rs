//! The WebAssembly module of the npm package `wgpu-attention`: planner and CPU path as pure functions. The package's
//! JavaScript owns devices, buffers and workers, and runs the plans.
#![cfg(target_family = "wasm")]

pub mod cache;
pub mod cpu;
pub mod device;
mod errors;
mod object;
mod request;
#[cfg_attr(not(feature = "terms"), path = "no_terms.rs")]
mod terms;
#[cfg(feature = "verify")]
pub mod verify;

use js_sys::Uint16Array;
use wasm_bindgen::prelude::wasm_bindgen;
use wgpu_attention::{DType, HostVec};

/// Bits of numbers as f16, or as bf16: what uploads to a device take.
#[wasm_bindgen]
pub fn narrow(numbers: &[f32], is_bf16: bool) -> Uint16Array {
    object::to_array(HostVec::from_f32(if is_bf16 { DType::BF16 } else { DType::F16 }, numbers)).into()
}
