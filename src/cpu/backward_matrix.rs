//! Matrix products of the backward pass. Queries and output gradients are packed once a panel, weights and gradients of
//! scores once a tile. Where an element is out of range, a product is computed by [`super::product::Product`].

use super::job::{Cut, Job};
use super::matrix::{MatrixProduct, ROWS, SMALLEST};
use super::matrix_pack::{PackedPanel, Packing, parts};
use super::pack::Rows;
use super::product::Start;
use super::shared::Buffer;
use super::tile::Panel;
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

impl PackedSide {
    /// Packs the output gradients [dim][lane], and the rows [lane][dim] of queries and output gradients, each with its width.
    /// The queries of a panel that is not packed are out of range.
    pub(super) fn pack(&mut self, job: &Job<'_>, panel: &Panel, d_output: &[f32], rows: [(&[f32], usize); 2]) {
        self.is_packed = false;
        let Some(plan) = job.matrix.filter(|_| panel.is_packed) else { return };
        let of_query = if plan.scales_query { plan.query } else { parts(DType::F32) };
        let of_output = parts(job.problem.output.dtype);
        let [(query, query_width), (d_rows, d_width)] = rows;
        self.is_packed = self.d_output.pack(job.isa, d_output, panel.width, of_output, SMALLEST)
            && self.query_rows.pack(job.isa, query, query_width, of_query, SMALLEST)
            && self.d_output_rows.pack(job.isa, d_rows, d_width, of_output, SMALLEST);
    }

    /// Computes products of output gradients with packed values. Returns false if an element is out of range.
    pub(super) fn multiply_values(&mut self, job: &Job<'_>, cut: &Cut<'_>, width: usize, products: &mut Buffer) -> bool {
        let (Some(a), true) = (cut.packed_value, self.is_packed) else { return false };
        let rows = cut.keys.len().next_multiple_of(ROWS);
        let (b, c) = (self.d_output.parts(), products.take(width * rows));
        job.isa.run(MatrixProduct { a, b, chunks: cut.value.width.div_ceil(ROWS), rows, width, c, start: Start::Nothing });
        true
    }

    /// Adds the products of transposed keys and some gradients of scores to a panel's dQ. Returns false if an element is out
    /// of range.
    pub(super) fn add_query(
        &self,
        job: &Job<'_>,
        cut: &Cut<'_>,
        panel: &mut Panel,
        (d_scores, parts): (&[f32], usize),
        pairs: &mut PackedPairs,
    ) -> bool {
        let (Some(columns), true) = (cut.packed_columns, self.is_packed) else { return false };
        let fits = pairs.panel.pack(job.isa, d_scores, panel.width, parts, 0.0);
        if fits {
            panel.add_columns(columns, pairs.panel.parts(), cut.keys.len(), job);
        }
        fits
    }

    /// Adds the products of some weights or gradients of scores and the rows of `operand`, queries or output gradients, to
    /// rows of a width. Returns false if an element is out of range.
    pub(super) fn add_keys(
        &mut self,
        job: &Job<'_>,
        cut: &Cut<'_>,
        (factors, parts): (Rows<'_>, usize),
        operand: Operand,
        pairs: &mut PackedPairs,
        (c, width): (&mut [f32], usize),
    ) -> bool {
        let (Some(columns), true) = (cut.packed_columns, self.is_packed) else { return false };
        let packing = Packing { engine: columns.engine, isa: job.isa, parts, is_transposed: false, smallest: 0.0 };
        let fits = packing.pack(factors, &mut pairs.rows);
        if fits {
            let a = packing.packed(factors.count, factors.width, &mut pairs.rows);
            let b = if operand == Operand::Query { self.query_rows.parts() } else { self.d_output_rows.parts() };
            let (rows, chunks) = (factors.count.next_multiple_of(ROWS), factors.width.div_ceil(ROWS));
            job.isa.run(MatrixProduct { a, b, chunks, rows, width, c, start: Start::There });
        }
        fits
    }
}
