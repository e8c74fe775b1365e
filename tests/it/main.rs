//! Integration tests, one module per topic, in one binary: each binary links the library, wgpu and naga anew.
//!
//! `cargo test --release --test it layer::` runs one module. Tests that need a process of their own are files beside this
//! folder, and say why in their first line.
#![expect(clippy::print_stdout, reason = "tables of what ran on what")]

mod absurd;
mod binding_limits;
mod cache;
mod cache_export;
mod cache_heads;
mod cache_rotation;
mod cache_window;
mod case_files;
mod common;
mod conformance;
mod decode;
mod derivatives;
mod device;
mod device_backward;
mod device_cache;
mod device_schedules;
mod floors;
mod gallery;
mod generate;
mod gradient_harness;
mod gradient_oracle;
mod gradients;
mod guide;
mod harness;
mod hidden_scores;
mod hostile_terms;
mod key_sums;
mod layer;
mod layer_gradients;
mod layer_weights;
mod ledger;
mod long_contexts;
mod models;
mod onnx;
mod pipeline_cache;
mod properties;
mod speculation;
mod threads;
mod tile_lists;
mod tune;
mod user_status;
