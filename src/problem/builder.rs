//! Methods that add one option to a problem.

use super::{Alibi, Problem, ScoreOrder, ScoreStage, Varlen};
use crate::numbers::DType;
use crate::problem::{Alignment, BroadcastShape, Layout, Paged, TensorSpec};

impl Problem {
    /// Sets the position of row 0, which causality, windows, chunks, blocks, ALiBi and relative biases count from.
    #[must_use]
    pub const fn aligned(mut self, alignment: Alignment) -> Self {
        self.visibility.alignment = Some(alignment);
        self
    }

    /// Masks the keys after each row's position.
    #[must_use]
    pub const fn causal(mut self) -> Self {
        self.visibility.causal = true;
        self
    }

    /// Masks the keys outside `position - left ..= position + right`; a side that is `None` is open.
    #[must_use]
    pub const fn window(mut self, left: Option<u32>, right: Option<u32>) -> Self {
        self.visibility.window_left = left;
        self.visibility.window_right = right;
        self
    }

    /// Masks the keys outside the row's own chunk of `size` positions.
    #[must_use]
    pub const fn chunk(mut self, size: u32) -> Self {
        self.visibility.chunk = Some(size);
        self
    }

    /// Masks the keys after the row's own block of `size` positions.
    #[must_use]
    pub const fn block_causal(mut self, size: u32) -> Self {
        self.visibility.block_causal = Some(size);
        self
    }

    /// Masks the keys of other segments: see [`crate::Inputs::segment_ids_q`].
    #[must_use]
    pub const fn segments(mut self) -> Self {
        self.visibility.segments = true;
        self
    }

    /// Adds a boolean mask of this shape.
    #[must_use]
    pub const fn mask(mut self, shape: BroadcastShape) -> Self {
        self.visibility.mask = Some(shape);
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

    /// Caps the scores before the biases.
    #[must_use]
    pub const fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self.score_order = ScoreOrder::SoftcapThenBias;
        self
    }

    /// Caps the scores after the biases.
    #[must_use]
    pub const fn softcap_after_biases(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self.score_order = ScoreOrder::BiasThenSoftcap;
        self
    }

    /// Adds an additive bias of this shape.
    #[must_use]
    pub const fn bias(mut self, shape: BroadcastShape) -> Self {
        self.bias = Some(shape);
        self
    }

    /// Adds ALiBi.
    #[must_use]
    pub const fn alibi(mut self, alibi: Alibi) -> Self {
        self.alibi = Some(alibi);
        self
    }

    /// Adds a learned bias by distance.
    #[must_use]
    pub const fn relative_bias(mut self, max_distance: u32) -> Self {
        self.relative_bias_max_distance = Some(max_distance);
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
}
