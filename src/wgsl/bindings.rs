//! Bindings of kernels.

use super::key::{Kernel, KernelKey};
use super::shapes::KeySide;
use crate::problem::Operand;
use crate::terms::TermTensor;

/// Binding of a kernel; its discriminant is the binding number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Slot {
    Params,
    Query,
    Key,
    Value,
    Output,
    Lse,
    Tables,
    Bias,
    Mask,
    Scores,
    PartialOutput,
    /// (m, l) of the parts; lse for parts of an app.
    PartialStats,
    Cache,
    /// Output of the forward pass, read by the backward preprocess.
    Result,
    /// (m, l) of the whole rows.
    Stats,
    /// (m, l) of the forward pass, read by the backward preprocess and by key sums.
    ForwardStats,
    DOutput,
    /// Gradient of the lse, read by the backward preprocess.
    DLse,
    /// m, 1 / l and delta of each row, followed by the tables.
    RowStats,
    DQuery,
    DKey,
    DValue,
    /// Terms of a sum, f32; the results go to `Sums`.
    Parts,
    Sums,
    /// List of visible tiles, and the tables in front of it.
    Bits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Uniform,
    Read,
    ReadWrite,
}

impl Access {
    /// Type of the binding, as `GPUBufferBindingType` names it.
    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Read => "read-only-storage",
            Self::ReadWrite => "storage",
        }
    }
}

impl KernelKey {
    /// Returns the bindings in the order of their numbers.
    pub(crate) fn bindings(&self) -> Vec<(Slot, Access)> {
        let mut bindings = vec![(Slot::Params, Access::Uniform)];
        let mut add = |wanted: bool, slot, access| {
            if wanted {
                bindings.push((slot, access));
            }
        };
        let kernel = self.kernel;
        let fused = matches!(kernel, Kernel::Tiles(_) | Kernel::Lanes(_) | Kernel::Rows(_) | Kernel::Decode(_) | Kernel::Matrix(_));
        let scores = matches!(kernel, Kernel::Scores(_));
        let weighted = matches!(kernel, Kernel::WeightedValues(_));
        let softmax = matches!(kernel, Kernel::Softmax(_));
        let (d_query, d_key, d_value) = match kernel {
            Kernel::QueryGradient(_) => (true, false, false),
            Kernel::KeyGradient(_, side) => (false, side != KeySide::Value, side != KeySide::Key),
            Kernel::NarrowGradient(operand) => (operand == Operand::Query, operand == Operand::Key, operand == Operand::Value),
            _ => (false, false, false),
        };
        let backward = kernel.visits_pairs_backward();
        let dv_only = matches!(kernel, Kernel::KeyGradient(_, KeySide::Value));
        let key_sums = matches!(kernel, Kernel::KeySums(_));
        add(fused || scores || backward || key_sums, Slot::Query, Access::Read);
        add(fused || scores || backward || key_sums, Slot::Key, Access::Read);
        add(fused || weighted || (backward && !dv_only), Slot::Value, Access::Read);
        let rotates_output = kernel == Kernel::RotateOutput;
        add(fused || weighted || rotates_output || kernel == Kernel::Merge, Slot::Output, Access::ReadWrite);
        add(fused || softmax || kernel == Kernel::Merge, Slot::Lse, Access::ReadWrite);
        add(self.tables && !kernel.reads_row_stats(), Slot::Tables, Access::Read);
        for (tensor, slot) in [(TermTensor::Bias, Slot::Bias), (TermTensor::Mask, Slot::Mask)] {
            add(self.terms.iter().any(|(_, term)| term.tensor == Some(tensor)), slot, Access::Read);
        }
        add(scores || softmax, Slot::Scores, Access::ReadWrite);
        add(weighted, Slot::Scores, Access::Read);
        add(rotates_output || kernel == Kernel::Merge, Slot::PartialOutput, Access::Read);
        add(kernel == Kernel::Merge, Slot::PartialStats, Access::Read);
        add(self.stats, Slot::Stats, Access::ReadWrite);
        add(self.cached, Slot::Cache, Access::Read);
        let preprocess = matches!(kernel, Kernel::Preprocess { .. });
        add(preprocess, Slot::Result, Access::Read);
        add(preprocess || key_sums, Slot::ForwardStats, Access::Read);
        add(backward || preprocess, Slot::DOutput, Access::Read);
        add(kernel == Kernel::Preprocess { through_lse: true }, Slot::DLse, Access::Read);
        add(preprocess, Slot::RowStats, Access::ReadWrite);
        add(kernel.reads_row_stats(), Slot::RowStats, Access::Read);
        add(d_query, Slot::DQuery, Access::ReadWrite);
        add(d_key, Slot::DKey, Access::ReadWrite);
        add(d_value, Slot::DValue, Access::ReadWrite);
        let from_parts = matches!(kernel, Kernel::RelativeGradient | Kernel::TableGradient | Kernel::Sum | Kernel::NarrowGradient(_));
        add(from_parts, Slot::Parts, Access::Read);
        let sums =
            [Kernel::BiasGradient, Kernel::Diagonals, Kernel::RelativeGradient, Kernel::TableGradient, Kernel::SinkGradient, Kernel::Sum];
        add(sums.contains(&kernel) || kernel.table().is_some() || key_sums, Slot::Sums, Access::ReadWrite);
        add(kernel == Kernel::TileList, Slot::Bits, Access::ReadWrite);
        bindings
    }
}
