//! Simulated device that runs plans from their exports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use wgpu_attention::plan::{BindingExport, BufferExport, DeviceCaps, DispatchExport, PlanExport, TensorExport};
use wgpu_attention::{Algorithm, BackwardInputs, Error, Gradients, Inputs, Outputs, Problem, Result, WantGradients};
use wgpu_attention_simulator::{Binding, Buffer, LaneOrder, Options, Shader};

use super::log::Log;
use super::sabotage::Edit;
use crate::host::{self, Tensors};

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
        host::attention(&|plan, given| self.run(plan, given), &self.caps, problem, inputs, algorithm)
    }

    pub(crate) fn backward(
        &self,
        problem: &Problem,
        inputs: &Inputs<'_>,
        backward: &BackwardInputs<'_>,
        want: &WantGradients,
    ) -> Result<Gradients> {
        host::backward(&|plan, given| self.run(plan, given), &self.caps, problem, inputs, backward, want)
    }

    /// Runs all dispatches in order.
    fn run(&self, plan: &PlanExport, given: &Tensors) -> Result<Tensors> {
        let mut buffers = Buffers::of(plan, given);
        for (number, dispatch) in plan.dispatches.iter().enumerate() {
            buffers.list[PARAMS] = Buffer::filled(&dispatch.params);
            let kernel = &plan.kernels[dispatch.kernel];
            let shader = match &self.edit {
                Some(edit) => self.shaders.get(&edit.apply(kernel))?,
                None => self.shaders.get(&kernel.text)?,
            };
            let bindings = buffers.bind(dispatch)?;
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
        let written = plan.tensors.iter().filter(|tensor| tensor.written);
        let result = |tensor: &TensorExport| {
            let buffer = &buffers.list[buffers.names[tensor.name]];
            let unwritten = buffer.words_unwritten();
            if is_dense(tensor) && unwritten > 0 {
                self.log.complain(format!("{}: {unwritten} words of `{}` were not written", plan.summary, tensor.name));
            }
            (tensor.name, buffer.bytes())
        };
        Ok(written.map(result).collect())
    }
}

/// True if the elements of a result have no gaps.
fn is_dense(tensor: &TensorExport) -> bool {
    let element = if tensor.dtype == "f32" { 4 } else { 2 };
    tensor.shape.iter().product::<usize>() as u64 * element == tensor.bytes
}

/// Index of the params in [`Buffers::list`]; the scratch buffers follow.
const PARAMS: usize = 0;

/// Params, scratch buffers, then tensors, whose indices are found by name.
struct Buffers {
    list: Vec<Buffer>,
    names: HashMap<&'static str, usize>,
}

impl Buffers {
    fn of(plan: &PlanExport, given: &Tensors) -> Self {
        let scratch = plan.scratch.iter().map(|&bytes| Buffer::unwritten(bytes as usize, POISON));
        let mut list: Vec<Buffer> = std::iter::once(Buffer::filled(&[])).chain(scratch).collect();
        let mut names = HashMap::new();
        for tensor in &plan.tensors {
            names.insert(tensor.name, list.len());
            // Results start as zeros, like wgpu's buffers.
            let unwritten = || Buffer::unwritten(tensor.bytes as usize, 0);
            list.push(given.get(tensor.name).map_or_else(unwritten, |bytes| Buffer::filled(bytes)));
        }
        Self { list, names }
    }

    fn bind(&self, dispatch: &DispatchExport) -> Result<Vec<Binding>> {
        let bind = |binding: &BindingExport| {
            let buffer = match binding.buffer {
                BufferExport::Params => Some(PARAMS),
                BufferExport::Tensor(name) => self.names.get(name).copied(),
                BufferExport::Scratch(number) => Some(PARAMS + 1 + number),
            };
            let buffer = buffer.ok_or_else(|| Error::Device { why: format!("{:?} has no buffer", binding.buffer).into() })?;
            let size = binding.size.map_or(usize::MAX, |size| size as usize);
            Ok(Binding { binding: binding.binding, buffer, offset: binding.offset as usize, size })
        };
        dispatch.bindings.iter().map(bind).collect()
    }
}
