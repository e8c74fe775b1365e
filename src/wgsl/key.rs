//! Kernel keys: everything that distinguishes one kernel from another, and the key of the pipeline cache.

use std::sync::Arc;

use super::shapes::{DecodeShape, GradientShape, KeySide, LaneShape, MatrixShape, RowShape, StagedShape, TileShape};
use crate::custom::{ARE_READ, Functions};
use crate::numbers::{DType, Hadamard};
use crate::problem::{Operand, Problem};
use crate::terms::TermSet;

/// Words per row that the backward preprocess writes: shaders/lib/addressing.wgsl.
pub(crate) const ROW_STATS: usize = 3;

/// A kernel in one of its variants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KernelKey {
    pub(crate) kernel: Kernel,
    /// True for a generic variant, which reads head_dim and every score option at run time and has rolled loops: few
    /// variants, quick to compile, slow to run. A specialised variant has them as constants. See [`Self::is_switched`].
    pub(crate) generic: bool,
    /// Elements of a query row and of a value row (the most, for generic variants); 0 where unused.
    pub(crate) head_dim: u32,
    pub(crate) head_dim_v: u32,
    pub(crate) query: Storage,
    pub(crate) key: Storage,
    pub(crate) value: Storage,
    pub(crate) output: Storage,
    /// Terms that look at pairs. A specialised variant has exactly these, a generic one all or none.
    pub(crate) terms: TermSet,
    /// Terms that the user wrote, in both kinds of variants.
    pub(crate) user_terms: Vec<Arc<Functions>>,
    /// True if the kernel reads `tables`.
    pub(crate) tables: bool,
    /// True if keys and values are addressed through a page table.
    pub(crate) paged: bool,
    /// True if lengths and page table are read from the state of a cache instead of `tables`.
    pub(crate) cached: bool,
    /// True if dropout is applied to the weights.
    pub(crate) dropout: bool,
    /// Storage type of dQ, dK and dV where it differs from their operand's.
    pub(crate) gradient: Option<DType>,
    /// Width of the blocks in which a kernel rotates the queries that it reads or, if it reads none, the output; 0 without.
    pub(crate) hadamard: u32,
    /// True if a fused kernel writes partial (m, l, output / l), or if Merge reads an app's parts with their lse.
    pub(crate) partial: bool,
    /// True if merge or softmax writes (m, l) of the rows.
    pub(crate) stats: bool,
    /// True if tiles are skipped by the list that [`Kernel::TileList`] has written behind the tables.
    pub(crate) listed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    /// Fused forward by register tiles.
    Tiles(TileShape),
    /// Fused forward with whole query rows per thread; keys are broadcast across the subgroup.
    Lanes(LaneShape),
    /// Fused forward with a query row per thread, and nothing shared.
    Rows(RowShape),
    /// Fused forward for few query rows; the elements of each key are spread over a subgroup.
    Decode(DecodeShape),
    /// Fused forward by cooperative matrices.
    Matrix(MatrixShape),
    /// List of the tiles that masks show, behind a copy of the tables.
    TileList,
    /// Merge of partial results over disjoint keys.
    Merge,
    /// Staged, last: the output of rotated values, rotated back.
    RotateOutput,
    /// Sums of the weights of each key, from the softmax statistics.
    KeySums(GradientShape),
    /// Staged, first: the score matrix.
    Scores(StagedShape),
    /// Staged, second: softmax of the rows, with so many threads for each.
    Softmax(u32),
    /// Staged, third: weights x V.
    WeightedValues(StagedShape),
    /// Backward preprocess: m, 1 / l and delta of each row, and a copy of the tables.
    Preprocess { through_lse: bool },
    /// Backward: dQ.
    QueryGradient(GradientShape),
    /// Backward: dK and dV, or one of them.
    KeyGradient(GradientShape, KeySide),
    /// Backward: the gradient of the bias, or partial sums of it.
    BiasGradient,
    /// Backward: sums of the biases' gradients along diagonals.
    Diagonals,
    /// Backward: the gradient of the relative biases, from the sums along diagonals.
    RelativeGradient,
    /// Backward: the gradient of a user's table, by its number, whose elements have pairs of their own, or partial sums.
    PairTableGradient(u32),
    /// Backward: sums of the gradient of a user's table, by its number, along lines.
    TableLines(Lines, u32),
    /// Backward: the gradient of a user's table, from the sums along lines.
    TableGradient,
    /// Backward: the gradient of the sinks.
    SinkGradient,
    /// Backward: the sum of partial gradients.
    Sum,
    /// Backward: conversion of a gradient summed in f32 to its storage type.
    NarrowGradient(Operand),
}

