//! The problem as a value: sizes and options, without data, device or arithmetic.

mod builder;

use crate::dropout::DropoutRule;
use crate::{BroadcastShape, DType, Error, Layout, Paged, Result, TensorSpec, Visibility};

/// Sizes of one attention.
///
/// query [batch, num_heads, seq_len_q, head_dim], key [batch, num_kv_heads, seq_len_kv, head_dim],
/// value [batch, num_kv_heads, seq_len_kv, head_dim_v], output [batch, num_heads, seq_len_q, head_dim_v].
/// Query head h reads key/value head `h / (num_heads / num_kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Number of independent items. If it or the number of heads is 0, the answer is empty.
    pub batch: usize,
    /// Number of query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Number of key/value heads.
    pub num_kv_heads: usize,
    /// Query rows per item; for varlen sequences the longest. May be 0: then the answer is empty.
    pub seq_len_q: usize,
    /// Keys per item; for varlen sequences the longest. May be 0: then nothing is visible.
    pub seq_len_kv: usize,
    /// Width of a query and of a key.
    pub head_dim: usize,
    /// Width of a value and of the output.
    pub head_dim_v: usize,
}

impl Dims {
    /// Sizes of self-attention without grouped heads.
    pub const fn self_attention(batch: usize, num_heads: usize, seq_len: usize, head_dim: usize) -> Self {
        Self { batch, num_heads, num_kv_heads: num_heads, seq_len_q: seq_len, seq_len_kv: seq_len, head_dim, head_dim_v: head_dim }
    }

    /// Number of query heads that share one key/value head; 0 if there are no heads.
    pub const fn group(&self) -> usize {
        match self.num_heads.checked_div(self.num_kv_heads) {
            Some(group) => group,
            None => 0,
        }
    }

    /// Shape of scores and weights, to which masks and biases broadcast: [batch, num_heads, seq_len_q, seq_len_kv].
    pub const fn scores_shape(&self) -> [usize; 4] {
        [self.batch, self.num_heads, self.seq_len_q, self.seq_len_kv]
    }

    /// Floating-point operations of the two matrix products: 2 x batch x num_heads x seq_len_q x seq_len_kv x
    /// (head_dim + head_dim_v). A multiply-add counts as 2, and masked pairs count too.
    pub fn flops(&self) -> f64 {
        let pairs = self.batch as f64 * self.num_heads as f64 * self.seq_len_q as f64 * self.seq_len_kv as f64;
        2.0 * pairs * (self.head_dim + self.head_dim_v) as f64
    }
}

/// Order of softcap and the biases (additive, ALiBi, relative).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScoreOrder {
    /// `softcap * tanh(scale * q.k / softcap) + bias`, as in ONNX, Gemma and FlashAttention. The default.
    #[default]
    SoftcapThenBias,
    /// `softcap * tanh((scale * q.k + bias) / softcap)`.
    BiasThenSoftcap,
}

/// ALiBi: a bias linear in the distance, with one slope per query head. [`crate::Alignment`] defines the position p of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alibi {
    /// `slope[h] * (j - p)`.
    Signed,
    /// `-slope[h] * |p - j|`, as in FlashAttention.
    Symmetric,
}

/// Stage at which the scores are returned, as f32 [batch, num_heads, seq_len_q, seq_len_kv].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScoreStage {
    /// `scale * q.k`.
    Raw,
    /// After softcap if it comes before the biases, else as `Raw`.
    Capped,
    /// After softcap and biases, -inf for masked keys: the input of the softmax.
    Masked,
}

/// Results to return besides the output. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Returns {
    /// Natural log of each row's softmax denominator: f32 [batch, num_heads, seq_len_q], varlen [tokens, num_heads].
    pub lse: bool,
    /// Softmax statistics (m, l) of each row, for the backward pass: see [`crate::Outputs::stats`].
    pub stats: bool,
    /// Scores at one stage. Needs the staged algorithm: memory grows with seq_len_q x seq_len_kv.
    pub scores: Option<ScoreStage>,
    /// Softmax weights, f32 [batch, num_heads, seq_len_q, seq_len_kv]. Needs the staged algorithm.
    pub weights: bool,
}

