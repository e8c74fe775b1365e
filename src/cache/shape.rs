//! Layers, pages and storage of a cache.

use super::retention::Retention;
use crate::error::{Error, Result};
use crate::numbers::{DType, Hadamard};
use crate::problem::{Dims, Layout, Paged, Problem, TensorSpec};

/// Most layers that a cache may have.
const MOST_LAYERS: usize = 1 << 14;

/// Keys and values of one layer: heads, widths, storage types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerShape {
    /// Number of key/value heads.
    pub num_kv_heads: usize,
    /// Width of a key.
    pub head_dim: usize,
    /// Width of a value.
    pub head_dim_v: usize,
    /// Storage type of keys.
    pub key: DType,
    /// Storage type of values.
    pub value: DType,
    /// True if keys are stored rotated; see [`Self::hadamard`].
    pub key_hadamard: bool,
    /// True if values are stored rotated.
    pub value_hadamard: bool,
}

impl LayerShape {
    /// Creates a layer of f32 keys and values of equal width.
    pub const fn new(num_kv_heads: usize, head_dim: usize) -> Self {
        let (key, value) = (DType::F32, DType::F32);
        Self { num_kv_heads, head_dim, head_dim_v: head_dim, key, value, key_hadamard: false, value_hadamard: false }
    }

    /// Sets the width of a value.
    pub const fn head_dim_v(mut self, head_dim_v: usize) -> Self {
        self.head_dim_v = head_dim_v;
        self
    }

    /// Sets the storage types of keys and of values.
    pub const fn stored(mut self, key: DType, value: DType) -> Self {
        (self.key, self.value) = (key, value);
        self
    }

    /// Stores keys, values or both rotated ([`Hadamard`]), which spreads elements of large magnitude over a block: the error
    /// of q8 and q4 falls several times where a model has channels that are much larger than others. The rows that are
    /// appended, the query and the output stay as they are; the width must be a multiple of 32.
    pub const fn hadamard(mut self, key: bool, value: bool) -> Self {
        (self.key_hadamard, self.value_hadamard) = (key, value);
        self
    }

    /// Bytes of the keys and values of one token.
    pub const fn token_bytes(&self) -> usize {
        self.num_kv_heads.saturating_mul(self.key.bytes(self.head_dim).saturating_add(self.value.bytes(self.head_dim_v)))
    }

    /// Width and storage type of keys and of values.
    pub(crate) fn sides(&self) -> [(usize, DType); 2] {
        [(self.head_dim, self.key), (self.head_dim_v, self.value)]
    }

    /// Rotations of new keys and of new values.
    pub(crate) fn rotations(&self) -> [Option<Hadamard>; 2] {
        [(self.head_dim, self.key_hadamard), (self.head_dim_v, self.value_hadamard)]
            .map(|(width, rotates)| Hadamard::of(width).filter(|_| rotates))
    }
}

/// Sequences that a cache on a device can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Number of sequences at a time.
    pub slots: usize,
    /// Number of pages that a sequence can have; times [`CacheShape::page_size`] it is the longest sequence.
    pub pages_per_slot: usize,
}

impl CacheSize {
    /// Words of the state for each slot before the page table: shaders/cache/params.wgsl.
    const WORDS: usize = 4;

    /// Number of tokens of the longest possible sequence.
    pub(crate) const fn capacity(&self, page_size: usize) -> usize {
        self.pages_per_slot.saturating_mul(page_size)
    }

    /// First word of a slot's page table in the state.
    pub(crate) const fn page_table(&self, slot: usize) -> usize {
        Self::WORDS * self.slots + slot * self.pages_per_slot
    }

    /// Number of words of the state.
    pub(crate) const fn state_words(&self) -> u64 {
        (self.pages_per_slot as u64).saturating_add(Self::WORDS as u64).saturating_mul(self.slots as u64)
    }
}

/// Queries of an attention over a cache: [batch, num_heads, seq_len, head_dim].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queries {
    /// Number of query heads, a multiple of the layer's num_kv_heads.
    pub num_heads: usize,
    /// Number of query rows of each sequence.
    pub seq_len: usize,
}

/// Layers of a cache, and its pages, which all layers share: a page has its token slots in every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheShape {
    /// Layers, in the order of their index.
    pub layers: Vec<LayerShape>,
    /// Number of token slots per page.
    pub page_size: usize,
    /// Number of pages.
    pub pages: usize,
    /// Layout of a page: [`Layout::Bhsd`] is [num_kv_heads, page_size, dim], [`Layout::Bshd`] is
    /// [page_size, num_kv_heads, dim]. Bhsd reads faster (2x on Mesa's lavapipe, f32): a head's keys are contiguous.
    pub layout: Layout,
    /// Window of all layers; see [`Self::window`]. By default every token is kept.
    pub window_left: Option<u32>,
    /// Number of first tokens that are kept beside the window; see [`Self::keep_first`].
    pub first_tokens: u32,
}

