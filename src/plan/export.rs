//! A plan as plain data, for hosts other than this crate's own.

use super::ranges::of_slot;
use super::shader::Shader;
use super::step::{BufferRef, Plan, Step};
use crate::wgsl::{Slot, Source, compose};

/// All that a WebGPU host needs to run a plan: kernels, and dispatches in order, with WebGPU's own barriers between.
///
/// A host creates the `scratch` buffers, uploads each dispatch's `params`, binds the rest by name, and dispatches.
/// Sizes of buffers are multiples of 16 bytes. Kernels do not check indices: a buffer must be as large as its tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanExport {
    /// Version of this format, [`Self::VERSION`].
    pub version: u32,
    /// The kernels, each once.
    pub kernels: Vec<KernelExport>,
    /// Sizes of the scratch buffers in bytes.
    pub scratch: Vec<u64>,
    /// Dispatches, in the order in which they run.
    pub dispatches: Vec<DispatchExport>,
}

/// A kernel of a [`PlanExport`]. Its entry point is `main`; workgroup memory need not be zeroed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelExport {
    /// Name of the kernel and its shape.
    pub name: String,
    /// Complete WGSL.
    pub text: String,
    /// First line (from 1) and name of each file in the text, in order.
    pub files: Vec<(u32, String)>,
}

/// One dispatch of a [`PlanExport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatchExport {
    /// Index of its kernel in [`PlanExport::kernels`].
    pub kernel: usize,
    /// Workgroups along x, y and z.
    pub grid: [u32; 3],
    /// Contents of the buffer bound to [`BufferExport::Params`].
    pub params: Vec<u8>,
    /// Bindings, all in group 0.
    pub bindings: Vec<BindingExport>,
}

/// A binding of a [`DispatchExport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingExport {
    /// `@binding`.
    pub binding: u32,
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
    /// A tensor: `query`, `key`, `value`, `output`, `lse`, `stats`, `bias`, `mask`, `scores`, `weights`, `d_output`,
    /// `d_query`, `d_key`, `d_value`, `d_bias`, `d_relative_bias`, `d_sinks` or `d_term_tables`; `tables` ([`crate::gpu::Tables`]);
    /// `cache`, a device cache's state.
    ///
    /// Generic kernels always declare `tables`, `bias` and `mask`: bind 16 dummy bytes for those that the problem
    /// lacks. A forward plan writes `lse` even if it is not wanted.
    Tensor(&'static str),
    /// Scratch buffer, by its index in [`PlanExport::scratch`].
    Scratch(usize),
}

impl PlanExport {
    /// Version that this crate writes.
    pub const VERSION: u32 = 1;
}

impl From<&Shader> for KernelExport {
    fn from(shader: &Shader) -> Self {
        Self::new(shader.name.clone(), shader.source.clone())
    }
}

impl KernelExport {
    fn new(name: String, source: Source) -> Self {
        let files = source.parts().map(|(line, name)| (line as u32, name.to_string())).collect();
        Self { name, text: source.text, files }
    }

    /// Locates a line of `text`, counted from 1, as `shaders/lib/score.wgsl:12`.
    pub fn locate(&self, line: u32) -> String {
        let at = self.files.partition_point(|&(first, _)| first <= line).saturating_sub(1);
        self.files.get(at).map_or_else(|| line.to_string(), |(first, name)| format!("{name}:{}", line + 1 - first))
    }
}

impl Plan {
    /// Returns the plan as plain data, to be run by any WebGPU host.
    pub fn export(&self) -> PlanExport {
        let mut keys = Vec::new();
        let mut dispatches = Vec::new();
        for step in &self.steps {
            let kernel = keys.iter().position(|&key| key == &step.key).unwrap_or_else(|| {
                keys.push(&step.key);
                keys.len() - 1
            });
            let params = BindingExport { binding: Slot::Params as u32, buffer: BufferExport::Params, offset: 0, size: None };
            let bindings = std::iter::once(params).chain(step.places.iter().map(|&(slot, place)| binding(step, slot, place))).collect();
            let [x, y] = step.grid();
            dispatches.push(DispatchExport { kernel, grid: [x, y, 1], params: bytemuck::bytes_of(&step.params).to_vec(), bindings });
        }
        let kernels = keys.into_iter().map(|key| KernelExport::new(key.kernel.to_string(), compose(key))).collect();
        PlanExport { version: PlanExport::VERSION, kernels, scratch: self.scratch.clone(), dispatches }
    }
}

fn binding(step: &Step, slot: Slot, place: BufferRef) -> BindingExport {
    let range = of_slot(step.bound.as_ref(), slot).map(|bound| bound.bytes.clone());
    let (offset, size) = range.map_or((0, None), |range| (range.start, Some(range.end - range.start)));
    BindingExport { binding: slot as u32, buffer: buffer(place), offset, size }
}

const fn buffer(place: BufferRef) -> BufferExport {
    BufferExport::Tensor(match place {
        BufferRef::Query => "query",
        BufferRef::Key => "key",
        BufferRef::Value => "value",
        BufferRef::Output => "output",
        BufferRef::Lse => "lse",
        BufferRef::Stats => "stats",
        BufferRef::Tables => "tables",
        BufferRef::Bias => "bias",
        BufferRef::Mask => "mask",
        BufferRef::Scores => "scores",
        BufferRef::Weights => "weights",
        BufferRef::Cache => "cache",
        BufferRef::DOutput => "d_output",
        BufferRef::DLse => "d_lse",
        BufferRef::DQuery => "d_query",
        BufferRef::DKey => "d_key",
        BufferRef::DValue => "d_value",
        BufferRef::DBias => "d_bias",
        BufferRef::DRelativeBias => "d_relative_bias",
        BufferRef::DSinks => "d_sinks",
        BufferRef::DTermTables => "d_term_tables",
        BufferRef::Scratch(number) => return BufferExport::Scratch(number),
    })
}
