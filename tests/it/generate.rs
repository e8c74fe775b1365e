//! Runs the example on every backend: its tokens agree with those of the model without a cache.

#[allow(dead_code, reason = "its main")]
#[path = "../../examples/generate.rs"]
mod example;

use crate::common::cpu_and_adapters;
use wgpu_attention::DType;

#[test]
fn a_cache_changes_no_token() {
    for engine in cpu_and_adapters() {
        let (same, all) = example::write(&engine, DType::F32).expect("written");
        assert!(same == all && all == 72, "{}: {same} of {all}", engine.chosen());
    }
}