/// Lines along which a gradient is summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lines {
    Rows,
    Keys,
    Diagonals,
}

impl Lines {
    /// Lines that a workgroup sums.
    pub(crate) const fn of_block(self) -> usize {
        if matches!(self, Self::Diagonals) { 31 } else { 16 }
    }
}

impl Kernel {
    /// Number of the user's table whose gradient the kernel computes from pairs.
    pub(super) const fn table(self) -> Option<u32> {
        match self {
            Self::PairTableGradient(table) | Self::TableLines(_, table) => Some(table),
            _ => None,
        }
    }

    /// True if a generic variant of the kernel computes scores.
    pub(super) const fn visits_scores(self) -> bool {
        matches!(self, Self::Tiles(_) | Self::Rows(_) | Self::Scores(_) | Self::KeySums(_)) || self.visits_pairs_backward()
    }

    /// True if the kernel computes gradients of (row, key) pairs.
    pub(super) const fn visits_pairs_backward(self) -> bool {
        matches!(self, Self::QueryGradient(_) | Self::KeyGradient(..) | Self::BiasGradient | Self::Diagonals) || self.table().is_some()
    }

    /// True if the kernel reads the output of [`Self::Preprocess`].
    pub(super) const fn reads_row_stats(self) -> bool {
        self.visits_pairs_backward() || matches!(self, Self::RelativeGradient | Self::SinkGradient)
    }

    /// True if the kernel works on tiles of rows and keys, which it may skip.
    pub(super) const fn has_blocks(self) -> bool {
        matches!(self, Self::QueryGradient(_) | Self::KeyGradient(..) | Self::KeySums(_)) || self.block_rows() > 0
    }

    /// True if it is made for processors that run the lanes of a subgroup as elements of a vector.
    pub(super) const fn runs_lanes_as_vectors(self) -> bool {
        use GradientShape::Vectors;
        matches!(
            self,
            Self::Lanes(_)
                | Self::Rows(_)
                | Self::Decode(_)
                | Self::Scores(StagedShape::Rows(_) | StagedShape::Few(_))
                | Self::QueryGradient(Vectors { .. })
                | Self::KeyGradient(Vectors { .. }, _)
                | Self::KeySums(Vectors { .. })
        )
    }

    /// True if it asks what terms show of a tile.
    pub(super) fn has_tiles(self) -> bool {
        self.has_blocks() || self == Self::TileList
    }

    /// Query rows of a fused kernel's workgroup; 0 for other kernels.
    pub(crate) const fn block_rows(self) -> u32 {
        match self {
            Self::Tiles(shape) => shape.block_rows(),
            Self::Lanes(shape) => shape.block_rows(),
            Self::Rows(shape) => shape.threads,
            Self::Decode(shape) => shape.rows,
            Self::Matrix(shape) => shape.block_rows(),
            _ => 0,
        }
    }
}

