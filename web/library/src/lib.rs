//! wgpu-attention for pages. `scripts/web.sh` builds it, and runs `test/suite.mjs` in a browser and in Node.
#![cfg(target_family = "wasm")]

mod decode;
mod errors;

use std::ops::ControlFlow;

use js_sys::Function;
use wasm_bindgen::prelude::{JsValue, wasm_bindgen};
use wgpu_attention::verify::{Verdict, count, run_generated_async};
use wgpu_attention::{
    Alignment, Backend, BackwardInputs, Dims, Engine, EngineOptions, HostVec, Inputs, Problem, Progress, WantGradients, wgpu,
};

use crate::errors::{Thrown, to_js};

#[wasm_bindgen(start)]
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| wasm_bindgen::throw_str(&panic.to_string())));
}

/// Attention on one backend.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Session {
    engine: Engine,
}

/// Sizes of an attention.
#[wasm_bindgen]
#[derive(Clone, Copy, Debug)]
pub struct Shape(Dims);

#[wasm_bindgen]
impl Shape {
    /// [batch, num_heads, seq_len_q, head_dim] of queries, as many key/value heads as heads, `seq_len_kv` keys.
    #[wasm_bindgen(constructor)]
    pub fn new(batch: usize, num_heads: usize, seq_len_q: usize, seq_len_kv: usize, head_dim: usize) -> Self {
        Self(Dims { seq_len_kv, ..Dims::self_attention(batch, num_heads, seq_len_q, head_dim) })
    }
}

impl Shape {
    fn problem(self, causal: bool) -> Problem {
        let problem = Problem::new(self.0);
        if causal { problem.aligned(Alignment::BottomRight).causal() } else { problem }
    }
}

/// Calls `watch`, a JavaScript function of the completed share, if there is one. What it throws or `false` cancels.
fn progress(watch: Option<Function>) -> impl FnMut(f64) -> ControlFlow<()> {
    move |done| match watch.as_ref().map(|watch| watch.call1(&JsValue::UNDEFINED, &done.into())) {
        Some(Ok(answer)) if answer.as_bool() != Some(false) => ControlFlow::Continue(()),
        Some(_) => ControlFlow::Break(()),
        None => ControlFlow::Continue(()),
    }
}

#[wasm_bindgen]
impl Session {
    /// Opens a backend: `auto`, `cpu`, or words of an adapter's name; `webgpu` takes a software adapter too.
    pub async fn start(backend: String) -> Result<Self, Thrown> {
        let backend = match &backend[..] {
            "auto" => Backend::Auto,
            "cpu" => Backend::Cpu,
            _ => Backend::Adapter(backend),
        };
        Ok(Self { engine: Engine::new_async(EngineOptions { backend, ..EngineOptions::default() }).await.map_err(to_js)? })
    }

    /// Name of the backend.
    pub fn chosen(&self) -> String {
        self.engine.chosen().into()
    }

    /// Capabilities that the planner works with; empty without a device.
    pub fn caps(&self) -> String {
        self.engine.gpu().map(|gpu| format!("{:?}", gpu.caps())).unwrap_or_default()
    }

    /// Number of kernels compiled so far.
    pub fn kernels(&self) -> usize {
        self.engine.gpu().map_or(0, wgpu_attention::gpu::Gpu::pipelines_compiled)
    }

    /// Compiles and tries the kernels of a shape. `watch` sees the completed share after each.
    pub async fn warm_up(&self, shape: Shape, causal: bool, watch: Option<Function>) -> Result<(), Thrown> {
        let mut watch = progress(watch);
        self.engine.warm_up(&shape.problem(causal), None, &mut Progress::new(&mut watch)).await.map_err(to_js)
    }

    /// Attention of f32 tensors [batch, heads, tokens, head_dim].
    pub async fn attention(
        &self,
        query: Vec<f32>,
        key: Vec<f32>,
        value: Vec<f32>,
        shape: Shape,
        causal: bool,
        watch: Option<Function>,
    ) -> Result<Vec<f32>, Thrown> {
        let mut watch = progress(watch);
        let (problem, inputs) = (shape.problem(causal), Inputs::new(&query, &key, &value));
        let outputs = self.engine.attention_async(&problem, &inputs, &mut Progress::new(&mut watch)).await;
        outputs.map(|outputs| outputs.output.into_f32()).map_err(to_js)
    }

