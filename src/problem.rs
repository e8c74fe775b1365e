//! The problem as a value: what is asked, with no data, no device and no arithmetic.

use crate::dropout::Drop;
use crate::{Alignment, Broadcast, DType, Error, Layout, Paged, Result, TensorSpec, Visibility};

/// The sizes of one attention.
///
/// query [batch, num_heads, seq_len_q, head_dim], key [batch, num_kv_heads, seq_len_kv, head_dim],
/// value [batch, num_kv_heads, seq_len_kv, head_dim_v], output [batch, num_heads, seq_len_q, head_dim_v].
/// Query head h reads key/value head `h / (num_heads / num_kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Independent items. May be 0, as the next two: then nothing is asked, and the answer is empty.
    pub batch: usize,
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Query rows of an item; of packed sequences the longest. May be 0.
    pub seq_len_q: usize,
    /// Keys of an item; of packed sequences the longest. May be 0: then nothing is visible.
    pub seq_len_kv: usize,
    /// Width of a query and of a key.
    pub head_dim: usize,
    /// Width of a value and of the output.
    pub head_dim_v: usize,
}

impl Dims {
    /// Self attention without grouped heads.
    pub const fn square(batch: usize, num_heads: usize, seq_len: usize, head_dim: usize) -> Self {
        Self { batch, num_heads, num_kv_heads: num_heads, seq_len_q: seq_len, seq_len_kv: seq_len, head_dim, head_dim_v: head_dim }
    }

    /// Query heads that share one key/value head; 0 where there is none.
    pub const fn group(&self) -> usize {
        match self.num_heads.checked_div(self.num_kv_heads) {
            Some(group) => group,
            None => 0,
        }
    }

    /// [batch, num_heads, seq_len_q, seq_len_kv]: the shape of scores and weights, and what masks and biases broadcast to.
    pub const fn scores_shape(&self) -> [usize; 4] {
        [self.batch, self.num_heads, self.seq_len_q, self.seq_len_kv]
    }

    /// Floating-point operations of the two matrix products: 4 (2 for a multiply-add, 2 products) x batch x num_heads x
    /// seq_len_q x seq_len_kv x head_dim, with the mean of the two widths where they differ. Masks are not counted off.
    pub fn flops(&self) -> f64 {
        let pairs = self.batch as f64 * self.num_heads as f64 * self.seq_len_q as f64 * self.seq_len_kv as f64;
        2.0 * pairs * (self.head_dim + self.head_dim_v) as f64
    }
}

/// Which of softcap and the biases (additive, ALiBi, relative) comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScoreOrder {
    /// `softcap * tanh(scale * q.k / softcap) + bias`: ONNX, Gemma, FlashAttention.
    #[default]
    SoftcapThenBias,
    /// `softcap * tanh((scale * q.k + bias) / softcap)`.
    BiasThenSoftcap,
}

/// ALiBi: a bias linear in the distance, with one slope a query head. Position p as in [`Alignment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alibi {
    /// `slope[h] * (j - p)`.
    Signed,
    /// `-slope[h] * |p - j|`: FlashAttention.
    Symmetric,
}

/// A stage at which the scores can be handed out, as f32 [batch, num_heads, seq_len_q, seq_len_kv].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScoreStage {
    /// `scale * q.k`.
    Raw,
    /// After softcap, where it comes before the biases; else as `Raw`.
    Capped,
    /// After softcap and biases, -inf where hidden: what softmax sees.
    Masked,
}

/// What is handed out besides the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Want {
    /// The natural logarithm of each row's softmax denominator: f32 [batch, num_heads, seq_len_q]; packed: [tokens, num_heads].
    pub lse: bool,
    /// What makes each row's weights of its scores, `exp(biased - m) / l`: see [`crate::Outputs::stats`]. A backward pass takes it.
    pub stats: bool,
    /// The scores, at one stage. Needs the staged path: memory grows with seq_len_q x seq_len_kv.
    pub scores: Option<ScoreStage>,
    /// The softmax weights, f32 [batch, num_heads, seq_len_q, seq_len_kv]. Needs the staged path.
    pub weights: bool,
}

/// Sequences of different lengths one after the other, [tokens, heads, dim], with no padding.
/// Item b's queries are tokens `cu_seqlens_q[b]..cu_seqlens_q[b + 1]`, its keys `cu_seqlens_kv[b]..cu_seqlens_kv[b + 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packed {
    /// Query tokens in all.
    pub tokens_q: usize,
    /// Key tokens in all; 0 with paged keys, which `cu_seqlens_kv` says nothing about.
    pub tokens_kv: usize,
}

