//! A plan under construction.

use super::cache_words::CacheWords;
use super::limits::{Piece, check_addressing, check_bytes, check_kernel, pieces, place_tables};
use super::ranges::BindingRange;
use super::step::{BufferRef, Plan, Step};
use super::{loops, tensors};
use crate::error::{Error, Result};
use crate::problem::{Problem, TableLayout, WantGradients};
use crate::wgsl::{DeviceCaps, Kernel, KernelKey, Params, Slot};

/// A checked problem on a device, and the steps and scratch buffers so far.
pub(super) struct Builder<'a> {
    pub(super) problem: &'a Problem,
    pub(super) caps: &'a DeviceCaps,
    /// Places of the problem's vectors in the tables buffer, and its size in words.
    pub(super) tables: TableLayout,
    pub(super) table_words: u32,
    /// Places of lengths and page table in a cache's state, if the keys are in a cache.
    pub(super) cache: Option<CacheWords>,
    steps: Vec<Step>,
    /// Sizes of the scratch buffers in bytes.
    scratch: Vec<u64>,
}

impl<'a> Builder<'a> {
    /// Starts a plan for a problem that has been checked.
    pub(super) fn new(problem: &'a Problem, caps: &'a DeviceCaps, cache: Option<CacheWords>) -> Result<Self> {
        let own = place_tables(problem)?;
        check_addressing(problem, own.1, caps)?;
        let (tables, table_words) = cache.map_or(Ok(own), |words| words.tables(problem))?;
        Ok(Self { problem, caps, tables, table_words, cache, steps: Vec::new(), scratch: Vec::new() })
    }

    /// Returns the params that follow from the problem.
    pub(super) fn params(&self) -> Params {
        Params::new(self.problem, self.tables)
    }

    /// Returns the generic or specialised variant of `kernel`.
    pub(super) fn key(&self, generic: bool, kernel: Kernel) -> KernelKey {
        let key = if generic { KernelKey::generic(kernel, self.problem) } else { KernelKey::new(kernel, self.problem) };
        if self.cache.is_some() { KernelKey { cached: true, tables: generic || self.table_words > 0, ..key } } else { key }
    }

    /// Adds a scratch buffer.
    pub(super) fn scratch(&mut self, name: &str, bytes: u64) -> Result<BufferRef> {
        check_bytes(name, bytes, self.caps)?;
        if bytes > self.scratch_left() {
            let (needed, available) = (self.scratch_bytes() + bytes, self.caps.scratch_budget);
            let remedy = "raise ShaderOptions::scratch_budget, or split the batch or the heads".into();
            return Err(Error::Limit { limit: "scratch_budget", needed, available, remedy });
        }
        self.scratch.push(bytes);
        Ok(BufferRef::Scratch(self.scratch.len() - 1))
    }

    /// Adds a kernel over the workgroups of `params`, cut into dispatches that are short enough. `place` returns the
    /// buffers of bindings that are not a tensor of the same name.
    pub(super) fn push(&mut self, key: KernelKey, params: Params, flops: f64, place: impl Fn(Slot) -> Option<BufferRef>) -> Result<()> {
        self.push_bound(key, params, flops, None, place)
    }

    /// [`Self::push`] with ranges of key and value instead of whole buffers.
    pub(super) fn push_bound(
        &mut self,
        key: KernelKey,
        params: Params,
        flops: f64,
        bound: Option<[BindingRange; 2]>,
        place: impl Fn(Slot) -> Option<BufferRef>,
    ) -> Result<()> {
        check_kernel(&key, self.caps)?;
        loops::check(key.kernel, &params, self.problem, self.caps)?;
        let slots = key.bindings().into_iter().skip(1).map(|(slot, _)| slot);
        let places = slots.map(|slot| (slot, place(slot).or(BufferRef::of(slot)).unwrap_or(BufferRef::Scratch(0)))).collect();
        let step = Step { key, params, places, bound, flops };
        let before = step.params.first_workgroup;
        let total = step.params.end_workgroup - before;
        self.steps.extend(pieces(total, flops, self.caps).into_iter().map(|Piece { first, end, width }| {
            let params = Params { first_workgroup: before + first, end_workgroup: before + end, grid_width: width, ..step.params };
            Step { params, flops: flops * f64::from(end - first) / f64::from(total), ..step.clone() }
        }));
        Ok(())
    }

    /// Names of the kernels that have any workgroups, each as often as it was added.
    pub(super) fn kernels(&self) -> Vec<String> {
        let added = self.steps.iter().filter(|step| step.params.first_workgroup == 0);
        added.map(|step| step.key.kernel.to_string()).collect()
    }

    /// Bytes of scratch so far.
    pub(super) fn scratch_bytes(&self) -> u64 {
        self.scratch.iter().sum()
    }

    /// Bytes that the budget leaves for more scratch.
    pub(super) fn scratch_left(&self) -> u64 {
        self.caps.scratch_budget - self.scratch_bytes()
    }

    /// Finishes the plan of attention, or of the wanted gradients.
    pub(super) fn finish(mut self, want: Option<&WantGradients>, summary: String) -> Plan {
        let tensors = tensors::of(self.problem, want, self.table_words, self.cache);
        let dummies = tensors::add_dummies(self.problem, &tensors, &mut self.steps);
        let options = self.problem.terms_text();
        Plan { steps: self.steps, scratch: self.scratch, dummies, tensors, options, table_words: self.table_words, summary }
    }
}
