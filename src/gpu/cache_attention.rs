//! Attention over the sequences of a cache on a device.

use std::ops::Range;

use super::steps::Ready;
use super::{Attention, Bindings, DeviceCache, Dispatches};
use crate::cache::{LayerShape, Queries};
use crate::custom::Term;
use crate::error::{Error, Result};
use crate::plan::{CacheWords, Plan};
use crate::problem::{Algorithm, BroadcastShape, Layout, Operand, Problem};

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
}

impl<'a> QueryBindings<'a> {
    /// Binds whole buffers for query and output only.
    pub fn new(query: &'a wgpu::Buffer, output: &'a wgpu::Buffer) -> Self {
        let (query, output) = (query.as_entire_buffer_binding(), output.as_entire_buffer_binding());
        Self { query, output, lse: None, tables: None, bias: None, mask: None }
    }
}

impl DeviceCache {
    /// Prepares attention over the sequences in `slots`, for a [`Self::problem`]. Bind it once for each layer of this
    /// layer's shape.
    ///
    /// Errors: those of [`super::Attention::new`]; a problem of another batch, keys or values; with several banks, an
    /// lse, dropout, or a mask, bias, block list or user's term that differs between heads.
    pub fn attention(&self, layer: usize, problem: &Problem, slots: Range<usize>, algorithm: Algorithm) -> Result<CacheAttention> {
        let d = &problem.dims;
        self.check_slots(&slots)?;
        let queries = Queries { num_heads: d.num_heads, seq_len: d.seq_len_q };
        let own = self.problem(layer, slots.clone(), queries)?;
        let of = |p: &Problem| (p.dims, p.paged, p.visibility.kv_lengths, p.key, p.value);
        if of(&own) != of(problem) {
            return Err(Error::invalid("problem", "its keys and values are not this cache's: begin with DeviceCache::problem"));
        }
        problem.check()?;
        let (shape, banks) = (*self.shape().layer(layer)?, self.pools(layer)?.len());
        let by_head = |shape: Option<BroadcastShape>| shape.is_some_and(|BroadcastShape([_, heads, ..])| heads > 1);
        let lists_by_head = problem.visibility.block_list.is_some_and(|list| list.heads > 1);
        let counts_heads = problem.dropout.is_some() || problem.user_terms.iter().any(Term::uses_head) || lists_by_head;
        if banks > 1 && (problem.want.lse || by_head(problem.visibility.mask) || by_head(problem.bias) || counts_heads) {
            let what = format!("lse, dropout, or a mask, bias, block list or user's term by head, of a cache in {banks} banks");
            return Err(Error::unsupported(what, "make the cache smaller, or ask for an adapter's own limits"));
        }
        let (gpu, size) = (&self.gpu, self.size());
        let page_table = (4 * size.slots + slots.start * size.pages_per_slot) as u32;
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
            let words = CacheWords { kv_lengths: slots.start as u32, page_table, num_heads: problem.dims.num_heads, first_head };
            let plan = Plan::on_cache(&part, gpu.caps(), algorithm, gpu.fastest(&part), words)?;
            Ready::new(gpu, &part, None, plan, Some(self.state.clone())).map(Attention)
        };
        Ok(CacheAttention { shape, banks: (0..banks).map(of_bank).collect::<Result<_>>()? })
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
            let QueryBindings { query, output, lse, tables, bias, mask } = buffers.clone();
            let bindings = Bindings { query, output, lse, tables, bias, mask, ..Bindings::new(key, key, value, value) };
            bound.steps.extend(bank.bind(&bindings)?.steps);
        }
        Ok(bound)
    }
}