/// Scaled dot-product attention, in full:
///
/// ```text
/// score(i,j)  = scale * dot(query_i, key_j)
/// capped      = softcap * tanh(score / softcap)                if there is a softcap
/// biased      = capped + bias(i,j) + alibi(i,j) + relative(i,j)
/// weight      = softmax of biased over the visible keys; a sink joins the denominator only
/// output_i    = sum_j weight(i,j) * value_j                    with dropout: of weight / (1 - probability), or of 0
/// lse_i       = ln(sum over visible keys of exp(biased))       with the sink, if there is one
/// ```
///
/// A row that sees nothing has output 0, weights 0 and lse -inf (the sink, if there is one). A hidden key is left out by
/// selection: NaN or infinity in it changes nothing.
///
/// Data is not part of it: see [`crate::Inputs`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    /// The sizes.
    pub dims: Dims,
    /// Factor on the dot products; `None` is 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// Bound on the scores, by tanh; > 0.
    pub softcap: Option<f32>,
    /// Whether softcap or the biases come first.
    pub score_order: ScoreOrder,
    /// Which keys a row sees.
    pub visibility: Visibility,
    /// An additive bias, f32; -inf hides.
    pub bias: Option<Broadcast>,
    /// A linear bias with slopes f32 `[num_heads]`.
    pub alibi: Option<Alibi>,
    /// A learned bias by distance: `table[h, clamp(p - j, -max, max) + max]`, f32 [num_heads, 2 * max + 1]; this is the max.
    pub relative_bias: Option<u32>,
    /// One more logit a head, f32 `[num_heads]`, in the denominator only.
    pub sinks: bool,
    /// In training, the probability with which a weight counts as 0 in the output; the others are divided by 1 - probability.
    /// From 0 on and below 1. lse, scores and weights are handed out as without it. [`crate::Inputs::dropout`] says which weights.
    pub dropout: Option<f32>,
    /// Packed sequences instead of a padded batch; with paged keys only the queries are.
    pub packed: Option<Packed>,
    /// Keys and values in the pages of a pool. Needs [`Visibility::kv_lengths`].
    pub paged: Option<Paged>,
    /// How the query is stored.
    pub query: TensorSpec,
    /// How the key is stored.
    pub key: TensorSpec,
    /// How the value is stored.
    pub value: TensorSpec,
    /// How the output is stored.
    pub output: TensorSpec,
    /// What is handed out besides the output.
    pub want: Want,
}