    /// Attention by the function that blocks: only the CPU path can.
    pub fn attention_now(&self, query: Vec<f32>, key: Vec<f32>, value: Vec<f32>, shape: Shape) -> Result<Vec<f32>, Thrown> {
        let outputs = self.engine.attention(&shape.problem(false), &Inputs::new(&query, &key, &value));
        outputs.map(|outputs| outputs.output.into_f32()).map_err(to_js)
    }

    /// dQ, dK and dV, one after another, of the sum of the output's elements times those of `d_output`.
    pub async fn gradients(
        &self,
        query: Vec<f32>,
        key: Vec<f32>,
        value: Vec<f32>,
        d_output: Vec<f32>,
        shape: Shape,
    ) -> Result<Vec<f32>, Thrown> {
        let (problem, inputs) = (shape.problem(false), Inputs::new(&query, &key, &value));
        let output = self.engine.attention_async(&problem, &inputs, &mut Progress::default()).await.map_err(to_js)?.output;
        let (backward, want) = (&BackwardInputs::new(&output, &d_output), &WantGradients::all(&problem));
        let gradients = self.engine.backward_async(&problem, &inputs, backward, want, &mut Progress::default()).await.map_err(to_js)?;
        Ok([gradients.query, gradients.key, gradients.value].into_iter().flatten().flat_map(HostVec::into_f32).collect())
    }

    /// Runs the generated suite of `wgpu_attention::verify`: cases whose name contains `filter`.
    pub async fn verify(&self, seed: u64, random_cases: u64, filter: String, watch: Option<Function>) -> Result<Verified, Thrown> {
        let mut watch = progress(watch);
        let control = &mut Progress::new(&mut watch);
        let rows = run_generated_async(&[&self.engine], seed, random_cases, &filter, control).await.map_err(to_js)?;
        let [passed, failed, skipped] = count(&rows);
        let failures = rows.iter().filter(|row| matches!(row.verdict, Verdict::Failed(_)));
        let failures = failures.map(|row| format!("{} {}: {}", row.suite, row.case, row.verdict)).collect();
        Ok(Verified { passed, failed, skipped, failures })
    }

    /// Decodes six tokens with a cache on the device whose keys and values are stored as `f32`, `f16`, `bf16`, `q8` or
    /// `q4`. Returns the largest difference to the CPU path.
    pub async fn decode(&self, stored: String) -> Result<f32, Thrown> {
        decode::six_steps(&self.engine, &stored).await.map_err(to_js)
    }

    /// Times the kernels that a shape may use. Returns the winner's name.
    pub async fn tune(&self, query: Vec<f32>, key: Vec<f32>, value: Vec<f32>, shape: Shape, milliseconds: u32) -> Result<String, Thrown> {
        let (problem, inputs) = (shape.problem(false), Inputs::new(&query, &key, &value));
        let budget = std::time::Duration::from_millis(milliseconds.into());
        let tuned = self.engine.tune_async(&problem, &inputs, budget, &mut Progress::default()).await;
        tuned.map(|tuned| tuned.winner).map_err(to_js)
    }

    /// Lines of tuned kernels, each with the device that they are of.
    pub fn tuned(&self) -> Result<String, Thrown> {
        self.engine.tuned().map_err(to_js)
    }

    /// Frees buffers that are kept for the next calls.
    pub fn clear(&self) {
        self.engine.clear();
    }

    /// Destroys the device. Calls then fail as lost.
    pub fn destroy(&self) {
        self.engine.clear();
        if let Some(device) = self.engine.gpu().map(wgpu_attention::gpu::Gpu::device) {
            wgpu::Device::destroy(device);
        }
    }
}

/// Result of a verification.
#[wasm_bindgen(getter_with_clone)]
#[derive(Clone, Debug)]
pub struct Verified {
    /// Number of checks with the right answer.
    pub passed: usize,
    /// Number of checks with a wrong answer or an error.
    pub failed: usize,
    /// Number of checks that were not run.
    pub skipped: usize,
    /// Description of each failure.
    pub failures: Vec<String>,
}
