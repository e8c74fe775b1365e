//! Matrix products of the backward pass. Queries and output gradients are packed once a panel, weights and gradients of
//! scores once a tile. Where an element is out of range, a product is computed by [`super::product::Product`].

use super::backward_unit::{KeySums, Side};
use super::job::{Cut, Job};
use super::matrix::{MatrixProduct, PackedRows, Parts, ROWS, SMALLEST};
use super::matrix_pack::{PackedPanel, Packing, parts};
use super::pack::Rows;
use super::product::Start;
use super::shared::{Buffer, LINE};
use crate::numbers::DType;
use crate::problem::{Operand, Problem, WantGradients};

/// Queries and output gradients of a panel, as the matrix b of products.
#[derive(Default)]
pub(super) struct PackedSide {
    /// [dim][lane].
    d_output: PackedPanel,
    /// [lane][dim], scaled.
    query_rows: PackedPanel,
    /// [lane][dim].
    d_output_rows: PackedPanel,
    /// True if all elements are in range.
    is_packed: bool,
}

/// Weights or gradients of the scores of a tile, as operands of products.
#[derive(Default)]
pub(super) struct PackedPairs {
    panel: PackedPanel,
    rows: Buffer,
}

/// Number of bf16 that weights and gradients of scores are rounded to: two where all wanted gradients have 16 bits.
pub(super) fn parts_of_pairs(problem: &Problem, want: &WantGradients) -> usize {
    let wanted = [(want.query, Operand::Query), (want.key, Operand::Key), (want.value, Operand::Value)];
    if wanted.into_iter().any(|(is_wanted, operand)| is_wanted && want.dtype(problem, operand) == DType::F32) { 3 } else { 2 }
}

impl Side {
    /// Packs what [`Self::load`] has read, where matrix products are used.
    pub(super) fn pack(&mut self, job: &Job<'_>) {
        let (d, width) = (&job.problem.dims, self.panel.width);
        self.packed.is_packed = false;
        let Some(plan) = job.matrix.filter(|_| self.panel.is_packed && self.unfinite.is_empty()) else { return };
        let of_query = if plan.scales_query { plan.query } else { parts(DType::F32) };
        let of_output = parts(job.problem.output.dtype);
        let PackedSide { d_output, query_rows, d_output_rows, is_packed } = &mut self.packed;
        let (query_step, step) = (d.head_dim.next_multiple_of(LINE), d.head_dim_v.next_multiple_of(LINE));
        *is_packed = d_output.pack(job.isa, self.d_output.take(width * d.head_dim_v), width, of_output, SMALLEST)
            && query_rows.pack(job.isa, self.query_rows.take(width * query_step), query_step, of_query, SMALLEST)
            && d_output_rows.pack(job.isa, self.d_output_rows.take(width * step), step, of_output, SMALLEST);
    }

    /// Computes products of output gradients with some packed values. Returns false if the gradients are not packed.
    pub(super) fn multiply_values(&mut self, job: &Job<'_>, cut: &Cut<'_>, products: &mut Buffer) -> bool {
        let (Some(a), true) = (cut.packed_value, self.packed.is_packed) else { return false };
        let (width, rows) = (self.panel.width, cut.keys.len().next_multiple_of(ROWS));
        let (b, c) = (self.packed.d_output.parts(), products.take(width * rows));
        job.isa.run(MatrixProduct { a, b, chunks: cut.value.width.div_ceil(ROWS), rows, width, c, start: Start::Nothing });
        true
    }

    /// Adds the products of transposed keys and some gradients of scores to dQ. Returns false if an element is out of range.
    pub(super) fn add_query(&mut self, job: &Job<'_>, cut: &Cut<'_>, d_scores: &[f32], parts: usize, pairs: &mut PackedPairs) -> bool {
        let (Some(columns), true) = (cut.packed_columns, self.packed.is_packed) else { return false };
        let fits = pairs.panel.pack(job.isa, d_scores, self.panel.width, parts, 0.0);
        if fits {
            self.panel.add_columns(columns, pairs.panel.parts(), cut.keys.len(), job);
        }
        fits
    }

    /// Adds the products of some weights or gradients of scores and the rows of `operand`, queries or output gradients, to a
    /// sum for keys, from row `first` of its block on. Returns false if an element is out of range.
    pub(super) fn add_keys(
        &mut self,
        job: &Job<'_>,
        cut: &Cut<'_>,
        (factors, parts): (Rows<'_>, usize),
        operand: Operand,
        pairs: &mut PackedPairs,
        (sums, first): (&mut KeySums, usize),
    ) -> bool {
        let (Some(columns), true) = (cut.packed_columns, self.packed.is_packed) else { return false };
        let packing = Packing { engine: columns.engine, isa: job.isa, parts, is_transposed: false, smallest: 0.0 };
        let fits = packing.pack(factors, &mut pairs.rows);
        if fits {
            let rows = if operand == Operand::Query { &mut self.packed.query_rows } else { &mut self.packed.d_output_rows };
            let a = packing.packed(factors.count, factors.width, &mut pairs.rows);
            sums.add_packed(job, first, factors, a, rows.parts());
        }
        fits
    }
}

impl KeySums {
    /// Adds the products of packed factors and rows, as [`Self::add`] does.
    fn add_packed(&mut self, job: &Job<'_>, first: usize, factors: Rows<'_>, a: PackedRows<'_>, b: Parts<'_>) {
        let (rows, chunks) = (factors.count.next_multiple_of(ROWS), factors.width.div_ceil(ROWS));
        let c = &mut self.block[first * self.step..];
        job.isa.run(MatrixProduct { a, b, chunks, rows, width: self.step, c, start: Start::There });
    }
}