/// The four tensors of an attention.
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
    /// Plain attention: every key visible, default scale, everything f32 and contiguous [batch, heads, seq, dim].
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
                documents: false,
                mask: None,
            },
            bias: None,
            alibi: None,
            relative_bias: None,
            sinks: false,
            dropout: None,
            packed: None,
            paged: None,
            query: PLAIN,
            key: PLAIN,
            value: PLAIN,
            output: PLAIN,
            want: Want { lse: false, stats: false, scores: None, weights: false },
        }
    }

    /// Hides the keys after each row's position.
    #[must_use]
    pub const fn causal(mut self, alignment: Alignment) -> Self {
        self.visibility.causal = true;
        self.visibility.alignment = Some(alignment);
        self
    }

    /// Hides the keys outside `position - left ..= position + right`; `None` is open.
    #[must_use]
    pub const fn window(mut self, alignment: Alignment, left: Option<u32>, right: Option<u32>) -> Self {
        self.visibility.window_left = left;
        self.visibility.window_right = right;
        self.visibility.alignment = Some(alignment);
        self
    }

    /// The same storage type and layout for query, key, value and output.
    #[must_use]
    pub const fn stored(mut self, dtype: DType, layout: Layout) -> Self {
        let spec = TensorSpec::new(dtype, layout);
        self.query = spec;
        self.key = spec;
        self.value = spec;
        self.output = spec;
        self
    }

    /// Hands out the lse too.
    #[must_use]
    pub const fn with_lse(mut self) -> Self {
        self.want.lse = true;
        self
    }

    /// Hands out the softmax statistics too: what a backward pass takes.
    #[must_use]
    pub const fn with_stats(mut self) -> Self {
        self.want.stats = true;
        self
    }

    /// The factor on the dot products.
    pub fn effective_scale(&self) -> f32 {
        self.scale.unwrap_or_else(|| (1.0 / (self.dims.head_dim as f64).sqrt()) as f32)
    }

    /// What dropout does; `None` where nothing drops.
    pub(crate) fn drop(&self) -> Option<Drop> {
        self.dropout.filter(|&probability| probability > 0.0).map(Drop::new)
    }

    /// The shape [batch, heads, seq, dim] under which an operand's layout is read; packed sequences are one item of all tokens,
    /// paged keys one item a page.
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
        match self.packed {
            None => [d.batch, heads, seq, dim],
            Some(packed) => {
                let tokens = if of_keys { packed.tokens_kv } else { packed.tokens_q };
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

    /// Elements that the query's slice or buffer must have. Meaningful once [`Self::check`] passed, as are the next three.
    pub fn query_len(&self) -> usize {
        self.operand_len(Operand::Query)
    }

    /// Elements that the key's slice or buffer must have.
    pub fn key_len(&self) -> usize {
        self.operand_len(Operand::Key)
    }

    /// Elements that the value's slice or buffer must have.
    pub fn value_len(&self) -> usize {
        self.operand_len(Operand::Value)
    }

    /// Elements that the output's slice or buffer must have.
    pub fn output_len(&self) -> usize {
        self.operand_len(Operand::Output)
    }

    /// Numbers of the lse, and pairs of the softmax statistics: one a row and head.
    pub fn lse_len(&self) -> usize {
        let d = &self.dims;
        d.num_heads.saturating_mul(self.packed.map_or(d.batch.saturating_mul(d.seq_len_q), |packed| packed.tokens_q))
    }

    /// Numbers of scores and of weights.
    pub fn scores_len(&self) -> usize {
        self.dims.scores_shape().into_iter().fold(1, usize::saturating_mul)
    }

    /// Whether there is no row to compute.
    pub(crate) fn asks_nothing(&self) -> bool {
        self.lse_len() == 0
    }

    pub(crate) fn operand_len(&self, operand: Operand) -> usize {
        self.spec(operand).required_len(self.shape(operand)).unwrap_or(usize::MAX)
    }

    /// Numbers of the table of relative biases; 0 where there is none.
    pub(crate) fn relative_bias_len(&self) -> usize {
        self.relative_bias.map_or(0, |max| self.dims.num_heads * (2 * max as usize + 1))
    }

    /// Floating-point operations of the two matrix products, as [`Dims::flops`]; of varlen sequences at most so many, for only their tokens are known.
    pub(crate) fn flops(&self) -> f64 {
        let rows = self.packed.map_or(self.dims.batch * self.dims.seq_len_q, |packed| packed.tokens_q);
        Dims { batch: 1, seq_len_q: rows, ..self.dims }.flops()
    }

    /// Whether anything counts from a row's position.
    pub(crate) fn uses_position(&self) -> bool {
        let v = &self.visibility;
        v.causal || v.window_left.is_some() || v.window_right.is_some() || self.alibi.is_some() || self.relative_bias.is_some()
    }

    /// Finds every contradiction in the problem itself. All that computes calls it first.
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
        if let Some(softcap) = self.softcap
            && !(softcap.is_finite() && softcap > 0.0)
        {
            return Err(Error::invalid("softcap", format!("{softcap} is not a finite number above 0; use None for no softcap")));
        }
        if let Some(probability) = self.dropout
            && !(0.0..1.0).contains(&probability)
        {
            return Err(Error::invalid("dropout", format!("{probability} is not a probability from 0 on and below 1")));
        }
        let v = &self.visibility;
        if self.uses_position() && v.alignment.is_none() {
            return Err(Error::invalid(
                "alignment",
                "causal, window, ALiBi and relative bias count from the row's position: say TopLeft, BottomRight or Offset",
            ));
        }
        if v.prefix_lengths && !v.causal {
            return Err(Error::invalid("prefix_lengths", "a prefix lifts the causal bound, but the problem is not causal"));
        }
        for (argument, shape) in [("mask", v.mask), ("bias", self.bias)] {
            let Some(shape) = shape else { continue };
            let full = d.scores_shape();
            if shape.0.iter().zip(full).any(|(&extent, full)| extent != full && extent != 1) {
                return Err(Error::invalid(
                    argument,
                    format!("shape {:?} does not broadcast to {full:?}: each axis is full or 1", shape.0),
                ));
            }
            if shape.elements().is_none() {
                return Err(Error::invalid(argument, format!("shape {:?} overflows", shape.0)));
            }
        }
        for operand in Operand::ALL {
            let shape = self.shape(operand);
            if self.spec(operand).required_len(shape).and_then(|len| len.checked_mul(4)).is_none() {
                return Err(Error::invalid(operand.name(), format!("shape {shape:?} with its strides overflows")));
            }
            let spec = self.spec(operand);
            if spec.dtype.is_blocks() && matches!(operand, Operand::Query | Operand::Output) {
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
        if let Some(max) = self.relative_bias
            && (d.num_heads as u64).saturating_mul(2 * u64::from(max) + 1) > isize::MAX as u64 / 4
        {
            return Err(Error::invalid("relative_bias", format!("a table of distances up to {max} for {} heads overflows", d.num_heads)));
        }
        if let Some(paged) = self.paged {
            paged.check(self)?;
        }
        if let Some(packed) = self.packed {
            let is_paged = self.paged.is_some();
            if (v.kv_lengths && !is_paged) || v.documents {
                return Err(Error::invalid(
                    "packed",
                    "packed sequences have their lengths and borders in cu_seqlens; leave kv_lengths and documents out",
                ));
            }
            if packed.tokens_q < d.seq_len_q || (packed.tokens_kv < d.seq_len_kv && !is_paged) {
                return Err(Error::invalid(
                    "packed",
                    format!(
                        "the longest sequence ({} queries, {} keys) has more tokens than all together ({packed:?})",
                        d.seq_len_q, d.seq_len_kv
                    ),
                ));
            }
        }
        Ok(())
    }
}
