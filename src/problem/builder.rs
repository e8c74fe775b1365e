//! Methods that add one option to a problem. Those of terms are beside the term.

use super::{Problem, ScoreStage, SummedRows, Varlen};
use crate::custom::Term;
use crate::numbers::DType;
use crate::problem::{Alignment, Layout, Paged, TensorSpec};

impl Problem {
    /// Sets the position of row 0, from which every term that knows positions counts.
    #[must_use]
    pub const fn aligned(mut self, alignment: Alignment) -> Self {
        self.visibility.alignment = Some(alignment);
        self
    }

    /// Masks the padding of each item: see [`crate::Inputs::kv_lengths`].
    #[must_use]
    pub const fn kv_lengths(mut self) -> Self {
        self.visibility.kv_lengths = true;
        self
    }

    /// Leaves the first keys of each item visible in spite of causality: see [`crate::Inputs::prefix_lengths`].
    #[must_use]
    pub const fn prefix_lengths(mut self) -> Self {
        self.visibility.prefix_lengths = true;
        self
    }

    /// Sets the factor on the dot products.
    #[must_use]
    pub const fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Adds a sink to each head.
    #[must_use]
    pub const fn sinks(mut self) -> Self {
        self.sinks = true;
        self
    }

    /// Drops weights with this probability, at least 0 and below 1.
    #[must_use]
    pub const fn dropout(mut self, probability: f32) -> Self {
        self.dropout = Some(probability);
        self
    }

    /// Lets weights be rounded to bf16 before they are multiplied by bf16 values: see [`Problem::allow_bf16_weights`].
    #[must_use]
    pub const fn allow_bf16_weights(mut self) -> Self {
        self.allow_bf16_weights = true;
        self
    }

    /// Reads keys, values or both as they are stored rotated: see [`Problem::key_hadamard`].
    #[must_use]
    pub const fn hadamard(mut self, key: bool, value: bool) -> Self {
        (self.key_hadamard, self.value_hadamard) = (key, value);
        self
    }

    /// Replaces the padded batch by varlen sequences.
    #[must_use]
    pub const fn varlen(mut self, varlen: Varlen) -> Self {
        self.varlen = Some(varlen);
        self
    }

    /// Reads keys and values from pages of a pool; each item has its length.
    #[must_use]
    pub const fn paged(mut self, paged: Paged) -> Self {
        self.paged = Some(paged);
        self.visibility.kv_lengths = true;
        self
    }

    /// Sets one storage type and layout for query, key, value and output.
    #[must_use]
    pub const fn stored(mut self, dtype: DType, layout: Layout) -> Self {
        let spec = TensorSpec::new(dtype, layout);
        self.query = spec;
        self.key = spec;
        self.value = spec;
        self.output = spec;
        self
    }

    /// Adds a term that the user wrote.
    #[must_use]
    pub fn with_term(mut self, term: Term) -> Self {
        self.user_terms.push(term);
        self
    }

    /// Requests the lse.
    #[must_use]
    pub const fn with_lse(mut self) -> Self {
        self.want.lse = true;
        self
    }

    /// Requests the softmax statistics, which a backward pass takes.
    #[must_use]
    pub const fn with_stats(mut self) -> Self {
        self.want.stats = true;
        self
    }

    /// Requests the scores at one stage.
    #[must_use]
    pub const fn with_scores(mut self, stage: ScoreStage) -> Self {
        self.want.scores = Some(stage);
        self
    }

    /// Requests the softmax weights.
    #[must_use]
    pub const fn with_weights(mut self) -> Self {
        self.want.weights = true;
        self
    }

    /// Requests the sum of each key's weights over some rows.
    #[must_use]
    pub const fn with_key_sums(mut self, rows: SummedRows) -> Self {
        self.want.key_sums = Some(rows);
        self
    }
}
