//! All use of wgpu: adapters, devices, pipelines, buffers, dispatch.
//!
//! An app with a device of its own wraps it in a [`Gpu`], prepares an [`Attention`] or [`Backward`] once per shape, binds
//! its buffers ([`Bindings`], [`Tables`]), and records the [`Dispatches`] into its own encoder. Nothing is submitted, and
//! no hook of the device is replaced.
//!
//! # Determinism
//!
//! A plan computes the same bits each time on the same device and driver, forward and backward: each element is summed
//! by one workgroup in a fixed order, without atomic additions. Other work in the pass, the batch's other items
//! of a padded problem and earlier contents of scratch change nothing.
//!
//! Plans differ with the shape, with [`crate::plan::DeviceCaps`] (a different device or driver) and with tuning. On a
//! software adapter an [`Attention`], which is recorded often, may also get a specialised kernel where a single
//! [`crate::Engine::attention`] gets a generic one. Different plans agree up to rounding.
//!
//! # What recordings share
//!
//! Recordings of one [`Attention`] or [`Backward`] share its scratch, however often it is bound. A device has one queue,
//! which runs dispatches in order, so they may be in one pass, in several encoders or in flight together. Contents of
//! bound buffers are read when the dispatches run. Dispatches of one object must all be recorded, in order; those of
//! different objects may be interleaved.
//!
//! Clones of a [`Gpu`] share pipelines and results of tuning, and each object keeps what it needs alive.
//!
//! # Threads
//!
//! Every type here is `Send` and `Sync`, and functions with `&self` may be called from several threads at once. Two
//! threads that need a new pipeline at once both compile it. Calls of an [`crate::Engine`] that run at the same time have
//! buffers of their own. Futures are `Send`, except in browsers. Recording, binding and planning never wait for the
//! device, with one exception on software adapters: see [`Gpu::caps`].
//!
//! # Browsers
//!
//! Nothing can wait there: a function that would have to is refused at once as [`crate::Error::Unsupported`], and its
//! twin ending in `_async` is to be awaited. Errors of wgpu arrive later too. Calls that are awaited return their own;
//! those of objects that an app creates ([`Attention`], [`DeviceCache`]) and binds are returned by [`Gpu::settled`].

mod adapter;
mod attention;
mod browser;
mod buffers;
mod cache;
mod cache_append;
mod cache_attention;
mod cache_steps;
mod calls;
mod clock;
mod device;
mod findings;
mod handle;
mod host;
mod layer;
mod linear;
mod loss;
mod merge;
mod page_table;
mod pipeline;
mod pipeline_cache;
mod probe;
mod rotary;
mod steps;
mod timestamps;
mod trial;
mod wait;

pub use adapter::{AdapterReport, MATRIX_FEATURES, list, matrix_size};
pub use attention::{Attention, Backward, BackwardBindings, Bindings};
pub use cache::DeviceCache;
pub use cache_append::{Angles, NewTokens, RotatedQuery, Rotation};
pub use cache_attention::{CacheAttention, QueryBindings};
pub use cache_steps::Rows;
pub use clock::{CompiledKernel, Phase, Spent};
pub use device::{Gpu, ShaderOptions};
pub use findings::{Findings, list_with_findings};
pub use merge::{Merge, MergeBindings};
pub use page_table::IndexBindings;
pub use rotary::{DeviceNorm, DeviceRotary, TokenAngles, TokenSizes};
pub use steps::Dispatches;
pub use timestamps::{DispatchTime, Timestamps};

pub use crate::cache::{CacheSize, Growth, KeptRows};
pub use crate::problem::{TableVector, Tables};

pub(crate) use adapter::{choose, choose_every};
pub(crate) use calls::{Asked, Calls};
pub(crate) use layer::{LayerBackwardParts, LayerBackwardResults, LayerParts, ProjectionBackward, layer, layer_backward};
pub(crate) use linear::{Projection, RowMap};
pub(crate) use trial::Trial;
pub(crate) use wait::{Waiting, block_on};