/// Varlen sequences: different lengths one after the other, [tokens, heads, dim], without padding. Item b has the
/// queries `cu_seqlens_q[b]..cu_seqlens_q[b + 1]` and the keys `cu_seqlens_kv[b]..cu_seqlens_kv[b + 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Varlen {
    /// Total number of query tokens.
    pub tokens_q: usize,
    /// Total number of key tokens; 0 with paged keys, which have no `cu_seqlens_kv`.
    pub tokens_kv: usize,
}

/// Scaled dot-product attention with all of its options:
///
/// ```text
/// score(i,j)  = scale * dot(query_i, key_j)
/// capped      = softcap * tanh(score / softcap)                if there is a softcap
/// biased      = capped + bias(i,j) + alibi(i,j) + relative(i,j)
/// weight      = softmax of biased over the visible keys; a sink joins the denominator only
/// output_i    = sum_j weight(i,j) * value_j                    with dropout: weight becomes 0 or weight / (1 - probability)
/// lse_i       = ln(sum over visible keys of exp(biased))       with the sink, if there is one
/// ```
///
/// A row with no visible key has output 0, weights 0 and lse -inf (the sink, if there is one). A masked key is left out
/// by selection: NaN or infinity in it changes nothing.
///
/// The data is separate: see [`crate::Inputs`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// Sizes.
    pub dims: Dims,
    /// Factor on the dot products; `None` is 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// Bound on the scores by tanh, finite and > 0; `None` disables it.
    pub softcap: Option<f32>,
    /// Order of softcap and biases.
    pub score_order: ScoreOrder,
    /// Visibility: which keys each row may see.
    pub visibility: Visibility,
    /// Additive bias, f32, in a broadcasting shape; -inf masks a key.
    pub bias: Option<BroadcastShape>,
    /// ALiBi, a linear bias with slopes f32 `[num_heads]`.
    pub alibi: Option<Alibi>,
    /// Maximum distance of a learned bias `table[h, clamp(p - j, -max, max) + max]`, f32 [num_heads, 2 * max + 1].
    pub relative_bias_max_distance: Option<u32>,
    /// Sinks: one more logit per head, f32 `[num_heads]`, in the denominator only.
    pub sinks: bool,
    /// Dropout probability in training, at least 0 and below 1. In the output, a dropped weight is 0, the others are
    /// divided by 1 - probability; lse, scores and weights ignore it. See [`crate::Inputs::dropout`].
    pub dropout: Option<f32>,
    /// Varlen sequences instead of a padded batch; with paged keys only the queries are varlen.
    pub varlen: Option<Varlen>,
    /// Pages of a pool that hold keys and values. Needs [`Visibility::kv_lengths`].
    pub paged: Option<Paged>,
    /// Storage of the query.
    pub query: TensorSpec,
    /// Storage of the key.
    pub key: TensorSpec,
    /// Storage of the value.
    pub value: TensorSpec,
    /// Storage of the output.
    pub output: TensorSpec,
    /// Results to return besides the output.
    pub want: Returns,
}

/// Tensor of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operand {
    Query,
    Key,
    Value,
    Output,
}

impl Operand {
    pub(crate) const ALL: [Self; 4] = [Self::Query, Self::Key, Self::Value, Self::Output];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Output => "output",
        }
    }
}

