//! Simulated device that runs plans from their exports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use wgpu_attention::gpu::Tables;
use wgpu_attention::plan::{BufferExport, DeviceCaps, DispatchExport, Plan, PlanExport};
use wgpu_attention::{
    Algorithm, BackwardInputs, BroadcastShape, DType, Error, Gradients, HostVec, Inputs, Layout, Outputs, Problem, Result, Returns,
    TensorSpec, WantGradients, bf16, f16,
};
use wgpu_attention_simulator::{Binding, Buffer, LaneOrder, Options, Shader};

use super::log::Log;
use super::sabotage::Edit;

/// Shaders by their text, so that each is prepared once.
#[derive(Default)]
pub(crate) struct Shaders(Mutex<HashMap<String, Arc<Shader>>>);

impl Shaders {
    pub(crate) fn get(&self, text: &str) -> Result<Arc<Shader>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shader) = lock().get(text) {
            return Ok(Arc::clone(shader));
        }
        let shader = Shader::new(text).map_err(|error| Error::Shader { at: "the simulator".into(), why: error.to_string() })?;
        Ok(Arc::clone(lock().entry(text.to_string()).or_insert(Arc::new(shader))))
    }
}

/// Simulated device, and the log of what it does.
pub(crate) struct Device<'a> {
    pub(crate) caps: DeviceCaps,
    /// Lanes per subgroup.
    pub(crate) subgroup_size: u32,
    pub(crate) seed: u64,
    pub(crate) lanes: LaneOrder,
    pub(crate) shaders: &'a Shaders,
    pub(crate) log: &'a Log,
    /// Change of the kernels, if there is one.
    pub(crate) edit: Option<Edit>,
    /// Maximum number of iterations of a loop; with more, it counts as endless.
    pub(crate) most_iterations: u64,
}

/// Contents of the plan's scratch buffers before they are written.
pub(super) const POISON: u32 = 0xffc0_dead;

