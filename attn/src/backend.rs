//! Engines, and options that several subcommands share.

use std::str::FromStr;

use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::{Algorithm, Backend, Engine, EngineOptions};

use crate::failure::Failure;

/// Option of the commands that compute on one backend.
#[derive(clap::Args, Debug)]
pub(crate) struct BackendArg {
    /// Where to compute: auto, cpu, oracle, vulkan, gl, metal, dx12 or part of an adapter's name.
    /// auto is a real GPU if there is one, else the CPU
    #[arg(long, value_name = "BACKEND", default_value = "auto", value_parser = Backend::from_str)]
    pub(crate) backend: Backend,
}

/// Option of the commands that compute on several backends.
#[derive(clap::Args, Debug)]
pub(crate) struct BackendsArg {
    /// Where to compute, as for `attn run`; may be repeated [default: bench auto and cpu, verify the CPU path and
    /// every adapter]
    #[arg(long, value_name = "BACKEND", value_parser = Backend::from_str)]
    pub(crate) backend: Vec<Backend>,
}

/// Parses one of several words.
pub(crate) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let known: Vec<&str> = words.iter().map(|word| word.0).collect();
    words.iter().find(|word| word.0 == text).map(|word| word.1).ok_or_else(|| format!("say {}", known.join(" or ")))
}

/// Opens an engine that chooses its kernels itself.
pub(crate) fn open(backend: &Backend) -> Result<Engine, Failure> {
    open_with(backend, Algorithm::Auto, ShaderOptions::default())
}

/// Opens an engine of fused kernels, which can be tuned or loaded from tuning results if it is `tunable`.
pub(crate) fn open_fused(backend: &Backend, tunable: bool) -> Result<Engine, Failure> {
    open_with(backend, Algorithm::Fused, ShaderOptions { tune_matrices: tunable, ..Default::default() })
}

pub(crate) fn open_with(backend: &Backend, algorithm: Algorithm, shaders: ShaderOptions) -> Result<Engine, Failure> {
    let options = EngineOptions { backend: backend.clone(), algorithm, shaders, ..Default::default() };
    Engine::new(options).map_err(|error| match Failure::from(error) {
        Failure::Input(why) => Failure::at(format!("--backend {backend}"), why),
        other => other,
    })
}

/// Opens one fused engine per backend; duplicates of an adapter are dropped.
pub(crate) fn open_each(backends: &[Backend], shaders: ShaderOptions) -> Result<Vec<Engine>, Failure> {
    let mut engines: Vec<Engine> = Vec::new();
    for backend in backends {
        let engine = open_with(backend, Algorithm::Fused, shaders)?;
        if engines.iter().all(|known| known.chosen() != engine.chosen()) {
            engines.push(engine);
        }
    }
    Ok(engines)
}
