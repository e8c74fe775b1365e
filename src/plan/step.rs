//! Steps and buffers of a plan.

use super::ranges::BindingRange;
use super::tensor::TensorExport;
use crate::wgsl::{Kernel, KernelKey, Params, Slot};

/// Buffer that a binding of a step refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BufferRef {
    Query,
    Key,
    Value,
    Output,
    Lse,
    /// (m, l) of each row, wanted by [`crate::Returns::stats`].
    Stats,
    Tables,
    Bias,
    Mask,
    /// Scores at the stage that [`crate::Returns::scores`] asks for.
    Scores,
    /// Softmax weights, wanted by [`crate::Returns::weights`].
    Weights,
    /// Sums of weights, wanted by [`crate::Returns::key_sums`].
    KeySums,
    /// State of a device cache.
    Cache,
    /// Gradient of the output, an input of the backward pass.
    DOutput,
    /// Gradient of the lse, an input of the backward pass.
    DLse,
    DQuery,
    DKey,
    DValue,
    DBias,
    DRelativeBias,
    DSinks,
    DTermTables,
    /// Scratch buffer of the plan, by index.
    Scratch(usize),
    /// Dummy for a tensor that kernels declare and the problem lacks, by index in [`Plan::dummies`].
    Dummy(usize),
}

impl BufferRef {
    /// Name of a tensor, as callers know it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Output => "output",
            Self::Lse => "lse",
            Self::Stats => "stats",
            Self::Tables => "tables",
            Self::Bias => "bias",
            Self::Mask => "mask",
            Self::Scores => "scores",
            Self::Weights => "weights",
            Self::KeySums => "key_sums",
            Self::Cache => "cache_state",
            Self::DOutput => "d_output",
            Self::DLse => "d_lse",
            Self::DQuery => "d_query",
            Self::DKey => "d_key",
            Self::DValue => "d_value",
            Self::DBias => "d_bias",
            Self::DRelativeBias => "d_relative_bias",
            Self::DSinks => "d_sinks",
            Self::DTermTables => "d_term_tables",
            Self::Scratch(_) | Self::Dummy(_) => "scratch",
        }
    }

    /// Returns the tensor that a slot refers to; `None` where the plan decides: params, scores, partial results.
    pub(super) fn of(slot: Slot) -> Option<Self> {
        match slot {
            Slot::Query => Some(Self::Query),
            Slot::Key => Some(Self::Key),
            Slot::Value => Some(Self::Value),
            Slot::Output | Slot::Result => Some(Self::Output),
            Slot::Lse => Some(Self::Lse),
            Slot::Stats | Slot::ForwardStats => Some(Self::Stats),
            Slot::Tables => Some(Self::Tables),
            Slot::Bias => Some(Self::Bias),
            Slot::Mask => Some(Self::Mask),
            Slot::Cache => Some(Self::Cache),
            Slot::DOutput => Some(Self::DOutput),
            Slot::DLse => Some(Self::DLse),
            Slot::DQuery => Some(Self::DQuery),
            Slot::DKey => Some(Self::DKey),
            Slot::DValue => Some(Self::DValue),
            Slot::Bits
            | Slot::Params
            | Slot::Scores
            | Slot::PartialOutput
            | Slot::PartialStats
            | Slot::RowStats
            | Slot::Parts
            | Slot::Sums => None,
        }
    }
}

/// One kernel over one grid.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) key: KernelKey,
    /// Parameters; `first_workgroup..end_workgroup` covers the whole grid.
    pub(crate) params: Params,
    /// Buffer of each binding except the params, in the order of [`KernelKey::bindings`].
    pub(crate) places: Vec<(Slot, BufferRef)>,
    /// Ranges of key and value that are bound; `None` binds both whole.
    pub(crate) bound: Option<[BindingRange; 2]>,
    /// Floating-point operations, by which long steps are cut.
    pub(crate) flops: f64,
}

/// Kernels, parameters and scratch with which a device computes a problem.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    /// Sizes of the scratch buffers in bytes.
    pub(crate) scratch: Vec<u64>,
    /// Sizes in bytes of dummies for tensors that kernels declare and the problem lacks.
    pub(crate) dummies: Vec<u64>,
    /// Tensors that the caller binds: first those that are read.
    pub(crate) tensors: Vec<(BufferRef, TensorExport)>,
    /// Options of the problem, as text.
    pub(crate) options: Vec<String>,
    pub(crate) table_words: u32,
    pub(crate) summary: String,
}

impl Plan {
    /// First kernel that computes more than a list of tiles.
    pub(crate) fn kernel(&self) -> Kernel {
        self.key().kernel
    }

    /// Variant of [`Self::kernel`].
    pub(crate) fn key(&self) -> &KernelKey {
        let prepares = usize::from(self.steps[0].key.kernel == Kernel::TileList);
        &self.steps[prepares].key
    }

    /// Summary in words: kernel, tiles, grid, bytes of workgroup memory and of scratch.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// Tensor that the caller binds to `place`; `None` if the problem does not have it.
    pub(crate) fn tensor(&self, place: BufferRef) -> Option<&TensorExport> {
        self.tensors.iter().find(|(own, _)| *own == place).map(|(_, tensor)| tensor)
    }

    /// Arguments that are written, or those that are read.
    pub(crate) fn arguments(&self, written: bool) -> impl Iterator<Item = (BufferRef, u64)> {
        self.tensors.iter().filter(move |(_, tensor)| tensor.written == written).map(|(place, tensor)| (*place, tensor.bytes))
    }

    /// Total size of the scratch buffers in bytes.
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch.iter().sum()
    }

    /// Number of dispatches.
    pub fn dispatches(&self) -> usize {
        self.steps.len()
    }

    /// Size of the tables buffer in words of four bytes; 0 where the problem has no tables.
    pub fn table_words(&self) -> u32 {
        self.table_words
    }
}

impl Step {
    /// Workgroups along x and y.
    pub(crate) fn grid(&self) -> [u32; 2] {
        let count = self.params.end_workgroup - self.params.first_workgroup;
        [self.params.grid_width, count.div_ceil(self.params.grid_width)]
    }
}
