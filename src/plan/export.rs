//! A plan as plain data, for hosts other than this crate's own.

use super::{Place, Plan, Shader, Step, of_slot};
use crate::shader::{Slot, Source, compose};

/// All that a WebGPU host needs to run a plan: kernels, and dispatches to be run in order, with a barrier between each two (as WebGPU has
/// it by itself).
///
/// A host makes the buffers of `scratch`, uploads each dispatch's `params`, binds the rest by name, and dispatches. Buffers have whole
/// multiples of 16 bytes. Kernels check no index: a buffer must be as large as its tensor is.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanExport {
    /// Version of this form, [`Self::VERSION`].
    pub version: u32,
    /// The kernels, each once.
    pub kernels: Vec<KernelExport>,
    /// Bytes of each buffer of the plan's own.
    pub scratch: Vec<u64>,
    /// What runs, in order.
    pub dispatches: Vec<DispatchExport>,
}

/// A kernel of a [`PlanExport`]. Its entry point is `main`; workgroup memory may be left as it is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelExport {
    /// Kernel and shape.
    pub name: String,
    /// WGSL, complete.
    pub text: String,
    /// First line (from 1) and name of each file that the text is composed of, in order.
    pub files: Vec<(u32, String)>,
}

/// One dispatch of a [`PlanExport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DispatchExport {
    /// Number of its kernel.
    pub kernel: usize,
    /// Workgroups along x, y and z.
    pub grid: [u32; 3],
    /// Contents of the buffer bound to [`BufferExport::Params`].
    pub params: Vec<u8>,
    /// What is bound, all in group 0.
    pub bindings: Vec<BindingExport>,
}

/// A binding of a [`DispatchExport`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingExport {
    /// `@binding`.
    pub binding: u32,
    /// Buffer that is bound.
    pub buffer: BufferExport,
    /// First byte.
    pub offset: u64,
    /// Bytes; `None` is all from `offset` on.
    pub size: Option<u64>,
}

/// Buffers that a plan's dispatches bind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BufferExport {
    /// The dispatch's own parameters.
    Params,
    /// A tensor: `query`, `key`, `value`, `output`, `lse`, `bias`, `mask`, `scores`, `weights`, `d_output`, `d_query`, `d_key`, `d_value`,
    /// `d_bias`, `d_relative_bias` or `d_sinks`; `tables` as [`super::table_bytes`] makes it; `cache`, a device cache's state.
    ///
    /// A generic kernel declares `tables`, `bias` and `mask` also where the problem has none: any buffer of 16 bytes will do. A forward
    /// plan writes `lse` also where it is not wanted.
    Tensor(&'static str),
    /// Buffer of [`PlanExport::scratch`].
    Scratch(usize),
}

impl PlanExport {
    /// The version that this crate writes.
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

    /// File and line, as `shaders/lib/score.wgsl:12`, of a line of `text` (from 1).
    pub fn locate(&self, line: u32) -> String {
        let at = self.files.partition_point(|&(first, _)| first <= line).saturating_sub(1);
        self.files.get(at).map_or_else(|| line.to_string(), |(first, name)| format!("{name}:{}", line + 1 - first))
    }
}

impl Plan {
    /// The plan as plain data, to be run by any WebGPU host.
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

fn binding(step: &Step, slot: Slot, place: Place) -> BindingExport {
    let range = of_slot(step.bound.as_ref(), slot).map(|bound| bound.bytes.clone());
    let (offset, size) = range.map_or((0, None), |range| (range.start, Some(range.end - range.start)));
    BindingExport { binding: slot as u32, buffer: buffer(place), offset, size }
}

const fn buffer(place: Place) -> BufferExport {
    BufferExport::Tensor(match place {
        Place::Query => "query",
        Place::Key => "key",
        Place::Value => "value",
        Place::Output => "output",
        Place::Lse => "lse",
        Place::Stats => "stats",
        Place::Tables => "tables",
        Place::Bias => "bias",
        Place::Mask => "mask",
        Place::Scores => "scores",
        Place::Weights => "weights",
        Place::Cache => "cache",
        Place::DOutput => "d_output",
        Place::DQuery => "d_query",
        Place::DKey => "d_key",
        Place::DValue => "d_value",
        Place::DBias => "d_bias",
        Place::DRelativeBias => "d_relative_bias",
        Place::DSinks => "d_sinks",
        Place::Scratch(number) => return BufferExport::Scratch(number),
    })
}
