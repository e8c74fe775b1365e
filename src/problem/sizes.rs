//! Sizes of a problem, and the values of its options.

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

/// Rows whose weights [`Returns::key_sums`] adds up, of each item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SummedRows {
    /// All rows, as heavy hitters are found (H2O).
    All,
    /// The last rows, so many of them or all that the item has, as an observation window (SnapKV).
    Last(usize),
}

impl SummedRows {
    /// Number of summed rows of an item with `rows` rows: its last ones.
    pub(crate) fn of(self, rows: usize) -> usize {
        match self {
            Self::All => rows,
            Self::Last(most) => most.min(rows),
        }
    }
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
    /// Sum of each key's softmax weights over these rows and over the query heads that share the key: f32
    /// [batch, num_kv_heads, seq_len_kv]. See [`crate::Outputs::key_sums`].
    pub key_sums: Option<SummedRows>,
}

impl Returns {
    /// True if a pass computes the softmax statistics: key sums are computed from them.
    pub(crate) const fn needs_stats(&self) -> bool {
        self.stats || self.key_sums.is_some()
    }
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
