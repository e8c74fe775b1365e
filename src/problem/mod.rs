//! The request as a value: sizes and options of an attention, its data, and its results. No device and no arithmetic.

mod block_list;
mod builder;
mod check;
mod choice;
mod dropout;
mod gradients;
mod inputs;
mod owned_tables;
mod paged;
mod sizes;
mod table_layout;
mod tables;
mod tensor;
mod user_terms;
mod visibility;

pub use block_list::{BlockList, TileLists};
pub use choice::{Algorithm, Backend};
pub use dropout::Dropout;
pub(crate) use dropout::DropoutRule;
pub use gradients::{BackwardInputs, Gradients, WantGradients};
pub use inputs::{AttentionFn, Inputs, Outputs};
pub(crate) use owned_tables::OwnedTable;
pub use paged::{PageTable, Paged};
pub use sizes::{Alibi, Dims, Returns, ScoreOrder, ScoreStage, SummedRows, Varlen};
pub(crate) use table_layout::TableLayout;
pub use table_layout::TableVector;
pub use tables::Tables;
pub(crate) use tables::table_bytes;
pub use tensor::{Layout, Strides, TensorSpec, gather};
pub(crate) use user_terms::MOST_TABLES;
pub use user_terms::TableData;
pub(crate) use visibility::along_keys;
pub use visibility::{Alignment, BroadcastShape, Visibility};

use crate::custom::Term;
use crate::numbers::{DType, Hadamard};

/// Scaled dot-product attention with all of its options:
///
/// ```text
/// score(i,j)  = scale * dot(query_i, key_j)
/// capped      = softcap * tanh(score / softcap)                if there is a softcap
/// biased      = capped + bias(i,j) + alibi(i,j) + relative(i,j), then what the user's terms make of it
/// weight      = softmax of biased over the visible keys; a sink joins the denominator only
/// output_i    = sum_j weight(i,j) * value_j                    with dropout: weight becomes 0 or weight / (1 - probability)
/// lse_i       = ln(sum over visible keys of exp(biased))       with the sink, if there is one
/// ```
///
/// Where keys are stored rotated, query_i is H query_i here; where values are, output_i is H times this sum.
///
/// A row with no visible key has output 0, weights 0 and lse -inf (the sink, if there is one). A masked key is left out
/// by selection: NaN or infinity in it changes nothing.
///
/// The data is separate: see [`crate::Inputs`].
#[derive(Clone, Debug, PartialEq)]
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
    /// Terms that the user wrote; they apply after all others, in this order. At most 8 tables in all.
    pub user_terms: Vec<Term>,
    /// Sinks: one more logit per head, f32 `[num_heads]`, in the denominator only.
    pub sinks: bool,
    /// Dropout probability in training, at least 0 and below 1. In the output, a dropped weight is 0, the others are
    /// divided by 1 - probability; lse, scores, weights and key sums ignore it. See [`crate::Inputs::dropout`].
    pub dropout: Option<f32>,
    /// Permission to round each weight `exp(score - m)` to bf16 before it is multiplied by a bf16 value, as PyTorch does:
    /// output error up to 2^-8 * sum_j weight(i,j) |value_j|. The CPU path takes it where that is faster.
    pub allow_bf16_weights: bool,
    /// True if keys are stored rotated, as [`crate::Hadamard`] does: `key` holds H k. The query is rotated too, so that
    /// scores are those of q and k.
    pub key_hadamard: bool,
    /// True if values are stored rotated: `value` holds H v. The output is rotated back.
    pub value_hadamard: bool,
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
            visibility: Visibility::ALL,
            bias: None,
            alibi: None,
            relative_bias_max_distance: None,
            user_terms: Vec::new(),
            sinks: false,
            dropout: None,
            allow_bf16_weights: false,
            key_hadamard: false,
            value_hadamard: false,
            varlen: None,
            paged: None,
            query: PLAIN,
            key: PLAIN,
            value: PLAIN,
            output: PLAIN,
            want: Returns { lse: false, stats: false, scores: None, weights: false, key_sums: None },
        }
    }

    /// Factor on the dot products: `scale`, or 1/sqrt(head_dim).
    pub fn effective_scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| (1.0 / (self.dims.head_dim as f64).sqrt()) as f32)
    }

    /// Problem whose result is the softmax statistics over all keys, which gradients need.
    pub(crate) fn for_stats(&self) -> Self {
        Self { want: Returns { stats: true, ..Returns::default() }, dropout: None, ..self.clone() }
    }

    /// Rule of dropout; `None` if nothing drops.
    pub(crate) fn dropout_rule(&self) -> Option<DropoutRule> {
        self.dropout.filter(|&probability| probability > 0.0).map(DropoutRule::new)
    }

    /// Rotation of the query, for keys that are stored rotated.
    pub(crate) fn query_rotation(&self) -> Option<Hadamard> {
        if self.key_hadamard { Hadamard::of(self.dims.head_dim) } else { None }
    }

    /// Rotation of the output, for values that are stored rotated.
    pub(crate) fn output_rotation(&self) -> Option<Hadamard> {
        if self.value_hadamard { Hadamard::of(self.dims.head_dim_v) } else { None }
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

    /// Number of elements of the key sums.
    pub fn key_sums_len(&self) -> usize {
        let d = &self.dims;
        [d.batch, d.num_kv_heads, d.seq_len_kv].into_iter().fold(1, usize::saturating_mul)
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
    pub fn flops(&self) -> f64 {
        let rows = self.varlen.map_or(self.dims.batch * self.dims.seq_len_q, |varlen| varlen.tokens_q);
        Dims { batch: 1, seq_len_q: rows, ..self.dims }.flops()
    }
}
