//! All use of wgpu: adapters, devices, pipelines, buffers, dispatch.

mod adapter;
mod attention;
mod backward;
mod buffers;
mod cache;
mod cache_append;
mod cache_attention;
mod cache_steps;
mod device;
mod host;
mod host_backward;
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
mod trial;

pub use adapter::{AdapterReport, MATRIX_FEATURES, list, list_with_findings, matrix_size};
pub use attention::{Attention, Bindings};
pub use backward::{Backward, BackwardBindings};
pub use cache::{CacheSize, DeviceCache, Growth};
pub use cache_append::{NewTokens, RotatedQuery, Rotation};
pub use cache_attention::{CacheAttention, QueryBindings};
pub use cache_steps::Rows;
pub use device::{Gpu, ShaderOptions};
pub use merge::{MergeBindings, MergeSizes};
pub use page_table::IndexBindings;
pub use probe::Findings;
pub use rotary::{DeviceRotary, TokenSizes};
pub use steps::Dispatches;

pub(crate) use adapter::{choose, choose_every};
pub(crate) use host::Waiting;
pub(crate) use layer::{LayerParts, layer};
pub(crate) use layer_backward::{LayerBackwardParts, LayerBackwardResults, ProjectionBackward, layer_backward};
pub(crate) use linear::{Projection, RowMap};
pub(crate) use trial::{Trial, gradients_of_plan};
