//! Attention over the sequences of a cache on a device.

use super::{Attention, Bindings, DeviceCache, Dispatches, Gpu};
use crate::error::{Error, Result};
use crate::plan::{CacheWords, Plan};
use crate::problem::{Algorithm, BroadcastShape, Layout, Operand, Problem};

/// Attention over the sequences of a [`DeviceCache`], prepared: one [`Attention`] per bank of heads.
#[derive(Debug)]
pub struct CacheAttention {
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
}

impl<'a> QueryBindings<'a> {
    /// Binds whole buffers for query and output only.
    pub fn new(query: &'a wgpu::Buffer, output: &'a wgpu::Buffer) -> Self {
        let (query, output) = (query.as_entire_buffer_binding(), output.as_entire_buffer_binding());
        Self { query, output, lse: None, tables: None, bias: None, mask: None }
    }
}

impl CacheAttention {
    pub(super) fn new(
        gpu: &Gpu,
        problem: &Problem,
        algorithm: Algorithm,
        state: &wgpu::Buffer,
        [kv_lengths, page_table]: [u32; 2],
        banks: usize,
    ) -> Result<Self> {
        problem.check()?;
        let by_head = |shape: Option<BroadcastShape>| shape.is_some_and(|BroadcastShape([_, heads, ..])| heads > 1);
        if banks > 1 && (problem.want.lse || by_head(problem.visibility.mask) || by_head(problem.bias)) {
            return Err(Error::unsupported(
                format!("lse, or mask or bias by head, of a cache in {banks} banks"),
                "make the cache smaller, or ask for an adapter's own limits",
            ));
        }
        let of_bank = |bank: usize| {
            let mut part = problem.clone();
            part.dims.num_heads /= banks;
            part.dims.num_kv_heads /= banks;
            let first_head = bank * part.dims.num_heads;
            if banks > 1 {
                for (operand, spec) in [(Operand::Query, &mut part.query), (Operand::Output, &mut part.output)] {
                    let strides = spec.strides(problem.shape(operand));
                    spec.offset += first_head * strides.head;
                    spec.layout = Layout::Strided(strides);
                }
            }
            let words = CacheWords { kv_lengths, page_table, num_heads: problem.dims.num_heads, first_head };
            let plan = Plan::on_cache(&part, gpu.caps(), algorithm, gpu.fastest(&part), words)?;
            Attention::of_plan(gpu, &part, plan, Some(state.clone()))
        };
        Ok(Self { banks: (0..banks).map(of_bank).collect::<Result<_>>()? })
    }

    /// Plan of one bank of heads; all banks are alike.
    pub fn plan(&self) -> &Plan {
        self.banks[0].plan()
    }

    /// Binds buffers, and a layer of the cache that this attention was created for.
    pub fn bind(&self, cache: &DeviceCache, layer: usize, buffers: &QueryBindings<'_>) -> Result<Dispatches> {
        let pools = cache.pools(layer)?;
        if pools.len() != self.banks.len() {
            return Err(Error::invalid("cache", "is not the one that this attention was made for"));
        }
        let mut bound = Dispatches { steps: Vec::new() };
        for (bank, [key, value]) in self.banks.iter().zip(pools) {
            let QueryBindings { query, output, lse, tables, bias, mask } = buffers.clone();
            let bindings = Bindings { query, output, lse, tables, bias, mask, ..Bindings::new(key, key, value, value) };
            bound.steps.extend(bank.bind(&bindings)?.steps);
        }
        Ok(bound)
    }
}
