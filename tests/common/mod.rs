//! What the test files share: the backends under test.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod bugs;

use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::verify::{Candidate, oracle};
use wgpu_attention::{Algorithm, Attend, Engine};

/// A backend by name.
pub(crate) struct Tested {
    pub(crate) name: String,
    pub(crate) attend: Box<Attend<'static>>,
}

impl Tested {
    pub(crate) fn candidate(&self) -> Candidate<'_> {
        Candidate { name: &self.name, attend: &*self.attend }
    }
}

/// Every backend of this machine, by name: the oracle, the CPU path, and each way to compute on each GPU adapter.
pub(crate) fn backends() -> Vec<Tested> {
    let mut backends = vec![Tested { name: "oracle".into(), attend: Box::new(oracle) }];
    backends.extend(engines());
    backends
}

/// The backends without the oracle: what is held against it.
///
/// `ATTENTION_CHECKED=1` runs the shaders with every check on.
pub(crate) fn engines() -> Vec<Tested> {
    let checked = std::env::var_os("ATTENTION_CHECKED").is_some();
    let (engines, left_out) = Engine::every(ShaderOptions { checked, ..Default::default() });
    assert!(left_out.is_empty(), "adapters that give no device: {left_out:?}");
    insist_on_adapters(engines.iter().filter(|engine| engine.gpu().is_some()).count());
    engines.into_iter().flat_map(tested).collect()
}

/// Says loudly when there is no GPU adapter, and fails then where `CI` is set.
pub(crate) fn insist_on_adapters(found: usize) {
    if found == 0 {
        let message = "NO GPU ADAPTER: nothing that runs on a GPU is tested. scripts/test.sh installs a software one.";
        assert!(std::env::var_os("CI").is_none(), "{message}");
        eprintln!("\n*** {message} ***\n");
    }
}

/// An engine, each way that it can compute.
fn tested(engine: Engine) -> Vec<Tested> {
    let Some(gpu) = engine.gpu() else { return vec![attend("cpu".into(), engine)] };
    let backend = gpu.device().adapter_info().backend;
    [(Algorithm::Fused, "fused"), (Algorithm::Staged, "staged")]
        .map(|(algorithm, way)| attend(format!("{backend} {way}"), engine.clone().with_algorithm(algorithm)))
        .into()
}

fn attend(name: String, engine: Engine) -> Tested {
    Tested { name, attend: Box::new(move |problem, inputs| engine.attention(problem, inputs)) }
}
