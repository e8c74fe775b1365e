//! Paged key/value caches for growing sequences: which sequence has which page and, for host caches, the data.
//!
//! ```
//! use wgpu_attention::cache::{CacheShape, KvCache, LayerShape, Queries};
//! use wgpu_attention::{Alignment, Backend, Engine, EngineOptions, Inputs};
//!
//! let layer = LayerShape::new(1, 2); // 1 head of 2 elements
//! let mut cache = KvCache::new(CacheShape::uniform(2, layer).page_size(4).pages(8))?;
//! let prompt = cache.pool_mut().start();
//! cache.extend(prompt, 3)?;
//! for layer in 0..2 {
//!     cache.append(layer, prompt, (&[0.5; 6]).into(), (&[1.0; 6]).into())?; // its last 3 tokens
//! }
//! let other = cache.pool_mut().fork(prompt, 2)?; // shares 2 of them
//!
//! let table = cache.pool().table(&[prompt, other])?;
//! let queries = Queries { num_heads: 1, seq_len: 1 };
//! let problem = cache.problem(1, &table, queries)?.aligned(Alignment::BottomRight).causal();
//! let query = [1.0f32; 4];
//! let inputs = Inputs {
//!     kv_lengths: &table.kv_lengths,
//!     page_table: &table.entries,
//!     ..Inputs::new(&query, cache.key(1)?, cache.value(1)?)
//! };
//! let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
//! assert_eq!(engine.attention(&problem, &inputs)?.output.to_f32(), [1.0; 4]);
//! # Ok::<(), wgpu_attention::Error>(())
//! ```
//!
//! A cache on a device is decided here and executed by [`crate::gpu::DeviceCache`], or by any other WebGPU host:
//! [`CachePlan`] has the sizes of its buffers and its dispatches, [`Ledger`] its bookkeeping.

mod attention;
mod export;
mod host;
mod keep;
mod ledger;
mod plan;
mod pool;
mod retention;
mod rows;
mod shape;
mod tree;

pub use host::KvCache;
#[cfg(feature = "verify")]
pub(crate) use host::write_slots;
pub use keep::{Compaction, KeptRows};
pub use ledger::{Growth, Ledger, StateWrite};
pub use plan::{AppendSpec, CachePlan, RotationSpec};
#[cfg(feature = "verify")]
pub(crate) use pool::slots;
pub use pool::{Append, PagePool, SequenceId, Slots};
pub use rows::RotarySpec;
pub(crate) use rows::{check_in_place, row_strides};
pub use shape::{CacheShape, CacheSize, LayerShape, Queries};
pub use tree::Tree;