impl std::fmt::Display for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tiles(s) => {
                let by = if s.subgroups { "subgroups" } else { "workgroup memory" };
                write!(f, "tiles {}x{}, {} threads of {}x{}, reduced by {by}", s.block_rows(), s.block_keys(), s.threads, s.rows, s.keys)
            }
            Self::Lanes(shape) => write!(f, "{shape}"),
            Self::Rows(s) => write!(f, "rows {}x{}, {} threads of 1x{}", s.threads, s.keys, s.threads, s.step),
            Self::Decode(s) => write!(f, "decode {}x{}, {} lanes", s.rows, s.lanes, s.lanes),
            Self::Matrix(s) => {
                let (rows, threads, size) = (s.block_rows(), s.threads(), s.size);
                write!(f, "matrix {rows}x{}, {threads} threads, cooperative matrices {size}x{size}", s.keys)
            }
            Self::TileList => f.write_str("list of visible tiles"),
            Self::Merge => f.write_str("merge"),
            Self::RotateOutput => f.write_str("rotate output"),
            Self::KeySums(shape) => write!(f, "key sums by {shape}"),
            Self::Scores(shape) => write!(f, "scores by {shape}"),
            Self::Softmax(threads) => write!(f, "softmax, {threads} threads a row"),
            Self::WeightedValues(shape) => write!(f, "weighted values by {shape}"),
            Self::Preprocess { through_lse: false } => f.write_str("preprocess"),
            Self::Preprocess { through_lse: true } => f.write_str("preprocess with dlse"),
            Self::QueryGradient(shape) => write!(f, "dQ by {shape}"),
            Self::KeyGradient(shape, KeySide::Both) => write!(f, "dK and dV by {shape}"),
            Self::KeyGradient(shape, KeySide::Key) => write!(f, "dK by {shape}"),
            Self::KeyGradient(shape, KeySide::Value) => write!(f, "dV by {shape}"),
            Self::BiasGradient => f.write_str("dbias"),
            Self::Diagonals => f.write_str("sums along diagonals"),
            Self::RelativeGradient => f.write_str("drelative_bias"),
            Self::PairTableGradient(table) => write!(f, "dtable {table}"),
            Self::TableLines(lines, table) => {
                let lines = match lines {
                    Lines::Rows => "rows",
                    Lines::Keys => "keys",
                    Lines::Diagonals => "diagonals",
                };
                write!(f, "dtable {table} along {lines}")
            }
            Self::TableGradient => f.write_str("dtable"),
            Self::SinkGradient => f.write_str("dsinks"),
            Self::Sum => f.write_str("sum"),
            Self::NarrowGradient(operand) => write!(f, "narrow the gradient of {}", operand.name()),
        }
    }
}

/// Storage type of a tensor and the width of its accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Storage {
    pub(crate) dtype: DType,
    /// True if elements are accessed four at a time, else one by one.
    pub(crate) vectors: bool,
}

impl Storage {
    /// Scratch: dense f32 in whole vec4s.
    pub(crate) const SCRATCH: Self = Self { dtype: DType::F32, vectors: true };

    fn of(problem: &Problem, operand: Operand) -> Self {
        let spec = problem.spec(operand);
        let shape = problem.shape(operand);
        let strides = spec.strides(shape);
        let steps = [spec.offset, strides.batch, strides.head, strides.seq, shape[3]];
        Self { dtype: spec.dtype, vectors: strides.dim == 1 && steps.iter().all(|step| step.is_multiple_of(4)) }
    }
}

