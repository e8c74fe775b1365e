//! The uniform of every attention kernel: shaders/lib/params.wgsl, field by field.

use bytemuck::{Pod, Zeroable};

use super::key::broadcast_strides;
use crate::dropout::Drop;
use crate::plan::TableLayout;
use crate::problem::Operand;
use crate::{Alibi, Alignment, Problem, ScoreOrder};

/// Bits of `Params::flags`.
pub(crate) struct Flags;

impl Flags {
    pub(crate) const CAUSAL: u32 = 1;
    pub(crate) const WINDOW_LEFT: u32 = 2;
    pub(crate) const WINDOW_RIGHT: u32 = 4;
    pub(crate) const KV_LENGTHS: u32 = 8;
    pub(crate) const PREFIX: u32 = 16;
    pub(crate) const BOTTOM_RIGHT: u32 = 32;
    pub(crate) const PACKED: u32 = 64;
    pub(crate) const SINKS: u32 = 128;
    pub(crate) const BIAS: u32 = 256;
    pub(crate) const MASK: u32 = 512;
    pub(crate) const DOCUMENTS: u32 = 1024;
    pub(crate) const RELATIVE_BIAS: u32 = 2048;
    pub(crate) const ALIBI_SIGNED: u32 = 4096;
    pub(crate) const ALIBI_SYMMETRIC: u32 = 8192;
    pub(crate) const SOFTCAP_FIRST: u32 = 16384;
    pub(crate) const SOFTCAP_LAST: u32 = 32768;
    pub(crate) const PAGED: u32 = 65536;
    pub(crate) const DROPOUT: u32 = 131_072;
    /// (m, l) of the rows are written instead of their lse.
    pub(crate) const STATS: u32 = 262_144;
    /// Results are merged into the results of earlier steps.
    pub(crate) const ADDS: u32 = 524_288;
}

/// Runtime quantities of one dispatch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub(crate) struct Params {
    pub(crate) query_strides: [u32; 4],
    pub(crate) key_strides: [u32; 4],
    pub(crate) value_strides: [u32; 4],
    pub(crate) output_strides: [u32; 4],
    pub(crate) bias_strides: [u32; 4],
    pub(crate) mask_strides: [u32; 4],
    pub(crate) offsets: [u32; 4],
    pub(crate) tables: TableLayout,
    pub(crate) flags: u32,
    pub(crate) batch: u32,
    pub(crate) num_heads: u32,
    pub(crate) group: u32,
    pub(crate) pack: u32,
    pub(crate) seq_len_q: u32,
    pub(crate) seq_len_kv: u32,
    pub(crate) position_offset: i32,
    pub(crate) window_left: i32,
    pub(crate) window_right: i32,
    pub(crate) max_distance: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
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
    /// Padding: the size of a uniform is a multiple of 16 bytes.
    pub(crate) padding: [u32; 0],
}

impl Params {
    /// Returns the params that follow from the problem alone; the planner has checked that everything fits.
    pub(crate) fn new(problem: &Problem, tables: TableLayout) -> Self {
        let strides = |operand| {
            let strides = problem.spec(operand).strides(problem.shape(operand));
            let is_pool = problem.paged.is_some() && matches!(operand, Operand::Key | Operand::Value);
            let batch = if problem.packed.is_some() && !is_pool { 0 } else { strides.batch };
            [batch, strides.head, strides.seq, strides.dim].map(|step| step as u32)
        };
        let v = &problem.visibility;
        let drop = problem.drop();
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        // At most the largest distance between two positions: see `check_addressing`.
        let window = |width: Option<u32>| width.map_or(0, |width| width.min((1 << 30) - 1) as i32);
        Self {
            query_strides: strides(Operand::Query),
            key_strides: strides(Operand::Key),
            value_strides: strides(Operand::Value),
            output_strides: strides(Operand::Output),
            bias_strides: broadcast_strides(problem.bias),
            mask_strides: broadcast_strides(v.mask),
            offsets: Operand::ALL.map(|operand| problem.spec(operand).offset as u32),
            tables,
            flags: flag(v.causal, Flags::CAUSAL)
                | flag(v.window_left.is_some(), Flags::WINDOW_LEFT)
                | flag(v.window_right.is_some(), Flags::WINDOW_RIGHT)
                | flag(v.kv_lengths, Flags::KV_LENGTHS)
                | flag(v.prefix_lengths, Flags::PREFIX)
                | flag(v.alignment == Some(Alignment::BottomRight), Flags::BOTTOM_RIGHT)
                | flag(problem.packed.is_some(), Flags::PACKED)
                | flag(problem.paged.is_some(), Flags::PAGED)
                | flag(problem.sinks, Flags::SINKS)
                | flag(problem.want.stats, Flags::STATS)
                | flag(problem.bias.is_some(), Flags::BIAS)
                | flag(v.mask.is_some(), Flags::MASK)
                | flag(v.documents, Flags::DOCUMENTS)
                | flag(drop.is_some(), Flags::DROPOUT)
                | flag(problem.relative_bias.is_some(), Flags::RELATIVE_BIAS)
                | flag(problem.alibi == Some(Alibi::Signed), Flags::ALIBI_SIGNED)
                | flag(problem.alibi == Some(Alibi::Symmetric), Flags::ALIBI_SYMMETRIC)
                | flag(problem.softcap.is_some() && problem.score_order == ScoreOrder::SoftcapThenBias, Flags::SOFTCAP_FIRST)
                | flag(problem.softcap.is_some() && problem.score_order == ScoreOrder::BiasThenSoftcap, Flags::SOFTCAP_LAST),
            batch: problem.dims.batch as u32,
            num_heads: problem.dims.num_heads as u32,
            group: problem.dims.group() as u32,
            pack: 1,
            seq_len_q: problem.dims.seq_len_q as u32,
            seq_len_kv: problem.dims.seq_len_kv as u32,
            position_offset: if let Some(Alignment::Offset(offset)) = v.alignment { offset } else { 0 },
            window_left: window(v.window_left),
            window_right: window(v.window_right),
            max_distance: problem.relative_bias.map_or(0, |max| max as i32),
            scale: problem.effective_scale(),
            softcap: problem.softcap.unwrap_or(0.0),
            splits: 1,
            head_dim: problem.dims.head_dim as u32,
            head_dim_v: problem.dims.head_dim_v as u32,
            page_size: problem.paged.map_or(0, |paged| paged.page_size as u32),
            pages_per_item: problem.paged.map_or(0, |paged| paged.pages_per_item as u32),
            range_end: u32::MAX,
            dropout_threshold: drop.unwrap_or(Drop::NOTHING).threshold,
            dropout_factor: drop.unwrap_or(Drop::NOTHING).factor,
            ..Self::default()
        }
    }
}
