//! Caches under test, and the rows of tokens.

use fastrand::Rng;
use wgpu_attention::cache::{KeptRows, LayerShape, PagePool};
use wgpu_attention::{Alignment, Hadamard, HostVec, Problem, Result};

/// Number of query heads of each key/value head.
pub(super) const GROUP: usize = 2;
/// Most tokens that a sequence gains at a step, and the number of query rows.
pub(super) const ROWS: usize = 4;

/// Mistakes for the tests of the soak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Plant {
    /// A shared page is written without a copy of what it held.
    Uncopied,
    /// A fork of a whole sequence is that sequence.
    Alias,
    /// The pages of a sequence that ends are never free again.
    Lost,
    /// Another one of the last tokens is kept.
    Beside,
    /// Attention is a little wrong.
    Wrong,
}

/// Cache with its sequences in slots.
pub(super) trait Subject {
    fn pool(&self) -> &PagePool;
    fn length(&self, slot: usize) -> Result<usize>;
    fn pages(&self, slot: usize) -> Result<&[u32]>;
    /// Most steps for which `extend` makes room at once.
    fn most_steps(&self) -> usize;
    fn start(&mut self) -> Result<usize>;
    fn fork(&mut self, slot: usize, prefix: usize) -> Result<usize>;
    fn end(&mut self, slot: usize) -> Result<()>;
    fn truncate(&mut self, slot: usize, length: usize) -> Result<()>;
    fn keep(&mut self, kept: KeptRows<'_>) -> Result<()>;
    /// Makes room for steps that append `tokens[slot]` tokens each.
    fn extend(&mut self, tokens: &[usize], steps: usize) -> Result<()>;
    /// Runs a step. Returns the output of each layer, [slots, ROWS, heads, head_dim_v], if `attends`; rows that are not
    /// new may be anything.
    fn step(&mut self, step: &Step<'_>, attends: bool) -> Result<Vec<Vec<f32>>>;
    /// All pages of keys and of values of a layer.
    fn stored(&self, layer: usize) -> Result<[HostVec; 2]>;
}

/// New tokens of a step.
pub(super) struct Step<'a> {
    /// Number of new tokens of each slot.
    pub(super) tokens: &'a [usize],
    /// Query, key and value of each layer, [slots, ROWS, heads, dim], of which the last rows are the new tokens.
    pub(super) rows: &'a [[Vec<f32>; 3]],
}

/// Query heads, key heads and value heads of a layer, each with their width.
pub(super) fn sides(layer: &LayerShape) -> [(usize, usize); 3] {
    let heads = layer.num_kv_heads;
    [(GROUP * heads, layer.head_dim), (heads, layer.head_dim), (heads, layer.head_dim_v)]
}

/// Row of a token, all heads of the query (side 0), the key or the value: a function of the token's name.
pub(super) fn row(name: u64, layer: usize, side: usize, len: usize) -> Vec<f32> {
    let mut rng = Rng::with_seed(name * 64 + (4 * layer + side) as u64);
    (0..len).map(|_| rng.f32() * 4.0 - 2.0).collect()
}

/// Row of keys (side 1) or values (side 2) as the cache stores it.
pub(super) fn stored(mut row: Vec<f32>, shape: &LayerShape, side: usize) -> Vec<f32> {
    let (dim, dtype, is_rotated) = match side {
        1 => (shape.head_dim, shape.key, shape.key_hadamard),
        _ => (shape.head_dim_v, shape.value, shape.value_hadamard),
    };
    if let Some(hadamard) = Hadamard::of(dim).filter(|_| is_rotated) {
        hadamard.rotate(&mut row);
    }
    HostVec::from_f32(dtype, &row).to_f32()
}

/// Options of every problem.
pub(super) fn masked(problem: Problem) -> Problem {
    problem.aligned(Alignment::BottomRight).causal()
}
