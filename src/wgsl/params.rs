//! The uniform of every attention kernel: shaders/lib/params.wgsl, field by field.

use bytemuck::{Pod, Zeroable};

use crate::problem::{Alignment, DropoutRule, MOST_TABLES, Operand, Problem, TableLayout};
use crate::terms::{TERMS, TermSet};

/// Bits of `Params::flags`.
pub(crate) struct Flags;

impl Flags {
    pub(crate) const KV_LENGTHS: u32 = 1;
    pub(crate) const PREFIX: u32 = 2;
    pub(crate) const BOTTOM_RIGHT: u32 = 4;
    pub(crate) const VARLEN: u32 = 8;
    pub(crate) const SINKS: u32 = 16;
    pub(crate) const PAGED: u32 = 32;
    pub(crate) const DROPOUT: u32 = 64;
    /// (m, l) of the rows are written instead of their lse.
    pub(crate) const STATS: u32 = 128;
    /// Results are merged into the results of earlier steps.
    pub(crate) const ADDS: u32 = 256;
}

/// Runtime quantities of one dispatch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) query_strides: [u32; 4],
    pub(crate) key_strides: [u32; 4],
    pub(crate) value_strides: [u32; 4],
    pub(crate) output_strides: [u32; 4],
    pub(crate) offsets: [u32; 4],
    /// Runtime values of each term.
    pub(crate) term_values: [[u32; 4]; TERMS.len()],
    pub(crate) sums_strides: [u32; 4],
    /// Start in the tables of the user's terms and number of elements, of two tables each.
    pub(crate) user_tables: [[u32; 4]; MOST_TABLES / 2],
    pub(crate) tables: TableLayout,
    pub(crate) flags: u32,
    /// Terms of the problem, a bit each.
    pub(crate) terms: u32,
    pub(crate) batch: u32,
    pub(crate) num_heads: u32,
    pub(crate) group: u32,
    pub(crate) pack: u32,
    pub(crate) seq_len_q: u32,
    pub(crate) seq_len_kv: u32,
    pub(crate) position_offset: i32,
    pub(crate) scale: f32,
    pub(crate) grid_width: u32,
    pub(crate) first_workgroup: u32,
    pub(crate) end_workgroup: u32,
    pub(crate) splits: u32,
    pub(crate) output_split_stride: u32,
    pub(crate) lse_split_stride: u32,
    pub(crate) first_pair: u32,
    pub(crate) first_row: u32,
    pub(crate) row_count: u32,
    pub(crate) head_dim: u32,
    pub(crate) head_dim_v: u32,
    pub(crate) zero: u32,
    pub(crate) score_stage: u32,
    pub(crate) page_size: u32,
    pub(crate) pages_per_item: u32,
    pub(crate) range_start: u32,
    pub(crate) range_end: u32,
    pub(crate) dropout_threshold: u32,
    pub(crate) dropout_factor: f32,
    pub(crate) first_table: u32,
    pub(crate) table_words: u32,
    pub(crate) item_blocks: u32,
    pub(crate) stats_to: u32,
    pub(crate) stats_from: u32,
    pub(crate) list_start: u32,
    pub(crate) list_share: u32,
    pub(crate) list_item_words: u32,
    pub(crate) sums_start: u32,
    pub(crate) summed_rows: u32,
}

impl Params {
    /// Returns the params that follow from the problem alone; the planner has checked that everything fits.
    pub(crate) fn new(problem: &Problem, tables: TableLayout) -> Self {
        let strides = |operand| {
            let strides = problem.spec(operand).strides(problem.shape(operand));
            let is_pool = problem.paged.is_some() && matches!(operand, Operand::Key | Operand::Value);
            let batch = if problem.varlen.is_some() && !is_pool { 0 } else { strides.batch };
            [batch, strides.head, strides.seq, strides.dim].map(|step| step as u32)
        };
        let v = &problem.visibility;
        let drop = problem.dropout_rule();
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        Self {
            query_strides: strides(Operand::Query),
            key_strides: strides(Operand::Key),
            value_strides: strides(Operand::Value),
            output_strides: strides(Operand::Output),
            offsets: Operand::ALL.map(|operand| problem.spec(operand).offset as u32),
            flags: flag(v.kv_lengths, Flags::KV_LENGTHS)
                | flag(v.prefix_lengths, Flags::PREFIX)
                | flag(v.alignment == Some(Alignment::BottomRight), Flags::BOTTOM_RIGHT)
                | flag(problem.varlen.is_some(), Flags::VARLEN)
                | flag(problem.paged.is_some(), Flags::PAGED)
                | flag(problem.sinks, Flags::SINKS)
                | flag(problem.want.needs_stats(), Flags::STATS)
                | flag(drop.is_some(), Flags::DROPOUT),
            user_tables: user_tables(problem),
            terms: TermSet::of(problem).0,
            batch: problem.dims.batch as u32,
            num_heads: problem.dims.num_heads as u32,
            group: problem.dims.group() as u32,
            pack: 1,
            seq_len_q: problem.dims.seq_len_q as u32,
            seq_len_kv: problem.dims.seq_len_kv as u32,
            position_offset: if let Some(Alignment::Offset(offset)) = v.alignment { offset } else { 0 },
            scale: problem.effective_scale(),
            splits: 1,
            head_dim: problem.dims.head_dim as u32,
            head_dim_v: problem.dims.head_dim_v as u32,
            page_size: problem.paged.map_or(0, |paged| paged.page_size as u32),
            pages_per_item: problem.paged.map_or(0, |paged| paged.pages_per_item as u32),
            range_end: u32::MAX,
            dropout_threshold: drop.unwrap_or(DropoutRule::NOTHING).threshold,
            dropout_factor: drop.unwrap_or(DropoutRule::NOTHING).factor,
            ..Self::default()
        }
        .with_tables(problem, tables)
    }

    /// Returns the params with the vectors of `problem` at other places.
    pub(crate) fn with_tables(self, problem: &Problem, tables: TableLayout) -> Self {
        Self { tables, term_values: TERMS.each_ref().map(|term| (term.values)(problem, &tables)), ..self }
    }
}

/// Start and length of each table of the user's terms.
fn user_tables(problem: &Problem) -> [[u32; 4]; MOST_TABLES / 2] {
    let mut all = [[0; 4]; MOST_TABLES / 2];
    for (at, range) in problem.user_table_ranges().enumerate() {
        all[at / 2][at % 2 * 2..][..2].copy_from_slice(&[range.start as u32, range.len() as u32]);
    }
    all
}
