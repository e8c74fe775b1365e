//! Plan of the gradients of the tables that users' terms read.
//!
//! Each pair is visited once for each table. Its gradients are summed along the lines on which the table's index does not
//! change, and each element then gathers the lines that read it: nothing of size seq_len_q x seq_len_kv is stored. A
//! table whose elements have pairs of their own is summed like a bias.

use super::backward::{Elements, Planner, SQUARE, TERMS};
use super::fused::item_blocks;
use super::limits::grid;
use super::step::BufferRef;
use crate::custom::Owner;
use crate::error::{Error, Result};
use crate::problem::{Operand, OwnedTable};
use crate::wgsl::{Kernel, Lines, Params};

impl Planner<'_> {
    /// Adds the gradients of all tables that have an owner.
    pub(super) fn term_tables(&mut self) -> Result<()> {
        let problem = self.problem;
        problem.owned_tables().try_for_each(|table| match table.gradient.owner {
            Owner::Scalar | Owner::Head | Owner::Row => self.lines(Lines::Rows, &table),
            Owner::Key => self.lines(Lines::Keys, &table),
            Owner::Distance => self.lines(Lines::Diagonals, &table),
            Owner::Pair => self.pair_table(&table),
        })
    }

    /// Adds the gradient of a table by way of sums along lines.
    fn lines(&mut self, lines: Lines, table: &OwnedTable<'_>) -> Result<()> {
        let d = &self.problem.dims;
        let [rows, keys] = [d.seq_len_q, d.seq_len_kv].map(|len| len.div_ceil(SQUARE));
        let items = if self.problem.varlen.is_some() { 1 } else { d.batch };
        let blocks_of = |operand| item_blocks(self.problem, operand, 1, SQUARE);
        let (squares, item_blocks, blocks) = match lines {
            Lines::Rows => (keys, blocks_of(Operand::Query), items * d.num_heads * blocks_of(Operand::Query)),
            Lines::Keys => (rows, blocks_of(Operand::Key), items * d.num_heads * blocks_of(Operand::Key)),
            Lines::Diagonals => (rows.min(keys), 0, d.batch * d.num_heads * (rows + keys).saturating_sub(1)),
        };
        let splits = squares.div_ceil(TERMS).max(1);
        let stride = lines.of_block() + 1;
        let (workgroups, item_blocks, splits) = (blocks * splits, grid(item_blocks)?, splits as u32);
        let parts = self.scratch("sums along lines", 2 * workgroups * stride)?;
        let params = Params { item_blocks, splits, ..self.params };
        self.push(Kernel::TableLines(lines, table.table as u32), params, workgroups, d.flops(), [None, Some(parts)])?;
        let params =
            Params { splits: grid(workgroups)?, output_split_stride: stride as u32, sums_start: grid(table.range.start)?, ..self.params };
        let flops = table.range.len() as f64 * workgroups as f64;
        self.push(Kernel::TableGradient, params, table.range.len(), flops, [Some(parts), Some(BufferRef::DTermTables)])
    }

    /// Adds the gradient of a table whose elements have pairs of their own. Other elements have 0.
    fn pair_table(&mut self, table: &OwnedTable<'_>) -> Result<()> {
        let d = &self.problem.dims;
        let strides = self.problem.strides_of(table).ok_or_else(|| Error::invalid("term_tables", "has no strides"))?;
        let extents = [d.batch, d.num_heads, d.seq_len_q, d.seq_len_kv];
        let own: usize = strides.axes.iter().zip(extents).filter(|&(&stride, _)| stride != 0).map(|(_, extent)| extent).product();
        let elements = Elements { first: strides.start as u32, len: table.range.len(), has_gaps: own < table.range.len() };
        let kernel = Kernel::PairTableGradient(table.table as u32);
        self.pairs(kernel, strides.axes.map(|stride| stride as u32), elements, (BufferRef::DTermTables, table.range.start))
    }
}