impl Device<'_> {
    pub(crate) fn attention(&self, problem: &Problem, inputs: &Inputs<'_>, algorithm: Algorithm) -> Result<Outputs> {
        let plan = Plan::new(problem, &self.caps, algorithm)?;
        let mut buffers = Buffers::of_inputs(problem, inputs)?;
        buffers.unwritten("output", problem.output.dtype.bytes(problem.output_len()));
        buffers.unwritten("lse", 4 * problem.lse_len());
        buffers.unwritten("stats", if problem.want.stats { 8 * problem.lse_len() } else { 0 });
        let scores = |wanted: bool| if wanted { 4 * problem.scores_len() } else { 0 };
        buffers.unwritten("scores", scores(problem.want.scores.is_some()));
        buffers.unwritten("weights", scores(problem.want.weights));
        self.run(&plan.export(), &mut buffers)?;
        let want = problem.want;
        let output = buffers.stored(&problem.output, "output", problem.output_len());
        for (name, wanted) in [
            ("output", is_dense(&problem.output)),
            ("lse", want.lse),
            ("stats", want.stats),
            ("scores", want.scores.is_some()),
            ("weights", want.weights),
        ] {
            self.check_written(&plan, &buffers, name, wanted);
        }
        let f32s = |wanted: bool, name: &str| wanted.then(|| buffers.f32s(name));
        let stats = f32s(want.stats, "stats").map(|stats| stats.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect());
        let (lse, scores) = (f32s(want.lse, "lse"), f32s(want.scores.is_some(), "scores"));
        let mut outputs = Outputs::default();
        (outputs.output, outputs.lse, outputs.stats, outputs.scores) = (output, lse, stats, scores);
        outputs.weights = f32s(want.weights, "weights");
        Ok(outputs)
    }

    pub(crate) fn backward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
    ) -> Result<Gradients> {
        let plan = Plan::backward(problem, want, &self.caps)?;
        // Like the engine: without statistics of a forward pass, they are computed first.
        let forward = Problem { want: Returns { stats: true, ..Returns::default() }, dropout: None, ..problem.clone() };
        let made = if backward.stats.is_some() { None } else { self.attention(&forward, inputs, Algorithm::Auto)?.stats };
        let stats = backward.stats.or(made.as_deref()).unwrap_or_default();
        let mut buffers = Buffers::of_inputs(problem, inputs)?;
        buffers.filled("output", backward.output.bytes());
        buffers.filled("stats", &bytes_of(stats.as_flattened()));
        buffers.filled("d_output", backward.d_output.bytes());
        buffers.filled("d_lse", &bytes_of(backward.d_lse.unwrap_or_default()));
        let stored = [
            ("d_query", want.query, problem.query, problem.query_len()),
            ("d_key", want.key, problem.key, problem.key_len()),
            ("d_value", want.value, problem.value, problem.value_len()),
        ];
        let stored =
            stored.map(|(name, wanted, spec, len)| (name, wanted, TensorSpec { dtype: want.dtype.unwrap_or(spec.dtype), ..spec }, len));
        for (name, _, spec, len) in &stored {
            buffers.unwritten(name, spec.dtype.bytes(*len));
        }
        let columns = problem.relative_bias_max_distance.map_or(0, |max| 2 * max as usize + 1);
        let vectors = [
            ("d_bias", want.bias, problem.bias.and_then(BroadcastShape::elements).unwrap_or(0)),
            ("d_relative_bias", want.relative_bias, problem.dims.num_heads * columns),
            ("d_sinks", want.sinks, problem.dims.num_heads),
            ("d_term_tables", want.term_tables, problem.d_term_tables_len()),
        ];
        vectors.iter().for_each(|&(name, _, len)| buffers.unwritten(name, 4 * len));
        self.run(&plan.export(), &mut buffers)?;
        stored.iter().for_each(|(name, wanted, spec, _)| self.check_written(&plan, &buffers, name, *wanted && is_dense(spec)));
        vectors.iter().for_each(|&(name, wanted, _)| self.check_written(&plan, &buffers, name, wanted));
        let [query, key, value] = stored.map(|(name, wanted, spec, len)| wanted.then(|| buffers.stored(&spec, name, len)));
        let [bias, relative_bias, sinks, term_tables] = vectors.map(|(name, wanted, _)| wanted.then(|| buffers.f32s(name)));
        let mut gradients = Gradients::default();
        (gradients.query, gradients.key, gradients.value) = (query, key, value);
        (gradients.bias, gradients.relative_bias, gradients.sinks, gradients.term_tables) = (bias, relative_bias, sinks, term_tables);
        Ok(gradients)
    }

    /// Runs all dispatches in order.
    fn run(&self, plan: &PlanExport, buffers: &mut Buffers) -> Result<()> {
        buffers.list.push(Buffer::filled(&[]));
        let params = buffers.list.len() - 1;
        let scratch: Vec<usize> = plan.scratch.iter().map(|&bytes| buffers.add(Buffer::unwritten(bytes as usize, POISON))).collect();
        for (number, dispatch) in plan.dispatches.iter().enumerate() {
            buffers.list[params] = Buffer::filled(&dispatch.params);
            let kernel = &plan.kernels[dispatch.kernel];
            let shader = match &self.edit {
                Some(edit) => self.shaders.get(&edit.apply(kernel))?,
                None => self.shaders.get(&kernel.text)?,
            };
            let bindings = buffers.bind(dispatch, params, &scratch)?;
            let options = Options {
                subgroup_size: self.subgroup_size,
                lanes: self.lanes,
                seed: self.seed.wrapping_add(number as u64),
                most_iterations: self.most_iterations,
            };
            let report = shader.dispatch(&mut buffers.list, &bindings, dispatch.grid, &options);
            let report = report.map_err(|error| Error::Device { why: format!("{}: {error}", kernel.name).into() })?;
            self.log.add(kernel, &shader, &report);
        }
        Ok(())
    }

    /// Complains if a wanted result, which has no gaps, was not written as a whole.
    fn check_written(&self, plan: &Plan, buffers: &Buffers, name: &'static str, wanted: bool) {
        let unwritten = buffers.names.get(name).map_or(0, |&at| buffers.list[at].words_unwritten());
        if wanted && unwritten > 0 {
            self.log.complain(format!("{}: {unwritten} words of `{name}` were not written", plan.summary()));
        }
    }
}

