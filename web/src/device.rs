//! Plans for a device, and trials of its kernels.

use js_sys::{Uint8Array, Uint16Array};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
#[cfg(feature = "backward")]
use wgpu_attention::Returns;
#[cfg(feature = "backward")]
use wgpu_attention::plan::gradients_of;
use wgpu_attention::plan::{DeviceCaps, DeviceClass, Plan, PlanExport, TensorBytes, outputs_of};
use wgpu_attention::{Algorithm, Canary, DType, HostVec, Problem, TriedKernels, WantGradients, gpu::Tables};

use crate::errors::{Answer, Thrown, thrown, to_js};
use crate::object::{count, flag, text, to_array};
use crate::request::Request;
#[cfg(feature = "backward")]
use crate::request::wanted;

/// Capabilities of a GPUDevice, and its kernels that have been tried.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Device {
    caps: DeviceCaps,
    tried: TriedKernels,
}

/// Reads the capabilities that the package has put together from a GPUDevice.
pub(crate) fn caps(described: &JsValue) -> Answer<DeviceCaps> {
    let limit = |name: &str| Ok::<_, Thrown>(count(described, name)?.unwrap_or(0));
    let word = |name: &str| Ok::<_, Thrown>(text(described, name)?.unwrap_or_default());
    let class = match flag(described, "isFallbackAdapter")? {
        true => DeviceClass::Software,
        false => DeviceClass::of_browser(&word("vendor")?, &word("architecture")?),
    };
    Ok(DeviceCaps {
        class,
        slow_barriers: class == DeviceClass::Software,
        subgroup_size: limit("subgroupMinSize")? as u32,
        subgroup_max: limit("subgroupMaxSize")? as u32,
        workgroup_bytes: limit("maxComputeWorkgroupStorageSize")? as u32,
        workgroup_threads: limit("maxComputeInvocationsPerWorkgroup")?.min(limit("maxComputeWorkgroupSizeX")?) as u32,
        workgroups_per_dimension: limit("maxComputeWorkgroupsPerDimension")? as u32,
        binding_bytes: limit("maxStorageBufferBindingSize")? as u64,
        buffer_bytes: limit("maxBufferSize")? as u64,
        storage_buffers: limit("maxStorageBuffersPerShaderStage")? as u32,
        storage_alignment: limit("minStorageBufferOffsetAlignment")? as u32,
        uniform_alignment: limit("minUniformBufferOffsetAlignment")? as u32,
        ..DeviceCaps::webgpu_defaults()
    })
}

#[wasm_bindgen]
impl Device {
    /// Reads the capabilities.
    #[wasm_bindgen(constructor)]
    pub fn new(described: &JsValue) -> Result<Self, Thrown> {
        Ok(Self { caps: caps(described)?, tried: TriedKernels::default() })
    }

    /// True if the device is a software adapter.
    #[wasm_bindgen(getter = isSoftware)]
    pub fn is_software(&self) -> bool {
        self.caps.class == DeviceClass::Software
    }

    /// Floating-point operations that are enough for one submit.
    #[wasm_bindgen(getter)]
    pub fn budget(&self) -> f64 {
        self.caps.dispatch_flops()
    }

    /// Plans the attention of a request, to be run once or recorded often.
    pub fn attention(&self, request: &JsValue, is_recorded: bool) -> Result<Planned, Thrown> {
        let problem = Request::read(request)?.problem;
        let caps = if is_recorded { self.caps.for_replays(problem.flops()) } else { self.caps.clone() };
        let plans = if is_empty(&problem) { Vec::new() } else { vec![Plan::new(&problem, &caps, Algorithm::Auto).map_err(to_js)?] };
        Ok(Planned { problem, want: None, plans })
    }

    /// Plans the forward pass and the gradients of a request.
    #[cfg(feature = "backward")]
    pub fn backward(&self, request: &JsValue) -> Result<Planned, Thrown> {
        let (problem, want) = (Request::read(request)?.problem, wanted(request)?);
        let problem = Problem { want: Returns { stats: true, ..Returns::default() }, ..problem };
        // The plan checks what is wanted, and a problem without elements too.
        let gradients = |problem: &Problem| Plan::backward(problem, &want, &self.caps);
        let plans = match is_empty(&problem) {
            true => Vec::new(),
            false => vec![Plan::new(&problem, &self.caps, Algorithm::Auto).map_err(to_js)?, gradients(&problem).map_err(to_js)?],
        };
        Ok(Planned { problem, want: Some(want), plans })
    }

