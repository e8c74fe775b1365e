//! A plan as plain data, for hosts other than this crate's own.

use super::ranges::of_slot;
use super::shader::Shader;
use super::step::{BufferRef, Plan, Step};
use super::tensor::TensorExport;
use crate::error::{Error, Result};
use crate::wgsl::{Access, Slot};

/// All that a WebGPU host needs to run a plan. docs/export.md describes it, and its JSON ([`Self::to_json`]).
///
/// A host compiles the kernels, creates the `scratch` buffers, uploads each dispatch's `params`, binds the caller's
/// tensors by name, and dispatches in order, in one compute pass or several. Kernels do not check indices: a buffer
/// must be as large as its tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanExport {
    /// Version of this format, [`Self::VERSION`].
    pub version: u32,
    /// Summary of the plan in words.
    pub summary: String,
    /// Options of the problem, as `attn run` takes them: `causal=bottom-right`, `window=127,0`, ...
    pub options: Vec<String>,
    /// Features and limits that a device must have.
    pub requires: RequiredExport,
    /// Tensors that the caller binds: first those that are read, then those that are written.
    pub tensors: Vec<TensorExport>,
    /// Sizes of the scratch buffers in bytes, multiples of 16. Their contents need not be kept between runs.
    pub scratch: Vec<u64>,
    /// The kernels, each once.
    pub kernels: Vec<KernelExport>,
    /// Dispatches, in the order in which they run.
    pub dispatches: Vec<DispatchExport>,
}

/// Features and limits that a device must have to run a [`PlanExport`], by WebGPU's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequiredExport {
    /// Features, such as `subgroups`.
    pub features: Vec<&'static str>,
    /// Limits, and the least that each must be.
    pub limits: Vec<(&'static str, u64)>,
    /// Lanes that each subgroup must have; `None` if subgroups of any size will do.
    pub subgroup_size: Option<u32>,
}

/// A kernel of a [`PlanExport`]. Its entry point is `main`; workgroup memory need not be zeroed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelExport {
    /// Name of the kernel and its shape.
    pub name: String,
    /// Directives that standard WGSL needs before `text`, and naga 30 rejects: `enable subgroups;`. Mostly empty.
    pub directives: String,
    /// Complete WGSL but for the directives.
    pub text: String,
    /// First line (from 1) and name of each file in the text, in order.
    pub files: Vec<(u32, String)>,
    /// Threads of a workgroup, all along x.
    pub threads: u32,
}

/// One dispatch of a [`PlanExport`].
#[derive(Clone, Debug, PartialEq)]
pub struct DispatchExport {
    /// Index of its kernel in [`PlanExport::kernels`].
    pub kernel: usize,
    /// Workgroups along x, y and z.
    pub grid: [u32; 3],
    /// Contents of the buffer bound to [`BufferExport::Params`].
    pub params: Vec<u8>,
    /// Bindings, all in group 0. All dispatches of a kernel have the same binding numbers and types.
    pub bindings: Vec<BindingExport>,
    /// Estimate of its floating-point operations. [`super::DeviceCaps::dispatch_flops`] are enough for one submit.
    pub flops: f64,
}

/// A binding of a [`DispatchExport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingExport {
    /// `@binding`.
    pub binding: u32,
    /// Type of the binding, as `GPUBufferBindingType` names it: `uniform`, `read-only-storage` or `storage`.
    pub kind: &'static str,
    /// Buffer that is bound.
    pub buffer: BufferExport,
    /// First byte that is bound.
    pub offset: u64,
    /// Number of bytes; `None` binds everything from `offset` on.
    pub size: Option<u64>,
}

/// Buffer that a dispatch binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferExport {
    /// The dispatch's own parameters.
    Params,
    /// One of [`PlanExport::tensors`], by its name.
    Tensor(&'static str),
    /// Scratch buffer, by its index in [`PlanExport::scratch`].
    Scratch(usize),
}

impl PlanExport {
    /// Version that this crate writes.
    pub const VERSION: u32 = 1;

    /// Sets the features and limits that the kernels, buffers and dispatches need.
    pub(super) fn require(&mut self, shaders: &[Shader], subgroup_size: Option<u32>) {
        self.requires = required(self, shaders, subgroup_size);
    }
}

impl From<&Shader> for KernelExport {
    fn from(shader: &Shader) -> Self {
        let Shader { name, threads, source, .. } = shader;
        let files = source.parts().map(|(line, name)| (line as u32, name.to_string())).collect();
        let directives = source.directives().unwrap_or_default();
        Self { name: name.clone(), directives, text: source.text.clone(), files, threads: *threads }
    }
}

impl KernelExport {
    /// Returns the kernel in standard WGSL, as browsers take it.
    pub fn standard(&self) -> String {
        format!("{}{}", self.directives, self.text)
    }