fn is_dense(spec: &TensorSpec) -> bool {
    !matches!(spec.layout, Layout::Strided(_)) && spec.offset == 0
}

pub(super) fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// 32-bit words of a buffer's bytes.
pub(super) fn words_of(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

pub(super) fn f32s_of(bytes: &[u8]) -> Vec<f32> {
    words_of(bytes).map(f32::from_bits).collect()
}

/// First `len` elements stored in a buffer's bytes.
pub(crate) fn stored(dtype: DType, bytes: &[u8], len: usize) -> HostVec {
    let halves = bytes.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]])).take(len);
    match dtype {
        DType::F32 => HostVec::F32(f32s_of(bytes)),
        DType::F16 => HostVec::F16(halves.map(f16::from_bits).collect()),
        DType::BF16 => HostVec::BF16(halves.map(bf16::from_bits).collect()),
        DType::Q8 => HostVec::Q8(words_of(bytes).collect()),
        DType::Q4 => HostVec::Q4(words_of(bytes).collect()),
    }
}

/// Buffers by name.
struct Buffers {
    list: Vec<Buffer>,
    names: HashMap<&'static str, usize>,
}

impl Buffers {
    fn of_inputs(problem: &Problem, inputs: &Inputs<'_>) -> Result<Self> {
        let mut buffers = Self { list: Vec::new(), names: HashMap::new() };
        for (name, slice, spec, len) in [
            ("query", inputs.query, problem.query, problem.query_len()),
            ("key", inputs.key, problem.key, problem.key_len()),
            ("value", inputs.value, problem.value, problem.value_len()),
        ] {
            buffers.filled(name, &slice.bytes()[..spec.dtype.bytes(len)]);
        }
        let tables = Tables::of_inputs(problem, inputs).bytes()?;
        let mask: Vec<u8> = inputs.mask.iter().map(|&visible| visible.into()).collect();
        for (name, bytes) in [("tables", tables), ("bias", bytes_of(inputs.bias)), ("mask", mask)] {
            buffers.filled(name, if bytes.is_empty() { &[0; 16] } else { &bytes });
        }
        Ok(buffers)
    }

    fn add(&mut self, buffer: Buffer) -> usize {
        self.list.push(buffer);
        self.list.len() - 1
    }

    fn filled(&mut self, name: &'static str, bytes: &[u8]) {
        let at = self.add(Buffer::filled(bytes));
        self.names.insert(name, at);
    }

    /// Adds a buffer of a result. Results start as zeros, like wgpu's buffers.
    fn unwritten(&mut self, name: &'static str, bytes: usize) {
        let at = self.add(Buffer::unwritten(bytes, 0));
        self.names.insert(name, at);
    }

    fn bind(&self, dispatch: &DispatchExport, params: usize, scratch: &[usize]) -> Result<Vec<Binding>> {
        let bind = |binding: &wgpu_attention::plan::BindingExport| {
            let buffer = match binding.buffer {
                BufferExport::Params => Some(params),
                BufferExport::Tensor(name) => self.names.get(name).copied(),
                BufferExport::Scratch(number) => scratch.get(number).copied(),
            };
            let buffer = buffer.ok_or_else(|| Error::Device { why: format!("{:?} has no buffer", binding.buffer).into() })?;
            let size = binding.size.map_or(usize::MAX, |size| size as usize);
            Ok(Binding { binding: binding.binding, buffer, offset: binding.offset as usize, size })
        };
        dispatch.bindings.iter().map(bind).collect()
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.names.get(name).map_or_else(Vec::new, |&at| self.list[at].bytes())
    }

    fn stored(&self, spec: &TensorSpec, name: &str, len: usize) -> HostVec {
        stored(spec.dtype, &self.bytes(name), len)
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        f32s_of(&self.bytes(name))
    }
}
