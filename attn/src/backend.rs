//! Which engine a command works on.

use wgpu_attention::gpu::{self, ShaderOptions};
use wgpu_attention::{Algorithm, Backend, Engine, EngineOptions, Error};

use crate::failure::Failure;

/// What every command with a `--backend` says about it.
pub(crate) const BACKEND_HELP: &str = "Where to compute: auto, cpu, oracle, a wgpu backend (vulkan, gl, metal, dx12) or part of an adapter's name; auto is a real GPU if there is one, else the CPU";

/// For clap: [`Backend`]'s own parser.
pub(crate) fn parse(text: &str) -> Result<Backend, Error> {
    text.parse()
}

/// Makes the engine ready.
pub(crate) fn open(backend: &Backend, algorithm: Algorithm, checked: bool) -> Result<Engine, Failure> {
    let options = EngineOptions { backend: backend.clone(), algorithm, shaders: ShaderOptions { checked, ..Default::default() } };
    Engine::new(options).map_err(|error| match Failure::from(error) {
        Failure::Input(why) => Failure::Input(format!("--backend {backend}: {why}")),
        other => other,
    })
}

/// The CPU path and every adapter, each once; and why an adapter is left out.
pub(crate) fn every(checked: bool) -> (Vec<Engine>, Vec<String>) {
    let adapters = pollster::block_on(gpu::list());
    // By backend, as far as that says which; else by name.
    let selectors = adapters.iter().enumerate().map(|(at, adapter)| {
        let first = adapters.iter().position(|other| other.backend == adapter.backend) == Some(at);
        Backend::Adapter(if first { adapter.backend.clone() } else { adapter.name.clone() })
    });
    let (mut engines, mut left_out) = (Vec::<Engine>::new(), Vec::new());
    for backend in std::iter::once(Backend::Cpu).chain(selectors) {
        match open(&backend, Algorithm::Auto, checked) {
            Ok(engine) if engines.iter().any(|other| other.chosen() == engine.chosen()) => {}
            Ok(engine) => engines.push(engine),
            Err(failure) => left_out.push(failure.to_string()),
        }
    }
    (engines, left_out)
}