    /// Locates a line of `text`, counted from 1, as `shaders/lib/score.wgsl:12`.
    pub fn locate(&self, line: u32) -> String {
        let at = self.files.partition_point(|&(first, _)| first <= line).saturating_sub(1);
        self.files.get(at).map_or_else(|| line.to_string(), |(first, name)| format!("{name}:{}", line + 1 - first))
    }
}

impl Plan {
    /// Returns the plan as plain data, to be run by any WebGPU host.
    ///
    /// Errors: [`Error::Unsupported`] for kernels of cooperative matrices, which no standard has.
    pub fn export(&self) -> Result<PlanExport> {
        let shaders = self.shaders();
        if shaders.iter().any(|shader| shader.source.directives().is_none()) {
            return Err(Error::unsupported("a plan of cooperative matrices for other hosts", "plan with DeviceCaps::matrix_size 0"));
        }
        let keys = self.keys();
        let dispatch = |step: &Step| {
            let bindings = step.key.bindings().into_iter().map(|(slot, access)| self.binding(step, slot, access)).collect();
            let kernel = keys.iter().position(|&key| key == &step.key).expect("each key is listed");
            let [x, y] = step.grid();
            DispatchExport { kernel, grid: [x, y, 1], params: bytemuck::bytes_of(&step.params).to_vec(), bindings, flops: step.flops }
        };
        let mut export = PlanExport {
            version: PlanExport::VERSION,
            summary: self.summary.clone(),
            options: self.options.clone(),
            requires: RequiredExport::default(),
            tensors: self.tensors.iter().map(|(_, tensor)| tensor.clone()).collect(),
            scratch: self.scratch.iter().chain(&self.dummies).map(|&bytes| bytes.next_multiple_of(16).max(16)).collect(),
            kernels: shaders.iter().map(KernelExport::from).collect(),
            dispatches: self.steps.iter().map(dispatch).collect(),
        };
        let lanes = keys.iter().find_map(|key| key.lanes());
        export.require(&shaders, lanes);
        Ok(export)
    }

    fn binding(&self, step: &Step, slot: Slot, access: Access) -> BindingExport {
        let buffer = match step.places.iter().find(|(own, _)| *own == slot) {
            None => BufferExport::Params,
            Some(&(_, BufferRef::Scratch(index))) => BufferExport::Scratch(index),
            Some(&(_, BufferRef::Dummy(index))) => BufferExport::Scratch(self.scratch.len() + index),
            Some(&(_, place)) => BufferExport::Tensor(self.tensor(place).map_or(place.name(), |tensor| tensor.name)),
        };
        let range = of_slot(step.bound.as_ref(), slot).map(|bound| bound.bytes.clone());
        let (offset, size) = range.map_or((0, None), |range| (range.start, Some(range.end - range.start)));
        BindingExport { binding: slot as u32, kind: access.kind(), buffer, offset, size }
    }
}

/// Returns the features and limits that a plan needs.
fn required(plan: &PlanExport, shaders: &[Shader], subgroup_size: Option<u32>) -> RequiredExport {
    let most = |numbers: &mut dyn Iterator<Item = u64>| numbers.max().unwrap_or(0);
    let sizes = || plan.tensors.iter().map(|tensor| tensor.bytes.next_multiple_of(4)).chain(plan.scratch.iter().copied());
    let all_bindings = || plan.dispatches.iter().flat_map(|dispatch| &dispatch.bindings);
    let bound = |binding: &BindingExport| {
        let whole = match binding.buffer {
            BufferExport::Params => 0,
            BufferExport::Tensor(name) => plan.tensors.iter().find(|tensor| tensor.name == name).map_or(0, |tensor| tensor.bytes),
            BufferExport::Scratch(index) => plan.scratch[index],
        };
        binding.size.unwrap_or(whole).next_multiple_of(4)
    };
    let storage = |dispatch: &DispatchExport| dispatch.bindings.iter().filter(|binding| binding.kind != "uniform").count() as u64;
    let threads = most(&mut shaders.iter().map(|shader| shader.threads.into()));
    let uses_subgroups = plan.kernels.iter().any(|kernel| kernel.directives.contains("enable subgroups;"));
    RequiredExport {
        features: if uses_subgroups { vec!["subgroups"] } else { Vec::new() },
        limits: vec![
            ("maxBufferSize", most(&mut sizes())),
            ("maxStorageBufferBindingSize", most(&mut all_bindings().map(bound))),
            ("maxStorageBuffersPerShaderStage", most(&mut plan.dispatches.iter().map(storage))),
            ("maxComputeWorkgroupStorageSize", most(&mut shaders.iter().map(|shader| shader.workgroup_bytes.into()))),
            ("maxComputeInvocationsPerWorkgroup", threads),
            ("maxComputeWorkgroupSizeX", threads),
            ("maxComputeWorkgroupsPerDimension", most(&mut plan.dispatches.iter().flat_map(|dispatch| dispatch.grid).map(u64::from))),
        ],
        subgroup_size,
    }
}
