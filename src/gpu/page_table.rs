//! Page tables in FlashInfer's form, on the device.

use super::cache_steps::bound;
use super::steps::check_binding;
use super::{Dispatches, Gpu};
use crate::error::{Error, Result};
use crate::plan::CacheStep;
use crate::problem::{Problem, TableLayout};
use crate::wgsl::{CacheKey, CacheParams, CacheSlot};

/// Page table in the form of [`crate::PageTable::from_indices`], and its destination: u32, `BufferUsages::STORAGE`.
#[derive(Clone, Debug)]
pub struct IndexBindings<'a> {
    /// Page ranges [batch + 1]: item b has the pages `indices[indptr[b]..indptr[b + 1]]`.
    pub indptr: wgpu::BufferBinding<'a>,
    /// Pages of all items.
    pub indices: wgpu::BufferBinding<'a>,
    /// Number of filled token slots of each item's last page, `[batch]`.
    pub last_page_len: wgpu::BufferBinding<'a>,
    /// Tables buffer of the problem, [`super::Tables`]: only lengths and page table are written.
    pub tables: wgpu::BufferBinding<'a>,
}

impl Dispatches {
    /// Binds the kernel that writes lengths and page table of a paged `problem`. Record it before the attention.
    ///
    /// An item whose pages contradict the problem (pages past the pool, more pages than the table is wide, an empty or
    /// overfull last page) gets length 0: no key is visible.
    ///
    /// Errors: a problem without pages, buffers that are too small or not for storage.
    pub fn page_table(gpu: &Gpu, problem: &Problem, bindings: &IndexBindings<'_>) -> Result<Self> {
        problem.check()?;
        let paged = problem.paged.ok_or_else(|| Error::invalid("problem", "has no pages"))?;
        let batch = problem.dims.batch;
        let (layout, words) = TableLayout::new(problem).ok_or_else(|| Error::invalid("page_table", "overflows"))?;
        for (argument, binding, needed) in [
            ("indptr", &bindings.indptr, batch + 1),
            ("indices", &bindings.indices, 1),
            ("last_page_len", &bindings.last_page_len, batch),
            ("tables", &bindings.tables, words as usize),
        ] {
            check_binding(gpu, argument, binding, 4 * needed as u64)?;
        }
        let params = CacheParams {
            batch: batch as u32,
            slots: layout.kv_lengths,
            first_slot: layout.page_table,
            page_size: paged.page_size as u32,
            pages_per_slot: paged.pages_per_item as u32,
            copies: paged.pages as u32,
            page_words: problem.dims.seq_len_kv as u32,
            ..CacheParams::default()
        };
        let bindings = [
            (CacheSlot::State, bindings.tables.clone()),
            (CacheSlot::NewKey, bindings.indptr.clone()),
            (CacheSlot::NewValue, bindings.indices.clone()),
            (CacheSlot::Query, bindings.last_page_len.clone()),
        ];
        bound(gpu, &CacheStep::new(CacheKey::PageTable, params, batch * paged.pages_per_item, gpu.caps())?, &bindings)
    }
}
