//! Data of a problem, results of an attention, and the checks of data against the problem.

use super::table_layout::{COUNT, words};
use crate::error::{Error, Result};
use crate::numbers::{HostSlice, HostVec};
use crate::problem::{BroadcastShape, Dropout, Operand, Problem};

/// Data of a problem in host memory. Fields that the problem does not use stay empty. In a named layout without offset,
/// a slice has exactly the elements of its shape; quantised, strided and offset slices may be longer.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Query, as [`Problem::query`] describes.
    pub query: HostSlice<'a>,
    /// Key, as [`Problem::key`] describes.
    pub key: HostSlice<'a>,
    /// Value, as [`Problem::value`] describes.
    pub value: HostSlice<'a>,
    /// Boolean mask, as [`crate::Visibility::mask`] describes.
    pub mask: &'a [bool],
    /// Additive bias, as [`Problem::bias`] describes.
    pub bias: &'a [f32],
    /// ALiBi slopes, `[num_heads]`.
    pub alibi_slopes: &'a [f32],
    /// Table of relative biases, [num_heads, 2 * max_distance + 1].
    pub relative_bias: &'a [f32],
    /// Sinks, `[num_heads]`.
    pub sinks: &'a [f32],
    /// Number of valid keys of each item, `[batch]`, each at most seq_len_kv.
    pub kv_lengths: &'a [u32],
    /// Prefix length of each item, `[batch]`.
    pub prefix_lengths: &'a [u32],
    /// Segment ids of the query rows, [batch, seq_len_q].
    pub segment_ids_q: &'a [i32],
    /// Segment ids of the keys, [batch, seq_len_kv].
    pub segment_ids_kv: &'a [i32],
    /// Query token boundaries of varlen sequences, [batch + 1], not decreasing, from 0 to tokens_q.
    pub cu_seqlens_q: &'a [u32],
    /// Key token boundaries of varlen sequences, [batch + 1], likewise from 0 to tokens_kv; empty with paged keys.
    pub cu_seqlens_kv: &'a [u32],
    /// Page table, [batch, pages_per_item], as [`crate::Paged`] describes.
    pub page_table: &'a [u32],
    /// Bits of the visible tiles, as [`crate::BlockList`] describes; [`Problem::block_list_words`] makes them.
    pub block_list: &'a [u32],
    /// Tables of the user's terms, as [`Problem::term_tables`] joins them.
    pub term_tables: &'a [u32],
    /// Seed and offset of dropout, if the problem has it.
    pub dropout: Dropout,
}

impl<'a> Inputs<'a> {
    /// Creates inputs with query, key and value only.
    pub fn new(query: impl Into<HostSlice<'a>>, key: impl Into<HostSlice<'a>>, value: impl Into<HostSlice<'a>>) -> Self {
        Self {
            query: query.into(),
            key: key.into(),
            value: value.into(),
            mask: &[],
            bias: &[],
            alibi_slopes: &[],
            relative_bias: &[],
            sinks: &[],
            kv_lengths: &[],
            prefix_lengths: &[],
            segment_ids_q: &[],
            segment_ids_kv: &[],
            cu_seqlens_q: &[],
            cu_seqlens_kv: &[],
            page_table: &[],
            block_list: &[],
            term_tables: &[],
            dropout: Dropout::default(),
        }
    }

    /// Checks the data against `problem`, which has passed [`Problem::check`].
    pub fn check(&self, problem: &Problem) -> Result<()> {
        for (operand, slice) in [(Operand::Query, self.query), (Operand::Key, self.key), (Operand::Value, self.value)] {
            let spec = problem.spec(operand);
            if slice.dtype() != spec.dtype {
                return Err(Error::invalid(operand.name(), format!("the data is {}, the problem says {}", slice.dtype(), spec.dtype)));
            }
            spec.check_len(operand.name(), problem.shape(operand), slice.len())?;
        }
        self.check_options(problem)
    }

    /// [`Self::check`] without query, key and value.
    pub(crate) fn check_options(&self, problem: &Problem) -> Result<()> {
        let elements = |shape: Option<BroadcastShape>| shape.and_then(BroadcastShape::elements).unwrap_or(0);
        check_len("mask", self.mask.len(), elements(problem.visibility.mask))?;
        check_len("bias", self.bias.len(), elements(problem.bias))?;
        self.check_tables(problem)
    }