impl CacheShape {
    /// Creates a shape of these layers with no pages yet, of 16 token slots each, in [`Layout::Bhsd`].
    pub const fn new(layers: Vec<LayerShape>) -> Self {
        Self { layers, page_size: 16, pages: 0, layout: Layout::Bhsd, window_left: None, first_tokens: 0 }
    }

    /// [`Self::new`] with `layers` equal layers.
    pub fn uniform(layers: usize, layer: LayerShape) -> Self {
        Self::new(vec![layer; layers.min(MOST_LAYERS + 1)]) // one too many is refused with the cache
    }

    /// Sets the number of token slots per page.
    pub fn page_size(self, page_size: usize) -> Self {
        Self { page_size, ..self }
    }

    /// Sets the number of pages.
    pub fn pages(self, pages: usize) -> Self {
        Self { pages, ..self }
    }

    /// Sets the layout of a page.
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Keeps the `left` tokens before each new one, so that a window of 1,024 tokens is 1023. Layers with other windows
    /// need a cache of their own.
    ///
    /// Before a sequence of L tokens grows, it gives back each page all of whose tokens come before `L - left`. So it has
    /// at most `ceil((left + n) / page_size) + 1` pages if it gains n tokens at a time, however many steps are extended at
    /// once. Positions do not change.
    ///
    /// The problems of the cache mask what is not kept: row at position p sees key j if `j >= p - left`. Rows count from
    /// the last key ([`crate::Alignment::BottomRight`]), and only those of new tokens have a defined output.
    pub fn window(self, left: u32) -> Self {
        Self { window_left: Some(left), ..self }
    }

    /// Keeps the first `tokens` of each sequence beside its window, as attention sinks: key j is also visible if
    /// `j < tokens`, and its page is kept.
    ///
    /// Built-in terms are intervals of keys, so the cache's problem has this and the window as a [`crate::Term`] instead:
    /// `at.key < tokens || at.position - at.key <= left`.
    pub fn keep_first(self, tokens: u32) -> Self {
        Self { first_tokens: tokens, ..self }
    }

    pub(super) fn retention(&self) -> Retention {
        Retention { window_left: self.window_left, first_tokens: self.first_tokens }
    }

    /// Refuses no or too many layers, sizes of 0, strided layouts, and quantised or rotated rows that are not whole blocks.
    pub(crate) fn check(&self) -> Result<()> {
        if self.layers.is_empty() || self.layers.len() > MOST_LAYERS {
            return Err(Error::invalid("layers", format!("are {}; a cache has 1 to {MOST_LAYERS}", self.layers.len())));
        }
        if matches!(self.layout, Layout::Strided(_)) {
            return Err(Error::invalid("layout", "a cache of its own is contiguous: Bshd or Bhsd"));
        }
        if self.first_tokens > 0 && self.window_left.is_none() {
            let why = format!("are {}, but without a window all tokens are kept: set `window` too", self.first_tokens);
            return Err(Error::invalid("first_tokens", why));
        }
        for layer in &self.layers {
            let LayerShape { num_kv_heads, head_dim, head_dim_v, .. } = *layer;
            Error::check_sizes([("num_kv_heads", num_kv_heads), ("head_dim", head_dim), ("head_dim_v", head_dim_v)])?;
            let rotates = [layer.key_hadamard, layer.value_hadamard];
            for (((dim, dtype), rotates), argument) in layer.sides().into_iter().zip(rotates).zip(["head_dim", "head_dim_v"]) {
                Hadamard::check(argument, rotates, dim)?;
                TensorSpec::new(dtype, self.layout).check_blocks(argument, [1, 1, 1, dim])?;
            }
        }
        Ok(())
    }

    /// Bytes of the keys and values of one token in all layers.
    pub fn token_bytes(&self) -> usize {
        self.layers.iter().fold(0, |bytes, layer| bytes.saturating_add(layer.token_bytes()))
    }

    /// Bytes of one page in all layers.
    pub fn page_bytes(&self) -> usize {
        self.page_size.saturating_mul(self.token_bytes())
    }

    /// Shape of a layer. Errors: the layer does not exist.
    pub(crate) fn layer(&self, layer: usize) -> Result<&LayerShape> {
        self.layers.get(layer).ok_or_else(|| Error::invalid("layer", format!("is {layer}, but the cache has {}", self.layers.len())))
    }

    /// Problem over `batch` sequences of a layer, with a table of `pages_per_item` pages for each.
    pub(crate) fn problem(
        &self,
        layer: usize,
        batch: usize,
        queries: Queries,
        seq_len_kv: usize,
        pages_per_item: usize,
    ) -> Result<Problem> {
        let &LayerShape { num_kv_heads, head_dim, head_dim_v, key, value, key_hadamard, value_hadamard } = self.layer(layer)?;
        let Queries { num_heads, seq_len: seq_len_q } = queries;
        let paged = Paged { page_size: self.page_size, pages: self.pages, pages_per_item };
        let dims = Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v };
        let mut problem = Problem::new(dims).paged(paged).hadamard(key_hadamard, value_hadamard);
        (problem.key, problem.value) = (TensorSpec::new(key, self.layout), TensorSpec::new(value, self.layout));
        self.retention().masked(problem)
    }
}
