//! The only place that names wgpu: adapters, devices, pipelines, buffers, dispatch.

mod adapter;
mod attention;
mod cache;
mod cache_attention;
mod cache_steps;
mod device;
mod host;
mod layer;
mod linear;
mod merge;
mod pipeline;
mod rotary;

pub use adapter::{AdapterReport, list};
pub use attention::{Attention, Bindings, Bound};
pub use cache::{CacheSize, DeviceCache, NewTokens};
pub use cache_attention::{CacheAttention, QueryBindings};
pub use device::{Gpu, ShaderOptions};
pub use merge::MergeBindings;
pub use rotary::DeviceRotary;

pub(crate) use adapter::{choose, choose_every};
pub(crate) use host::Waiting;
pub(crate) use layer::{Layer, LayerParts};
pub(crate) use linear::Projection;
