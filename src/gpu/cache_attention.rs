//! Attention over the sequences of a cache on a device.

use std::ops::Range;

use super::steps::Ready;
use super::{Attention, Bindings, DeviceCache, Dispatches};
use crate::cache::LayerShape;
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::problem::{Algorithm, Problem};

/// Attention over the sequences of a [`DeviceCache`], prepared: one [`Attention`] per bank of heads.
#[derive(Debug)]
pub struct CacheAttention {
    shape: LayerShape,
    banks: Vec<Attention>,
}

/// Buffers of an attention over a cache besides keys and values, as in [`Bindings`].
#[derive(Clone, Debug)]
pub struct QueryBindings<'a> {
    /// Query, as [`Problem::query`] describes.
    pub query: wgpu::BufferBinding<'a>,
    /// Output, as [`Problem::output`] describes.
    pub output: wgpu::BufferBinding<'a>,
    /// Log-sum-exp of each row, f32, [`Problem::lse_len`] elements, if wanted.
    pub lse: Option<wgpu::BufferBinding<'a>>,
    /// Small vectors, as [`super::Tables`] describes, without lengths and page table, if there are any.
    pub tables: Option<wgpu::BufferBinding<'a>>,
    /// Additive bias, f32, if the problem has one.
    pub bias: Option<wgpu::BufferBinding<'a>>,
    /// Boolean mask, one byte per element, 0 = masked, if the problem has one.
    pub mask: Option<wgpu::BufferBinding<'a>>,
    /// Sums of each key's weights as in [`crate::Outputs::key_sums`], f32, [`Problem::key_sums_len`] elements, if wanted.
    pub key_sums: Option<wgpu::BufferBinding<'a>>,
}

impl<'a> QueryBindings<'a> {
    /// Binds whole buffers for query and output only.
    pub fn new(query: &'a wgpu::Buffer, output: &'a wgpu::Buffer) -> Self {
        let (query, output) = (query.as_entire_buffer_binding(), output.as_entire_buffer_binding());
        Self { query, output, lse: None, tables: None, bias: None, mask: None, key_sums: None }
    }
}

impl DeviceCache {
    /// Prepares attention over the sequences in `slots`, for a [`Self::problem`]. Bind it once for each layer of this
    /// layer's shape.
    ///
    /// Errors: those of [`super::Attention::new`]; a problem of another batch, keys or values; with several banks, an
    /// lse, dropout, or a mask, bias, block list or user's term that differs between heads.
    pub fn attention(&self, layer: usize, problem: &Problem, slots: Range<usize>, algorithm: Algorithm) -> Result<CacheAttention> {
        let banks = self.plan.attention_of_banks(layer, problem, slots, algorithm, |part| self.gpu.fastest(part))?;
        let of_bank = |(part, plan)| Ready::new(&self.gpu, &part, None, plan, Some(self.state.clone())).map(Attention);
        Ok(CacheAttention { shape: *self.shape().layer(layer)?, banks: banks.into_iter().map(of_bank).collect::<Result<_>>()? })
    }
}

impl CacheAttention {
    /// Plan of one bank of heads; all banks are alike.
    pub fn plan(&self) -> &Plan {
        self.banks[0].plan()
    }

    /// Binds buffers, and a layer of the cache that this attention was created for. Errors: those of
    /// [`Attention::bind`]; a layer of another shape.
    pub fn bind(&self, cache: &DeviceCache, layer: usize, buffers: &QueryBindings<'_>) -> Result<Dispatches> {
        let pools = cache.pools(layer)?;
        if (cache.shape().layer(layer)?, pools.len()) != (&self.shape, self.banks.len()) {
            let why = format!("{layer} has not the shape that this attention was made for, {:?}: make another for it", self.shape);
            return Err(Error::invalid("layer", why));
        }
        let mut bound = Dispatches { steps: Vec::new() };
        for (bank, [key, value]) in self.banks.iter().zip(pools) {
            let QueryBindings { query, output, lse, tables, bias, mask, key_sums } = buffers.clone();
            let bindings = Bindings { query, output, lse, tables, bias, mask, key_sums, ..Bindings::new(key, key, value, value) };
            bound.steps.extend(bank.bind(&bindings)?.steps);
        }
        Ok(bound)
    }
}
