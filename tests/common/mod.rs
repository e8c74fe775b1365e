//! Backends under test, shared by the test files.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod buffers;
pub(crate) mod bugs;
pub(crate) mod gradient_bugs;
pub(crate) mod stack;

use wgpu_attention::gpu::{Gpu, ShaderOptions};
use wgpu_attention::verify::{Candidate, oracle};
use wgpu_attention::{Algorithm, AttentionFn, Backend, Engine, EngineOptions, Inputs, Outputs, Problem, Returns, wgpu};

/// Backend under test.
pub(crate) struct Tested {
    pub(crate) name: String,
    pub(crate) attend: Box<AttentionFn<'static>>,
    pub(crate) engine: Option<Engine>,
    /// Device of the backend, if it is a GPU.
    pub(crate) gpu: Option<Gpu>,
}

impl Tested {
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate { name: &self.name, attend: &*self.attend, engine: self.engine.as_ref() }
    }
}

/// Returns every backend of this machine: the oracle, the CPU path, and each algorithm on each GPU adapter.
pub(crate) fn backends() -> Vec<Tested> {
    let engine = Engine::new(EngineOptions { backend: Backend::Oracle, ..Default::default() }).expect("the oracle is always there");
    let mut backends = vec![Tested { name: "oracle".into(), attend: Box::new(oracle), engine: Some(engine), gpu: None }];
    backends.extend(engines());
    backends
}

/// Returns the backends without the oracle, which are checked against it.
pub(crate) fn engines() -> Vec<Tested> {
    let cpu = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() }).expect("the CPU path is always there");
    std::iter::once(attend("cpu".into(), cpu)).chain(gpus(ShaderOptions::default())).collect()
}

/// Returns each algorithm on each GPU adapter. `ATTENTION_CHECKED=1` turns on every check in the shaders.
pub(crate) fn gpus(shaders: ShaderOptions) -> Vec<Tested> {
    let checked = std::env::var_os("ATTENTION_CHECKED").is_some();
    let (engines, left_out) = Engine::every(ShaderOptions { checked, ..shaders });
    assert!(left_out.is_empty(), "adapters that give no device: {left_out:?}");
    let gpus: Vec<Engine> = engines.into_iter().filter(|engine| engine.gpu().is_some()).collect();
    insist_on_adapters(gpus.len());
    gpus.into_iter().flat_map(ways).collect()
}

/// Warns loudly if there is no GPU adapter; panics then if `CI` is set.
pub(crate) fn insist_on_adapters(found: usize) {
    if found == 0 {
        let message = "NO GPU ADAPTER: nothing that runs on a GPU is tested. scripts/test.sh installs a software one.";
        assert!(std::env::var_os("CI").is_none(), "{message}");
        eprintln!("\n*** {message} ***\n");
    }
}

/// Returns a GPU engine with each algorithm.
fn ways(engine: Engine) -> [Tested; 2] {
    let adapter = engine.gpu().map(|gpu| gpu.device().adapter_info()).map(|info| adapter_name(&info)).unwrap_or_default();
    let gpu = engine.gpu().cloned();
    let staged = engine.clone().with_algorithm(Algorithm::Staged);
    let fused = engine.with_algorithm(Algorithm::Fused);
    let matrices = staged.clone();
    // The fused algorithm has no score matrix: scores and weights come from the staged one.
    let fused = move |problem: &Problem, inputs: &Inputs<'_>| {
        let mut outputs =
            fused.attention(&Problem { want: Returns { scores: None, weights: false, ..problem.want }, ..*problem }, inputs)?;
        if problem.want.scores.is_none() && !problem.want.weights {
            return Ok(outputs);
        }
        let Outputs { scores, weights, .. } = matrices.attention(problem, inputs)?;
        (outputs.scores, outputs.weights) = (scores, weights);
        Ok(outputs)
    };
    [Tested { name: format!("{adapter} fused"), attend: Box::new(fused), engine: None, gpu }, attend(format!("{adapter} staged"), staged)]
}

/// Returns a short name that tells adapters apart: `llvmpipe vulkan`, `SwiftShader vulkan`, `llvmpipe gl`.
fn adapter_name(info: &wgpu::AdapterInfo) -> String {
    format!("{} {}", info.name.split_whitespace().next().unwrap_or_default(), info.backend)
}

fn attend(name: String, engine: Engine) -> Tested {
    let (own, gpu) = (engine.clone(), engine.gpu().cloned());
    Tested { name, attend: Box::new(move |problem, inputs| own.attention(problem, inputs)), engine: Some(engine), gpu }
}
