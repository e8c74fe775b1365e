//! The data of a problem, what comes of it, and whether data and problem fit.

use crate::problem::Operand;
use crate::{Broadcast, Dropout, Error, HostSlice, HostVec, Problem, Result};

/// The data of a problem in host memory. What the problem does not ask for stays empty. Slices in a named layout have exactly the elements
/// of their shape, unless they begin at an offset; strided ones may be longer.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// As [`Problem::query`] describes.
    pub query: HostSlice<'a>,
    /// As [`Problem::key`] describes.
    pub key: HostSlice<'a>,
    /// As [`Problem::value`] describes.
    pub value: HostSlice<'a>,
    /// As [`crate::Visibility::mask`] describes.
    pub mask: &'a [bool],
    /// As [`Problem::bias`] describes.
    pub bias: &'a [f32],
    /// Slopes `[num_heads]`.
    pub alibi_slopes: &'a [f32],
    /// [num_heads, 2 * max_distance + 1].
    pub relative_bias: &'a [f32],
    /// `[num_heads]`.
    pub sinks: &'a [f32],
    /// `[batch]`, each at most seq_len_kv.
    pub kv_lengths: &'a [u32],
    /// `[batch]`.
    pub prefix_lengths: &'a [u32],
    /// [batch, seq_len_q].
    pub documents_q: &'a [i32],
    /// [batch, seq_len_kv].
    pub documents_kv: &'a [i32],
    /// [batch + 1], not decreasing, from 0 to tokens_q.
    pub cu_seqlens_q: &'a [u32],
    /// [batch + 1], not decreasing, from 0 to tokens_kv; empty with paged keys.
    pub cu_seqlens_kv: &'a [u32],
    /// [batch, pages_per_item], as [`crate::Paged`] describes.
    pub page_table: &'a [u32],
    /// Which weights drop, if the problem has dropout.
    pub dropout: Dropout,
}

impl<'a> Inputs<'a> {
    /// Query, key and value; nothing else.
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
            documents_q: &[],
            documents_kv: &[],
            cu_seqlens_q: &[],
            cu_seqlens_kv: &[],
            page_table: &[],
            dropout: Dropout::default(),
        }
    }

    /// Finds every contradiction between the data and the problem. `problem` has passed [`Problem::check`].
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

    /// The same for all but query, key and value.
    pub(crate) fn check_options(&self, problem: &Problem) -> Result<()> {
        let d = &problem.dims;
        let v = &problem.visibility;
        let table = problem.relative_bias.map_or(0, |max| d.num_heads * (2 * max as usize + 1));
        let when = |wanted: bool, len: usize| if wanted { len } else { 0 };
        let packed = problem.packed.is_some();
        for (argument, len, expected) in [
            ("mask", self.mask.len(), v.mask.and_then(Broadcast::elements).unwrap_or(0)),
            ("bias", self.bias.len(), problem.bias.and_then(Broadcast::elements).unwrap_or(0)),
            ("alibi_slopes", self.alibi_slopes.len(), when(problem.alibi.is_some(), d.num_heads)),
            ("relative_bias", self.relative_bias.len(), table),
            ("sinks", self.sinks.len(), when(problem.sinks, d.num_heads)),
            ("kv_lengths", self.kv_lengths.len(), when(v.kv_lengths, d.batch)),
            ("prefix_lengths", self.prefix_lengths.len(), when(v.prefix_lengths, d.batch)),
            ("documents_q", self.documents_q.len(), when(v.documents, d.batch * d.seq_len_q)),
            ("documents_kv", self.documents_kv.len(), when(v.documents, d.batch * d.seq_len_kv)),
            ("cu_seqlens_q", self.cu_seqlens_q.len(), when(packed, d.batch + 1)),
            ("cu_seqlens_kv", self.cu_seqlens_kv.len(), when(packed && problem.paged.is_none(), d.batch + 1)),
            ("page_table", self.page_table.len(), problem.paged.map_or(0, |paged| d.batch * paged.pages_per_item)),
        ] {
            if len != expected {
                return Err(Error::invalid(argument, format!("has {len} elements, the problem needs {expected}")));
            }
        }
        if let Some((item, length)) = self.kv_lengths.iter().enumerate().find(|&(_, &length)| length as usize > d.seq_len_kv) {
            return Err(Error::invalid("kv_lengths", format!("item {item} has length {length}, but seq_len_kv is {}", d.seq_len_kv)));
        }
        if let Some(tokens) = problem.packed {
            check_cu_seqlens("cu_seqlens_q", self.cu_seqlens_q, tokens.tokens_q, d.seq_len_q)?;
            if problem.paged.is_none() {
                check_cu_seqlens("cu_seqlens_kv", self.cu_seqlens_kv, tokens.tokens_kv, d.seq_len_kv)?;
            }
        }
        problem.paged.map_or(Ok(()), |paged| paged.check_table(self))
    }
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

/// What an attention gives, in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Outputs {
    /// As [`Problem::output`] describes; places between strided elements are 0.
    pub output: HostVec,
    /// If asked for: natural logarithm, -inf for a row that sees nothing.
    pub lse: Option<Vec<f32>>,
    /// If asked for: softmax statistics, in the order of the lse, `[m, l]` a row. m is the largest `biased` of the visible keys, or the
    /// sink where that is larger; l is the sum of `exp(biased - m)` over them, and of `exp(sink - m)`.
    ///
    /// A row that sees nothing, without a sink, has m = f32::MIN and l = 0; one that sees NaN or infinity has l = NaN.
    /// `m + ln(l)` is the lse, which keeps less: where it is large, one f32 has no digits left for l.
    pub stats: Option<Vec<[f32; 2]>>,
    /// If asked for.
    pub scores: Option<Vec<f32>>,
    /// If asked for.
    pub weights: Option<Vec<f32>>,
}

impl Default for Outputs {
    /// Nothing yet, for [`crate::Engine::attention_into`].
    fn default() -> Self {
        Self { output: HostVec::F32(Vec::new()), lse: None, stats: None, scores: None, weights: None }
    }
}

/// Anything that computes attention: an engine, the oracle, a kernel under test.
pub type Attend<'a> = dyn Fn(&Problem, &Inputs<'_>) -> Result<Outputs> + 'a;
