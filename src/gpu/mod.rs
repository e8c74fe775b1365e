//! All use of wgpu: adapters, devices, pipelines, buffers, dispatch.

mod adapter;
mod attention;
mod backward;
mod buffers;
mod cache;
mod cache_attention;
mod cache_steps;
mod calls;
mod device;
mod findings;
mod host;
mod layer;
mod layer_backward;
mod linear;
mod loss;
mod merge;
mod page_table;
mod pipeline;
mod probe;
mod rotary;
mod steps;
mod timestamps;
mod trial;
mod wait;

pub use adapter::{AdapterReport, MATRIX_FEATURES, list, matrix_size};
pub use attention::{Attention, Bindings};
pub use backward::{Backward, BackwardBindings};
pub use cache::{CacheSize, DeviceCache, NewTokens};
pub use cache_attention::{CacheAttention, QueryBindings};
pub use device::{Gpu, ShaderOptions};
pub use findings::{Findings, list_with_findings};
pub use merge::{Merge, MergeBindings};
pub use page_table::IndexBindings;
pub use rotary::DeviceRotary;
pub use steps::Dispatches;
pub use timestamps::{DispatchTime, Timestamps};

pub use crate::problem::{TableVector, Tables};

pub(crate) use adapter::{choose, choose_every};
pub(crate) use calls::Calls;
pub(crate) use layer::{Layer, LayerParts};
pub(crate) use layer_backward::{LayerBackwardParts, ProjectionBackward, layer_backward};
pub(crate) use linear::Projection;
pub(crate) use trial::{Trial, gradients_of_plan};
pub(crate) use wait::Waiting;