impl KernelKey {
    /// Returns the specialised variant for `problem`. Fields that `kernel` does not use keep a default: fewer variants.
    pub(crate) fn new(kernel: Kernel, problem: &Problem) -> Self {
        let dropout = problem.dropout_rule().is_some();
        let tables = problem.has_tables();
        let terms = TermSet::of(problem).and(TermSet::pairs());
        // A term that changes nothing is left out, unless its tables count among those of later terms.
        let acts = |functions: &&Arc<Functions>| !functions.is_identity() || !functions.tables.is_empty();
        let user_terms = problem.user_terms.iter().map(|term| term.functions()).filter(acts).map(Arc::clone).collect();
        let storage = |operand| Storage::of(problem, operand);
        let (head_dim, head_dim_v) = (problem.dims.head_dim as u32, problem.dims.head_dim_v as u32);
        let unused = Self {
            kernel,
            generic: false,
            head_dim: 0,
            head_dim_v: 0,
            query: Storage::default(),
            key: Storage::default(),
            value: Storage::default(),
            output: Storage::default(),
            terms: TermSet::default(),
            user_terms: Vec::new(),
            tables,
            paged: problem.paged.is_some(),
            cached: false,
            dropout: false,
            gradient: None,
            hadamard: 0,
            partial: false,
            stats: false,
            listed: false,
        };
        let block = |rotation: Option<Hadamard>| rotation.map_or(0, |rotation| rotation.block() as u32);
        let (of_query, of_output) = (block(problem.query_rotation()), block(problem.output_rotation()));
        match kernel {
            Kernel::Tiles(_)
            | Kernel::Lanes(_)
            | Kernel::Rows(_)
            | Kernel::Decode(_)
            | Kernel::Matrix(_)
            | Kernel::QueryGradient(_)
            | Kernel::KeyGradient(..)
            | Kernel::BiasGradient
            | Kernel::Diagonals
            | Kernel::PairTableGradient(_)
            | Kernel::TableLines(..) => Self {
                head_dim,
                head_dim_v,
                query: storage(Operand::Query),
                key: storage(Operand::Key),
                value: storage(Operand::Value),
                output: storage(Operand::Output),
                terms,
                user_terms,
                dropout,
                hadamard: of_query,
                ..unused
            },
            Kernel::TileList => Self { terms: terms.and(TermSet::visible()), user_terms, ..unused },
            Kernel::Preprocess { .. } => Self { head_dim_v, output: storage(Operand::Output), ..unused },
            Kernel::Merge => {
                Self { head_dim_v, output: storage(Operand::Output), stats: problem.want.needs_stats(), hadamard: of_output, ..unused }
            }
            Kernel::RotateOutput => Self { head_dim_v, output: storage(Operand::Output), hadamard: of_output, ..unused },
            Kernel::Scores(_) => {
                let (query, key) = (storage(Operand::Query), storage(Operand::Key));
                Self { head_dim, query, key, terms, user_terms, hadamard: of_query, ..unused }
            }
            Kernel::Softmax(_) => Self { stats: problem.want.needs_stats(), ..unused },
            // A weight is all that there is of a value.
            Kernel::KeySums(_) => {
                let (query, key) = (storage(Operand::Query), storage(Operand::Key));
                Self { head_dim, head_dim_v: 1, query, key, terms, user_terms, hadamard: of_query, ..unused }
            }
            Kernel::RelativeGradient | Kernel::SinkGradient => unused,
            Kernel::Sum | Kernel::TableGradient => Self { tables: false, ..unused },
            Kernel::NarrowGradient(operand) => {
                let narrow = Self { tables: false, paged: false, ..unused };
                match operand {
                    Operand::Query => Self { head_dim, query: storage(operand), ..narrow },
                    Operand::Key => Self { head_dim, key: storage(operand), ..narrow },
                    _ => Self { head_dim_v, value: storage(operand), ..narrow },
                }
            }
            Kernel::WeightedValues(_) => {
                Self { head_dim_v, value: storage(Operand::Value), output: storage(Operand::Output), dropout, ..unused }
            }
        }
    }

    /// Returns the generic variant of `kernel` that fits `problem`.
    pub(crate) fn generic(kernel: Kernel, problem: &Problem) -> Self {
        let specialised = Self::new(kernel, problem);
        // Most problems have none of what is behind switches, and compile in less than half of the time without it.
        let plain = specialised.terms == TermSet::default() && !specialised.dropout && !specialised.paged;
        let switched = kernel.visits_scores() && !plain;
        let roomy = |dim: u32| [0, 64, 128, 256, 576].into_iter().find(|&size| dim <= size).unwrap_or(dim.next_multiple_of(64));
        let scalar = |storage: Storage| Storage { vectors: storage.dtype.is_quantised(), ..storage };
        Self {
            generic: true,
            head_dim: roomy(specialised.head_dim),
            head_dim_v: if matches!(kernel, Kernel::KeySums(_)) { 1 } else { roomy(specialised.head_dim_v) },
            query: scalar(specialised.query),
            key: scalar(specialised.key),
            value: scalar(specialised.value),
            output: scalar(specialised.output),
            terms: if switched { TermSet::pairs() } else { TermSet::default() },
            tables: !matches!(kernel, Kernel::Sum | Kernel::TableGradient | Kernel::NarrowGradient(_)),
            paged: false,
            dropout: false,
            ..specialised
        }
    }

