//! Backends under test, and what several modules do with them.

pub(crate) mod buffers;
pub(crate) mod bugs;
pub(crate) mod gradient_bugs;
pub(crate) mod heads;
pub(crate) mod plan_host;
pub(crate) mod replay;
pub(crate) mod stack;

use wgpu_attention::gpu::{Gpu, ShaderOptions};
use wgpu_attention::verify::{Candidate, ExpectedTensor, Row, Verdict, count, oracle};
use wgpu_attention::{Algorithm, AttentionFn, Backend, DType, Engine, EngineOptions, Inputs, Outputs, Problem, Returns, wgpu};

use buffers::insist_on_adapters;

/// Storage types of keys and values.
pub(crate) const STORAGE: [DType; 5] = [DType::F32, DType::F16, DType::BF16, DType::Q8, DType::Q4];

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
    let engine = Some(open(Backend::Oracle));
    let mut backends = vec![Tested { name: "oracle".into(), attend: Box::new(oracle), engine, gpu: None }];
    backends.extend(engines());
    backends
}

/// Returns the backends without the oracle, which are checked against it.
pub(crate) fn engines() -> Vec<Tested> {
    std::iter::once(cpu()).chain(gpus(ShaderOptions::default())).collect()
}

/// Returns the CPU path.
pub(crate) fn cpu() -> Tested {
    attend("cpu".into(), open(Backend::Cpu))
}

/// Opens a backend that is always there.
pub(crate) fn open(backend: Backend) -> Engine {
    Engine::new(EngineOptions { backend, ..Default::default() }).expect("the CPU path and the oracle are always there")
}

/// Returns one engine per GPU adapter.
pub(crate) fn adapters(shaders: ShaderOptions) -> Vec<Engine> {
    let (engines, left_out) = Engine::every(shaders);
    assert!(left_out.is_empty(), "adapters without a device: {left_out:?}");
    let gpus: Vec<Engine> = engines.into_iter().filter(|engine| engine.gpu().is_some()).collect();
    insist_on_adapters(gpus.len());
    gpus
}

/// Returns an engine for the oracle, one for the CPU path and one for each GPU adapter.
pub(crate) fn every_engine() -> Vec<Engine> {
    std::iter::once(open(Backend::Oracle)).chain(cpu_and_adapters()).collect()
}

/// Returns an engine for the CPU path and one for each GPU adapter.
pub(crate) fn cpu_and_adapters() -> Vec<Engine> {
    std::iter::once(open(Backend::Cpu)).chain(adapters(ShaderOptions::default())).collect()
}

/// Returns each algorithm on each GPU adapter. `ATTENTION_CHECKED=1` turns on every check in the shaders.
pub(crate) fn gpus(shaders: ShaderOptions) -> Vec<Tested> {
    let checked = std::env::var_os("ATTENTION_CHECKED").is_some();
    adapters(ShaderOptions { checked, ..shaders }).into_iter().flat_map(algorithms).collect()
}

/// Returns a GPU engine with each algorithm.
fn algorithms(engine: Engine) -> [Tested; 2] {
    let adapter = engine.gpu().map(|gpu| gpu.device().adapter_info()).map(|info| adapter_name(&info)).unwrap_or_default();
    let gpu = engine.gpu().cloned();
    let staged = engine.clone().with_algorithm(Algorithm::Staged);
    let fused = engine.with_algorithm(Algorithm::Fused);
    let scoring = staged.clone();
    // The fused algorithm has no score matrix: scores and weights come from the staged one.
    let fused = move |problem: &Problem, inputs: &Inputs<'_>| {
        let mut outputs =
            fused.attention(&Problem { want: Returns { scores: None, weights: false, ..problem.want }, ..problem.clone() }, inputs)?;
        if problem.want.scores.is_none() && !problem.want.weights {
            return Ok(outputs);
        }
        let Outputs { scores, weights, .. } = scoring.attention(problem, inputs)?;
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

/// Asserts that an answer is within the tolerance.
pub(crate) fn agree(what: &str, got: &[f32], expected: &ExpectedTensor) {
    expected.compare(got).unwrap_or_else(|bad| panic!("{what}: {bad}"));
}

pub(crate) fn fails(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Failed(_))
}

/// Prints the counts of each backend and the rows that did not pass; panics if any failed.
pub(crate) fn report(backends: &[Tested], rows: &[Row]) {
    for backend in backends {
        let [passed, failed, skipped] = count(rows.iter().filter(|row| row.backend == backend.name));
        println!("{:<26} {passed} passed, {failed} failed, {skipped} skipped", backend.name);
    }
    let (failed, others): (Vec<_>, Vec<_>) = rows.iter().filter(|row| row.verdict != Verdict::Passed).partition(|row| fails(&row.verdict));
    for row in failed.iter().take(40).chain(others.iter().take(20)) {
        println!("{}/{} on {}: {}", row.suite, row.case, row.backend, row.verdict);
    }
    assert!(failed.is_empty(), "cases failed; they are listed above");
}

/// Returns the number in an environment variable, or `default` if it is not set.
pub(crate) fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} = `{text}` is not a number")))
}