    /// Trial of the kernels of a plan that were not tried yet; undefined if there are none.
    pub fn canary(&mut self, planned: &Planned, plan: usize) -> Result<Option<Trial>, Thrown> {
        let (problem, of) = (&planned.problem, &planned.plans[plan]);
        let canary = match planned.want.filter(|_| plan == 1) {
            #[cfg(feature = "backward")]
            Some(want) => self.tried.of_gradients(of, problem, &want, &self.caps),
            _ => self.tried.of_attention(of, problem, &self.caps, Algorithm::Auto),
        };
        let Some(canary) = canary.map_err(to_js)? else { return Ok(None) };
        let export = canary.plan().export().map_err(to_js)?;
        Ok(Some(Trial { canary, export, written: TensorBytes::new() }))
    }

    /// Compares what the device has computed, and remembers its kernels. The error of a wrong answer is `miscomputed`.
    pub fn judge(&mut self, trial: Trial) -> Result<(), Thrown> {
        let Trial { canary, written, .. } = trial;
        let is_right = match canary.gradients() {
            #[cfg(feature = "backward")]
            Some((want, _)) => canary.gradients_agree(gradients_of(canary.problem(), want, &written)),
            _ => canary.agrees(&outputs_of(canary.problem(), &written)),
        };
        if is_right.map_err(to_js)? {
            self.tried.add(canary);
            return Ok(());
        }
        let kernel = canary.plan().summary();
        let message = format!("this device computes a tiny problem wrong by `{kernel}`, which was not used");
        Err(thrown("miscomputed", &message, Some(kernel), Some("use the backend `cpu`, and please report it")))
    }
}

/// True if an operand or the score matrix is empty: nothing can be bound, so the CPU path answers.
pub(crate) fn is_empty(problem: &Problem) -> bool {
    [problem.query_len(), problem.key_len(), problem.scores_len()].contains(&0)
}

/// Bits of numbers as f16, or as bf16: what uploads to a device take.
#[wasm_bindgen]
pub fn narrow(numbers: &[f32], is_bf16: bool) -> Uint16Array {
    to_array(HostVec::from_f32(if is_bf16 { DType::BF16 } else { DType::F16 }, numbers)).into()
}

/// Plan of a request; of gradients, that of the forward pass and theirs.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Planned {
    problem: Problem,
    want: Option<WantGradients>,
    plans: Vec<Plan>,
}

#[wasm_bindgen]
impl Planned {
    /// Number of plans; 0 if the CPU path is to answer.
    #[wasm_bindgen(getter)]
    pub fn count(&self) -> usize {
        self.plans.len()
    }

    /// Summary of a plan in words.
    pub fn summary(&self, plan: usize) -> String {
        self.plans[plan].summary().into()
    }

    /// A plan as JSON.
    pub fn exported(&self, plan: usize) -> Result<String, Thrown> {
        self.plans[plan].export().map(|export| export.to_json()).map_err(to_js)
    }

    /// Contents of the tables buffer by a request of the same problem, whose vectors are checked.
    pub fn tables(&self, request: &JsValue) -> Result<Vec<u8>, Thrown> {
        let request = Request::read(request)?;
        Tables::of_inputs(&request.problem, &request.vectors()).bytes().map_err(to_js)
    }
}

/// Tiny problem that a device computes, to be compared with the CPU path.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Trial {
    canary: Canary,
    export: PlanExport,
    written: TensorBytes,
}

#[wasm_bindgen]
impl Trial {
    /// Its plan as JSON.
    pub fn exported(&self) -> String {
        self.export.to_json()
    }

    /// Bytes of a tensor that the plan reads.
    pub fn input(&self, name: &str) -> Option<Uint8Array> {
        let backward = self.canary.gradients().map(|(_, backward)| backward);
        let contents = self.export.contents(self.canary.problem(), &self.canary.inputs(), backward.as_ref());
        contents.get(name).map(|bytes| Uint8Array::from(&bytes[..]))
    }

    /// Takes the bytes of a tensor that the plan has written.
    pub fn write(&mut self, name: &str, bytes: Vec<u8>) {
        if let Some(tensor) = self.export.tensors.iter().find(|tensor| tensor.name == name) {
            self.written.insert(tensor.name, bytes);
        }
    }
}