    /// True if built-in terms of pairs, dropout and paging are behind switches in the params. Generic kernels that see
    /// scores have two variants: this, and one for problems with none of these.
    pub(crate) fn is_switched(&self) -> bool {
        self.generic && !(self.kernel.visits_scores() && self.terms == TermSet::default())
    }

    /// Terms that the user wrote.
    pub(crate) fn user_terms(&self) -> &[Arc<Functions>] {
        // As in `Term::functions`.
        if ARE_READ { &self.user_terms } else { &[] }
    }

    /// Returns the variant without the user's terms, whose functions a tiny problem cannot judge.
    pub(crate) fn without_user_terms(&self) -> Self {
        Self { user_terms: Vec::new(), listed: false, ..self.clone() }
    }

    /// Bytes of workgroup memory. The planner checks them, because wgpu does not.
    pub(crate) fn workgroup_bytes(&self) -> u32 {
        match self.kernel {
            Kernel::Tiles(shape) => shape.workgroup_bytes(self.head_dim, self.head_dim_v),
            Kernel::Matrix(shape) => shape.workgroup_bytes(self.head_dim, self.head_dim_v),
            Kernel::TileList => 4,
            Kernel::Scores(StagedShape::Tiles) => 2 * 32 * 9 * 16,
            Kernel::Softmax(_) => 64 * 4,
            Kernel::WeightedValues(StagedShape::Tiles) => 32 * 9 * 16 + 32 * 8 * 16 + 4,
            Kernel::Lanes(_) | Kernel::Rows(_) | Kernel::Scores(_) | Kernel::WeightedValues(_) => 0,
            Kernel::Merge | Kernel::RotateOutput if self.hadamard > 0 => 64 * 16,
            Kernel::Decode(_) | Kernel::Merge | Kernel::RotateOutput => 0,
            Kernel::Preprocess { .. } | Kernel::Sum | Kernel::NarrowGradient(_) => 0,
            Kernel::BiasGradient | Kernel::Diagonals | Kernel::PairTableGradient(_) => 2 * 16 * 9 * 16 + 16 * 16 * 4,
            Kernel::TableLines(lines, _) => 2 * 16 * 9 * 16 + 16 * 16 * 4 + 4 * lines.of_block() as u32,
            Kernel::RelativeGradient | Kernel::TableGradient | Kernel::SinkGradient => 64 * 4,
            Kernel::QueryGradient(shape) => shape.workgroup_bytes(self.head_dim, self.head_dim_v, false),
            Kernel::KeySums(shape) => shape.workgroup_bytes(self.head_dim, self.head_dim_v, true),
            Kernel::KeyGradient(shape, side) => shape.workgroup_bytes(self.head_dim, self.head_dim_v, side != KeySide::Key),
        }
    }

    /// Lanes that a subgroup must have; `None` if subgroups of any size will do.
    pub(crate) const fn lanes(&self) -> Option<u32> {
        match self.kernel {
            Kernel::Lanes(LaneShape { lanes, .. })
            | Kernel::Decode(DecodeShape { lanes, .. })
            | Kernel::QueryGradient(GradientShape::Vectors { lanes, .. })
            | Kernel::KeyGradient(GradientShape::Vectors { lanes, .. }, _)
            | Kernel::KeySums(GradientShape::Vectors { lanes, .. }) => Some(lanes),
            _ => None,
        }
    }

    /// Threads of a workgroup.
    pub(crate) fn threads(&self) -> u32 {
        match self.kernel {
            Kernel::Tiles(shape) => shape.threads,
            Kernel::Lanes(shape) => shape.lanes,
            Kernel::Rows(shape) => shape.threads,
            Kernel::Scores(shape) | Kernel::WeightedValues(shape) => shape.threads(),
            Kernel::Matrix(shape) => shape.threads(),
            Kernel::Decode(shape) => shape.lanes,
            Kernel::QueryGradient(shape) | Kernel::KeyGradient(shape, _) | Kernel::KeySums(shape) => shape.threads(),
            _ => 64,
        }
    }
}