    /// Vectors of the tables buffer in its order, with their names; dropout is left out.
    pub(super) fn vectors(&self) -> [(&'static str, &'a [u8]); COUNT - 1] {
        [
            ("kv_lengths", bytemuck::cast_slice(self.kv_lengths)),
            ("prefix_lengths", bytemuck::cast_slice(self.prefix_lengths)),
            ("segment_ids_q", bytemuck::cast_slice(self.segment_ids_q)),
            ("segment_ids_kv", bytemuck::cast_slice(self.segment_ids_kv)),
            ("cu_seqlens_q", bytemuck::cast_slice(self.cu_seqlens_q)),
            ("cu_seqlens_kv", bytemuck::cast_slice(self.cu_seqlens_kv)),
            ("alibi_slopes", bytemuck::cast_slice(self.alibi_slopes)),
            ("relative_bias", bytemuck::cast_slice(self.relative_bias)),
            ("sinks", bytemuck::cast_slice(self.sinks)),
            ("page_table", bytemuck::cast_slice(self.page_table)),
            ("block_list", bytemuck::cast_slice(self.block_list)),
            ("term_tables", bytemuck::cast_slice(self.term_tables)),
        ]
    }

    /// Checks the vectors of the tables buffer.
    pub(crate) fn check_tables(&self, problem: &Problem) -> Result<()> {
        let d = &problem.dims;
        for ((argument, bytes), expected) in self.vectors().into_iter().zip(words(problem)) {
            check_len(argument, bytes.len() / 4, expected)?;
        }
        problem.check_sorted(self.term_tables)?;
        if let Some((item, length)) = self.kv_lengths.iter().enumerate().find(|&(_, &length)| length as usize > d.seq_len_kv) {
            return Err(Error::invalid("kv_lengths", format!("item {item} has length {length}, but seq_len_kv is {}", d.seq_len_kv)));
        }
        if let Some(tokens) = problem.varlen {
            check_cu_seqlens("cu_seqlens_q", self.cu_seqlens_q, tokens.tokens_q, d.seq_len_q)?;
            if problem.paged.is_none() {
                check_cu_seqlens("cu_seqlens_kv", self.cu_seqlens_kv, tokens.tokens_kv, d.seq_len_kv)?;
            }
        }
        problem.paged.map_or(Ok(()), |paged| paged.check_table(problem, self))
    }
}

fn check_len(argument: &'static str, len: usize, expected: usize) -> Result<()> {
    if len == expected {
        return Ok(());
    }
    Err(Error::invalid(argument, format!("has {len} elements, the problem needs {expected}")))
}

fn check_cu_seqlens(argument: &'static str, cu_seqlens: &[u32], tokens: usize, longest: usize) -> Result<()> {
    if cu_seqlens.first() != Some(&0) || cu_seqlens.last().map(|&end| end as usize) != Some(tokens) {
        return Err(Error::invalid(argument, format!("must go from 0 to the {tokens} tokens, is {cu_seqlens:?}")));
    }
    for pair in cu_seqlens.windows(2) {
        if pair[1] < pair[0] {
            return Err(Error::invalid(argument, format!("decreases from {} to {}", pair[0], pair[1])));
        }
        if (pair[1] - pair[0]) as usize > longest {
            return Err(Error::invalid(argument, format!("has a sequence of {}, longer than the problem's {longest}", pair[1] - pair[0])));
        }
    }
    Ok(())
}

/// Results of an attention, in host memory.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Outputs {
    /// Output, as [`Problem::output`] describes; gaps between strided elements are 0.
    pub output: HostVec,
    /// Natural logarithm of each row's softmax denominator, if wanted; -inf for a row with no visible key.
    pub lse: Option<Vec<f32>>,
    /// Softmax statistics `[m, l]` of each row, in the order of the lse, if wanted. m is the largest `biased` of the
    /// visible keys, or the sink if that is larger; l is the sum of `exp(biased - m)` over these keys, plus
    /// `exp(sink - m)`.
    /// A row with no visible key and no sink has m = f32::MIN and l = 0; a row that sees NaN or infinity has l = NaN.
    /// `m + ln(l)` is the lse but keeps less: where it is large, one f32 has no digits left for l.
    pub stats: Option<Vec<[f32; 2]>>,
    /// Scores at the wanted stage, [batch, num_heads, seq_len_q, seq_len_kv], if wanted.
    pub scores: Option<Vec<f32>>,
    /// Softmax weights, [batch, num_heads, seq_len_q, seq_len_kv], if wanted.
    pub weights: Option<Vec<f32>>,
    /// Sums of the weights of each key, [batch, num_kv_heads, seq_len_kv], if wanted: over the rows that
    /// [`crate::Returns::key_sums`] names and over the query heads that share the key. Weights are those before dropout; a
    /// sink's share belongs to no key. A row that does not see the key adds 0, a row that sees NaN makes the sums of all
    /// keys that it sees NaN. Keys past an item's length have 0.
    pub key_sums: Option<Vec<f32>>,
}

impl Default for Outputs {
    /// Empty outputs, for [`crate::Engine::attention_into`].
    fn default() -> Self {
        Self { output: HostVec::F32(Vec::new()), lse: None, stats: None, scores: None, weights: None, key_sums: None }
    }
}

/// Function that computes attention: an engine, the oracle, a kernel under test.
pub type AttentionFn<'a> = dyn Fn(&Problem, &Inputs<'_>) -> Result<Outputs> + 'a;