impl Problem {
    /// Creates plain attention: every key visible, default scale, all f32 and contiguous [batch, heads, seq, dim].
    pub const fn new(dims: Dims) -> Self {
        const PLAIN: TensorSpec = TensorSpec::new(DType::F32, Layout::Bhsd);
        Self {
            dims,
            scale: None,
            softcap: None,
            score_order: ScoreOrder::SoftcapThenBias,
            visibility: Visibility {
                alignment: None,
                causal: false,
                window_left: None,
                window_right: None,
                kv_lengths: false,
                prefix_lengths: false,
                segments: false,
                mask: None,
                chunk: None,
                block_causal: None,
            },
            bias: None,
            alibi: None,
            relative_bias_max_distance: None,
            sinks: false,
            dropout: None,
            varlen: None,
            paged: None,
            query: PLAIN,
            key: PLAIN,
            value: PLAIN,
            output: PLAIN,
            want: Returns { lse: false, stats: false, scores: None, weights: false },
        }
    }

    /// Factor on the dot products: `scale`, or 1/sqrt(head_dim).
    pub fn effective_scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| (1.0 / (self.dims.head_dim as f64).sqrt()) as f32)
    }

    /// Rule of dropout; `None` if nothing drops.
    pub(crate) fn dropout_rule(&self) -> Option<DropoutRule> {
        self.dropout.filter(|&probability| probability > 0.0).map(DropoutRule::new)
    }

    /// Shape [batch, heads, seq, dim] of an operand's layout. Varlen sequences are one item of all tokens; with paged
    /// keys every page is an item.
    pub(crate) fn shape(&self, operand: Operand) -> [usize; 4] {
        let d = &self.dims;
        let (heads, seq, dim) = match operand {
            Operand::Query => (d.num_heads, d.seq_len_q, d.head_dim),
            Operand::Key => (d.num_kv_heads, d.seq_len_kv, d.head_dim),
            Operand::Value => (d.num_kv_heads, d.seq_len_kv, d.head_dim_v),
            Operand::Output => (d.num_heads, d.seq_len_q, d.head_dim_v),
        };
        let of_keys = matches!(operand, Operand::Key | Operand::Value);
        if let Some(paged) = self.paged.filter(|_| of_keys) {
            return [paged.pages, heads, paged.page_size, dim];
        }
        match self.varlen {
            None => [d.batch, heads, seq, dim],
            Some(varlen) => {
                let tokens = if of_keys { varlen.tokens_kv } else { varlen.tokens_q };
                [1, heads, tokens, dim]
            }
        }
    }

    pub(crate) fn spec(&self, operand: Operand) -> &TensorSpec {
        match operand {
            Operand::Query => &self.query,
            Operand::Key => &self.key,
            Operand::Value => &self.value,
            Operand::Output => &self.output,
        }
    }

    /// Number of elements that the query's slice or buffer must have, once [`Self::check`] has passed.
    pub fn query_len(&self) -> usize {
        self.operand_len(Operand::Query)
    }

    /// Number of elements that the key's slice or buffer must have, once [`Self::check`] has passed.
    pub fn key_len(&self) -> usize {
        self.operand_len(Operand::Key)
    }

    /// Number of elements that the value's slice or buffer must have, once [`Self::check`] has passed.
    pub fn value_len(&self) -> usize {
        self.operand_len(Operand::Value)
    }

    /// Number of elements that the output's slice or buffer must have, once [`Self::check`] has passed.
    pub fn output_len(&self) -> usize {
        self.operand_len(Operand::Output)
    }

    /// Number of lse elements, and of pairs of softmax statistics: one per query row and head.
    pub fn lse_len(&self) -> usize {
        let d = &self.dims;
        d.num_heads.saturating_mul(self.varlen.map_or(d.batch.saturating_mul(d.seq_len_q), |varlen| varlen.tokens_q))
    }

    /// Number of elements of the scores and of the weights.
    pub fn scores_len(&self) -> usize {
        self.dims.scores_shape().into_iter().fold(1, usize::saturating_mul)
    }

    /// True if there is no row to compute.
    pub(crate) fn asks_nothing(&self) -> bool {
        self.lse_len() == 0
    }

    pub(crate) fn operand_len(&self, operand: Operand) -> usize {
        self.spec(operand).required_len(self.shape(operand)).unwrap_or(usize::MAX)
    }

    /// Number of distances in the relative bias table; 0 if there is none.
    pub(crate) fn relative_bias_columns(&self) -> usize {
        self.relative_bias_max_distance.map_or(0, |max| 2 * max as usize + 1)
    }

    /// Number of elements of the relative bias table; 0 if there is none.
    pub(crate) fn relative_bias_len(&self) -> usize {
        self.dims.num_heads * self.relative_bias_columns()
    }

    /// [`Dims::flops`], for varlen sequences an upper bound, because only the total of their tokens is known.
    pub(crate) fn flops(&self) -> f64 {
        let rows = self.varlen.map_or(self.dims.batch * self.dims.seq_len_q, |varlen| varlen.tokens_q);
        Dims { batch: 1, seq_len_q: rows, ..self.dims }.flops()
    }

    /// Checks the problem for contradictions. Every computation calls it first.
    pub fn check(&self) -> Result<()> {
        let d = &self.dims;
        for (argument, value) in [("head_dim", d.head_dim), ("head_dim_v", d.head_dim_v)] {
            if value == 0 {
                return Err(Error::invalid(argument, "is 0; it must be at least 1"));
            }
        }
        if !d.num_heads.is_multiple_of(d.num_kv_heads) {
            return Err(Error::invalid(
                "num_kv_heads",
                format!("num_heads = {} is not a multiple of num_kv_heads = {}", d.num_heads, d.num_kv_heads),
            ));
        }
        if let Some(scale) = self.scale
            && !scale.is_finite()
        {
            return Err(Error::invalid("scale", format!("{scale} is not finite")));
        }
        if let Some(probability) = self.dropout
            && !(0.0..1.0).contains(&probability)
        {
            return Err(Error::invalid("dropout", format!("{probability} is not a probability from 0 on and below 1")));
        }
        let v = &self.visibility;
        self.check_terms()?;
        if v.prefix_lengths && !v.causal {
            return Err(Error::invalid("prefix_lengths", "a prefix lifts the causal bound, but the problem is not causal"));
        }
        for operand in Operand::ALL {
            let shape = self.shape(operand);
            if self.spec(operand).required_len(shape).and_then(|len| len.checked_mul(4)).is_none() {
                return Err(Error::invalid(operand.name(), format!("shape {shape:?} with its strides overflows")));
            }
            let spec = self.spec(operand);
            if spec.dtype.is_quantised() && matches!(operand, Operand::Query | Operand::Output) {
                return Err(Error::invalid(operand.name(), format!("is {}, which only keys and values can be", spec.dtype)));
            }
            spec.check_blocks(operand.name(), shape)?;
        }
        self.output.check_no_overlap("output", self.shape(Operand::Output))?;
        if [d.batch, d.num_heads, d.seq_len_q, d.seq_len_kv].iter().try_fold(4usize, |p, &n| p.checked_mul(n)).is_none()
            || d.seq_len_q > i32::MAX as usize
            || d.seq_len_kv > i32::MAX as usize
        {
            return Err(Error::invalid(
                "seq_len_kv",
                format!("{:?} is more than can be counted: lengths go up to {}", d.scores_shape(), i32::MAX),
            ));
        }
        if let Some(paged) = self.paged {
            paged.check(self)?;
        }
        if let Some(varlen) = self.varlen {
            let is_paged = self.paged.is_some();
            if (v.kv_lengths && !is_paged) || v.segments {
                return Err(Error::invalid(
                    "varlen",
                    "varlen sequences have their lengths and borders in cu_seqlens; leave kv_lengths and segments out",
                ));
            }
            if varlen.tokens_q < d.seq_len_q || (varlen.tokens_kv < d.seq_len_kv && !is_paged) {
                return Err(Error::invalid(
                    "varlen",
                    format!(
                        "the longest sequence ({} queries, {} keys) has more tokens than all together ({varlen:?})",
                        d.seq_len_q, d.seq_len_kv
                    ),
                ));
            }
        }
        Ok(())
    }
}
