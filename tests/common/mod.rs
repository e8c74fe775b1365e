//! What the test files share: the backends under test.
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod bugs;

use wgpu_attention::verify::{Candidate, oracle};
use wgpu_attention::{Attend, Backend, Engine, EngineOptions};

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
pub(crate) fn engines() -> Vec<Tested> {
    let cpu = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() }).expect("the CPU path is always there");
    vec![Tested { name: "cpu".into(), attend: Box::new(move |problem, inputs| cpu.attention(problem, inputs)) }]
}
