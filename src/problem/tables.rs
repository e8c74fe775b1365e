//! Small vectors of a problem, concatenated in one buffer because a shader stage has only eight storage buffers.

use bytemuck::{Pod, Zeroable};

use crate::problem::{Inputs, Problem};

/// Offset of each vector in the tables buffer, in words of four bytes; 0 for vectors that the problem does not have.
///
/// Segment ids are i32; slopes, relative biases and sinks are f32; the others are u32. Shapes are those of [`Inputs`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TableLayout {
    /// `kv_lengths`.
    pub kv_lengths: u32,
    /// `prefix_lengths`.
    pub prefix_lengths: u32,
    /// `segment_ids_q`.
    pub segment_ids_q: u32,
    /// `segment_ids_kv`.
    pub segment_ids_kv: u32,
    /// `cu_seqlens_q`.
    pub cu_seqlens_q: u32,
    /// `cu_seqlens_kv`.
    pub cu_seqlens_kv: u32,
    /// `alibi_slopes`.
    pub alibi_slopes: u32,
    /// `relative_bias`.
    pub relative_bias: u32,
    /// `sinks`.
    pub sinks: u32,
    /// `page_table`.
    pub page_table: u32,
    /// `dropout`: low word and high word of the seed, then the offset.
    pub dropout: u32,
}

impl TableLayout {
    /// Shifts every offset by `words`, to make room before the tables.
    pub(crate) fn shifted(self, words: u32) -> Self {
        let places: [u32; size_of::<Self>() / 4] = bytemuck::cast(self);
        bytemuck::cast(places.map(|place| place + words))
    }

    /// Returns the layout for `problem` and its size in words; `None` on overflow.
    pub fn new(problem: &Problem) -> Option<(Self, u32)> {
        let d = &problem.dims;
        let v = &problem.visibility;
        let mut layout = Self::default();
        let mut end = 0u32;
        let mut place = |start: &mut u32, wanted: bool, words: Option<usize>| -> Option<()> {
            if wanted {
                *start = end;
                end = end.checked_add(u32::try_from(words?).ok()?)?;
            }
            Some(())
        };
        let (varlen, paged) = (problem.varlen.is_some(), problem.paged);
        place(&mut layout.kv_lengths, v.kv_lengths, Some(d.batch))?;
        place(&mut layout.prefix_lengths, v.prefix_lengths, Some(d.batch))?;
        place(&mut layout.segment_ids_q, v.segments, d.batch.checked_mul(d.seq_len_q))?;
        place(&mut layout.segment_ids_kv, v.segments, d.batch.checked_mul(d.seq_len_kv))?;
        place(&mut layout.cu_seqlens_q, varlen, d.batch.checked_add(1))?;
        place(&mut layout.cu_seqlens_kv, varlen && paged.is_none(), d.batch.checked_add(1))?;
        place(&mut layout.alibi_slopes, problem.alibi.is_some(), Some(d.num_heads))?;
        place(
            &mut layout.relative_bias,
            problem.relative_bias_max_distance.is_some(),
            d.num_heads.checked_mul(problem.relative_bias_columns()),
        )?;
        place(&mut layout.sinks, problem.sinks, Some(d.num_heads))?;
        place(&mut layout.page_table, paged.is_some(), d.batch.checked_mul(paged.map_or(0, |paged| paged.pages_per_item)))?;
        place(&mut layout.dropout, problem.dropout_rule().is_some(), Some(3))?;
        Some((layout, end))
    }
}

impl Problem {
    /// True if the problem has any of these vectors.
    pub(crate) fn has_tables(&self) -> bool {
        TableLayout::new(self).is_none_or(|(_, words)| words > 0)
    }
}

/// Returns the contents of the tables buffer for a problem and its inputs, in the order of [`TableLayout`].
pub fn table_bytes(problem: &Problem, inputs: &Inputs<'_>) -> Vec<u8> {
    let seed = inputs.dropout.seed;
    let dropout = [seed as u32, (seed >> 32) as u32, inputs.dropout.offset];
    let parts: [&[u8]; 11] = [
        bytemuck::cast_slice(inputs.kv_lengths),
        bytemuck::cast_slice(inputs.prefix_lengths),
        bytemuck::cast_slice(inputs.segment_ids_q),
        bytemuck::cast_slice(inputs.segment_ids_kv),
        bytemuck::cast_slice(inputs.cu_seqlens_q),
        bytemuck::cast_slice(inputs.cu_seqlens_kv),
        bytemuck::cast_slice(inputs.alibi_slopes),
        bytemuck::cast_slice(inputs.relative_bias),
        bytemuck::cast_slice(inputs.sinks),
        bytemuck::cast_slice(inputs.page_table),
        bytemuck::cast_slice(if problem.dropout_rule().is_some() { &dropout } else { &[] }),
    ];
    parts.concat()
}
