//! Runs the example on every backend: its tokens agree with those of the model without a cache.

mod common;

#[allow(dead_code, reason = "its main")]
#[path = "../examples/generate.rs"]
mod generate;

use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::{Backend, DType, Engine, EngineOptions};

#[test]
fn the_same_as_from_the_start() {
    let cpu = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() }).expect("the CPU path is always there");
    let (gpus, _) = Engine::every(ShaderOptions::default());
    common::insist_on_adapters(gpus.iter().filter(|engine| engine.gpu().is_some()).count());
    for engine in std::iter::once(cpu).chain(gpus.into_iter().filter(|engine| engine.gpu().is_some())) {
        let (same, all) = generate::write(&engine, DType::F32).expect("written");
        assert!(same == all && all == 72, "{}: {same} of {all}", engine.chosen());
    }
}
