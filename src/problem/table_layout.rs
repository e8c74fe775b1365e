//! Small vectors of a problem, concatenated in one buffer because a shader stage has only eight storage buffers.

use bytemuck::{Pod, Zeroable};

use crate::problem::Problem;

/// Number of vectors.
pub(super) const COUNT: usize = TableVector::Dropout as usize + 1;

/// Vector in the tables buffer, in the order of the buffer. Elements have four bytes; an absent vector takes no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TableVector {
    /// [`crate::Inputs::kv_lengths`], u32. A greater length than the problem's (written by a shader) is clamped to it.
    KvLengths,
    /// [`crate::Inputs::prefix_lengths`], u32. A greater length than the item's keys is clamped to them.
    PrefixLengths,
    /// [`crate::Inputs::segment_ids_q`], i32.
    SegmentIdsQ,
    /// [`crate::Inputs::segment_ids_kv`], i32.
    SegmentIdsKv,
    /// [`crate::Inputs::cu_seqlens_q`], u32. Trusted: kernels access the tokens that it names.
    CuSeqlensQ,
    /// [`crate::Inputs::cu_seqlens_kv`], u32. Trusted, too.
    CuSeqlensKv,
    /// [`crate::Inputs::alibi_slopes`], f32.
    AlibiSlopes,
    /// [`crate::Inputs::relative_bias`], f32.
    RelativeBias,
    /// [`crate::Inputs::sinks`], f32.
    Sinks,
    /// [`crate::Inputs::page_table`], u32. Trusted: kernels access the pages that it names.
    PageTable,
    /// [`crate::Inputs::block_list`], u32: the layout is that of [`crate::BlockList`].
    BlockList,
    /// [`crate::Inputs::term_tables`], u32.
    TermTables,
    /// [`crate::Inputs::dropout`]: low word and high word of the seed, then the offset, u32.
    Dropout,
}

impl TableVector {
    /// Every vector, in the order of the buffer.
    pub(crate) const ALL: [Self; COUNT] = [
        Self::KvLengths,
        Self::PrefixLengths,
        Self::SegmentIdsQ,
        Self::SegmentIdsKv,
        Self::CuSeqlensQ,
        Self::CuSeqlensKv,
        Self::AlibiSlopes,
        Self::RelativeBias,
        Self::Sinks,
        Self::PageTable,
        Self::BlockList,
        Self::TermTables,
        Self::Dropout,
    ];

    /// Name of the field of [`crate::Inputs`], and the type of the elements.
    pub(crate) const fn name_and_type(self) -> (&'static str, &'static str) {
        match self {
            Self::KvLengths => ("kv_lengths", "u32"),
            Self::PrefixLengths => ("prefix_lengths", "u32"),
            Self::SegmentIdsQ => ("segment_ids_q", "i32"),
            Self::SegmentIdsKv => ("segment_ids_kv", "i32"),
            Self::CuSeqlensQ => ("cu_seqlens_q", "u32"),
            Self::CuSeqlensKv => ("cu_seqlens_kv", "u32"),
            Self::AlibiSlopes => ("alibi_slopes", "f32"),
            Self::RelativeBias => ("relative_bias", "f32"),
            Self::Sinks => ("sinks", "f32"),
            Self::PageTable => ("page_table", "u32"),
            Self::BlockList => ("block_list", "u32"),
            Self::TermTables => ("term_tables", "u32"),
            Self::Dropout => ("dropout", "u32"),
        }
    }
}

/// Offset of each [`TableVector`] in the tables buffer, in words; 0 for those that the problem does not have.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct TableLayout {
    pub(crate) kv_lengths: u32,
    pub(crate) prefix_lengths: u32,
    pub(crate) segment_ids_q: u32,
    pub(crate) segment_ids_kv: u32,
    pub(crate) cu_seqlens_q: u32,
    pub(crate) cu_seqlens_kv: u32,
    pub(crate) alibi_slopes: u32,
    pub(crate) relative_bias: u32,
    pub(crate) sinks: u32,
    pub(crate) page_table: u32,
    pub(crate) block_list: u32,
    pub(crate) term_tables: u32,
    pub(crate) dropout: u32,
}

impl TableLayout {
    /// Shifts every offset by `words`, to make room before the tables.
    pub(crate) fn shifted(self, words: u32) -> Self {
        let places: [u32; COUNT] = bytemuck::cast(self);
        bytemuck::cast(places.map(|place| place + words))
    }

    /// Returns the layout for `problem` and its size in words; `None` on overflow.
    pub(crate) fn new(problem: &Problem) -> Option<(Self, u32)> {
        let mut places = [0; COUNT];
        let mut end = 0u32;
        for (place, words) in places.iter_mut().zip(words(problem)).filter(|&(_, words)| words > 0) {
            *place = end;
            end = end.checked_add(u32::try_from(words).ok()?)?;
        }
        Some((bytemuck::cast(places), end))
    }
}

impl Problem {
    /// True if the problem has any of these vectors.
    pub(crate) fn has_tables(&self) -> bool {
        words(self).iter().any(|&words| words > 0)
    }
}

/// Number of words of each [`TableVector`]; 0 for those that the problem does not have, `usize::MAX` on overflow.
pub(super) fn words(problem: &Problem) -> [usize; COUNT] {
    let (d, v) = (&problem.dims, &problem.visibility);
    let (varlen, paged) = (problem.varlen.is_some(), problem.paged);
    let when = |wanted: bool, words: usize| if wanted { words } else { 0 };
    [
        when(v.kv_lengths, d.batch),
        when(v.prefix_lengths, d.batch),
        when(v.segments, d.batch.saturating_mul(d.seq_len_q)),
        when(v.segments, d.batch.saturating_mul(d.seq_len_kv)),
        when(varlen, d.batch.saturating_add(1)),
        when(varlen && paged.is_none(), d.batch.saturating_add(1)),
        when(problem.alibi.is_some(), d.num_heads),
        d.num_heads.saturating_mul(problem.relative_bias_columns()),
        when(problem.sinks, d.num_heads),
        paged.map_or(0, |paged| d.batch.saturating_mul(paged.pages_per_item)),
        v.block_list.map_or(0, |list| list.words(d)),
        problem.term_table_words(),
        when(problem.dropout_rule().is_some(), 3),
    ]
}
