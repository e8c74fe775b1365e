//! Choice of the files of `shaders/` that follow a kernel's prelude.

use super::{GradientShape, Kernel, KernelKey, Lines, StagedShape, TileShape};
use crate::shader_text::File;
use crate::terms::TermSet;

const SHARED: &[File] = files!(
    "lib/numbers.wgsl",
    "lib/params.wgsl",
    "io/widen.wgsl",
    "lib/visibility.wgsl",
    "lib/score.wgsl",
    "lib/tile_bits.wgsl",
    "lib/dropout.wgsl",
    "lib/addressing.wgsl"
);

/// Files that the fused kernels share.
const FUSED: &[File] = files!("lib/block.wgsl", "lib/row_result.wgsl");

/// Files of backward kernels that own rows or keys and stream the other ones.
const STREAMS: &[File] = files!("lib/block.wgsl", "backward/row_stats.wgsl", "backward/pair.wgsl", "backward/stream.wgsl");

/// Files of backward kernels that visit squares of pairs.
const SQUARES: &[File] = files!("backward/row_stats.wgsl", "backward/pair.wgsl", "backward/square.wgsl");

impl KernelKey {
    /// Returns the files after the prelude: those of every kernel, those of its terms, then the kernel's own.
    pub(super) fn files(&self) -> impl Iterator<Item = File> {
        let own: [&[File]; 3] = match self.kernel {
            Kernel::Tiles(TileShape { subgroups: false, .. }) => {
                [FUSED, files!("lib/vote.wgsl", "lib/row_reduce.wgsl", "lib/row_reduce_workgroup.wgsl"), files!("fused/tiles.wgsl")]
            }
            Kernel::Tiles(TileShape { subgroups: true, .. }) => [
                FUSED,
                files!("lib/vote.wgsl", "lib/subgroup_threads.wgsl", "lib/row_reduce.wgsl", "lib/row_reduce_subgroup.wgsl"),
                files!("fused/tiles.wgsl"),
            ],
            Kernel::Lanes(_) => {
                [FUSED, files!("software/lanes.wgsl", "software/products.wgsl", "software/sums.wgsl"), files!("software/prefill.wgsl")]
            }
            Kernel::Rows(_) => [FUSED, &[], files!("software/rows.wgsl")],
            Kernel::Decode(_) => [FUSED, files!("software/lanes.wgsl"), files!("software/decode.wgsl")],
            // Browsers have no cooperative matrices.
            Kernel::Matrix(_) if cfg!(target_family = "wasm") => [&[], &[], &[]],
            Kernel::Matrix(_) => [FUSED, files!("lib/vote.wgsl", "lib/subgroup_threads.wgsl"), files!("fused/matrix.wgsl")],
            Kernel::TileList => [&[], &[], files!("fused/tile_list.wgsl")],
            Kernel::Merge => [&[], files!("lib/output_vec.wgsl"), files!("fused/merge.wgsl")],
            Kernel::RotateOutput => [&[], files!("lib/output_vec.wgsl"), files!("staged/rotate_output.wgsl")],
            Kernel::Scores(StagedShape::Tiles) => [&[], &[], files!("staged/stage.wgsl", "staged/scores.wgsl")],
            Kernel::Scores(StagedShape::Rows(_)) => {
                [files!("staged/stage.wgsl"), files!("software/products.wgsl"), files!("software/scores.wgsl")]
            }
            Kernel::Scores(StagedShape::Few(_)) => [&[], files!("staged/stage.wgsl"), files!("software/scores_of_few.wgsl")],
            Kernel::Softmax(_) => [&[], &[], files!("staged/softmax.wgsl")],
            Kernel::WeightedValues(StagedShape::Tiles) => [&[], &[], files!("staged/weighted_values.wgsl")],
            Kernel::WeightedValues(StagedShape::Rows(_)) => {
                [&[], files!("software/lanes.wgsl", "software/sums.wgsl"), files!("software/weighted_values.wgsl")]
            }
            Kernel::WeightedValues(StagedShape::Few(_)) => {
                [&[], files!("software/lanes.wgsl"), files!("software/weighted_values_of_few.wgsl")]
            }
            Kernel::KeySums(shape) => [
                files!("lib/block.wgsl", "backward/row_stats.wgsl", "backward/stream.wgsl"),
                files!("backward/rows_of_group.wgsl", "backward/key_sums.wgsl"),
                gradient(shape),
            ],
            Kernel::Preprocess { .. } => [&[], files!("backward/row_stats.wgsl"), files!("backward/rows.wgsl")],
            Kernel::QueryGradient(shape) => [STREAMS, files!("backward/own_rows.wgsl"), gradient(shape)],
            Kernel::KeyGradient(shape, _) => [STREAMS, files!("backward/rows_of_group.wgsl", "backward/own_keys.wgsl"), gradient(shape)],
            Kernel::BiasGradient | Kernel::PairTableGradient(_) => [SQUARES, &[], files!("backward/bias.wgsl")],
            Kernel::Diagonals => [SQUARES, lines_of(Lines::Diagonals), files!("backward/diagonals.wgsl")],
            Kernel::RelativeGradient => [&[], files!("backward/reduce.wgsl"), files!("backward/relative.wgsl")],
            Kernel::TableLines(lines, _) => [SQUARES, lines_of(lines), files!("backward/table_lines.wgsl")],
            Kernel::TableGradient => [&[], files!("backward/reduce.wgsl"), files!("backward/table_gradient.wgsl")],
            Kernel::SinkGradient => [&[], files!("backward/reduce.wgsl"), files!("backward/sinks.wgsl")],
            Kernel::Sum => [&[], &[], files!("backward/sum.wgsl")],
            Kernel::NarrowGradient(_) => [&[], &[], files!("backward/narrow.wgsl")],
        };
        let terms = TermSet::intervals().iter().chain(self.terms.iter());
        // One file may serve two terms.
        let mut files: Vec<File> = SHARED.to_vec();
        for (_, term) in terms {
            if !files.contains(&term.wgsl) {
                files.push(term.wgsl);
            }
        }
        let tells = self.terms.iter().any(|(_, term)| term.defines("status"));
        if self.kernel.has_tiles() && (tells || self.user_terms().iter().any(|functions| functions.visible.is_some())) {
            files.extend(files!("lib/interval.wgsl"));
        }
        if self.hadamard > 0 {
            files.extend(files!("lib/hadamard.wgsl"));
            files.extend_from_slice(if self.head_dim > 0 { files!("lib/hadamard_query.wgsl") } else { files!("lib/hadamard_output.wgsl") });
        }
        files.into_iter().chain(own.into_iter().flatten().copied())
    }
}

const fn lines_of(lines: Lines) -> &'static [File] {
    match lines {
        Lines::Rows | Lines::Keys => files!("backward/lines_straight.wgsl"),
        Lines::Diagonals => files!("backward/lines_diagonals.wgsl"),
    }
}

const fn gradient(shape: GradientShape) -> &'static [File] {
    match shape {
        GradientShape::Tiles { .. } => files!("lib/vote.wgsl", "backward/tiles.wgsl"),
        GradientShape::Vectors { .. } => files!("software/lanes.wgsl", "software/gradients.wgsl"),
    }
}
