//! Steps of a cache as plain data, for hosts other than this crate's own.

use super::plan::{AppendSpec, CachePlan};
use super::rows::RotarySpec;
use super::shape::LayerShape;
use crate::error::Result;
use crate::plan::{CacheStep, PlanExport, TensorExport};
use crate::problem::TensorSpec;
use crate::wgsl::CacheSlot;

impl CachePlan {
    /// Exports the first dispatch of a step: each slot gains as many keys as [`super::Ledger::extend`] was last told.
    /// Writes `cache_state`.
    pub fn advance(&self) -> Result<PlanExport> {
        Ok(PlanExport::of_cache_steps(&[(self.advance_step()?, vec![self.state()])]))
    }

    /// Exports the kernel that writes new tokens to a layer, a plan for each bank.
    ///
    /// Reads `cache_state`, `key` and `value`, all heads of them, `angles` ([`crate::rotary::Rotary::angles`]) or `token_angles` if
    /// they are rotated, and `norm` ([`crate::rotary::QkNorm::words`]) if they are normalised; writes `cache_key` and `cache_value`,
    /// the bank's own, and in the first bank `query` if it is to be changed too.
    ///
    /// Errors: a layer or slots that do not exist, key and value of different or quantised types, a rotation of nothing, a
    /// rotary without angles for a head or for the longest sequence, an odd head_dim of queries in 16 bits.
    pub fn append(&self, layer: usize, new: &AppendSpec) -> Result<Vec<PlanExport>> {
        let steps = self.append_steps(layer, new)?;
        let (shape, [key, value]) = (*self.shape().layer(layer)?, self.pools(layer)?);
        let rows = |name, spec: &TensorSpec, heads, dim| TensorExport::stored(name, spec, [new.slots.len(), heads, new.seq_len, dim]);
        let tensor = |slot: CacheSlot| match slot {
            CacheSlot::Params => None,
            CacheSlot::State => Some(self.state()),
            CacheSlot::NewKey => Some(rows("key", &new.key, shape.num_kv_heads, shape.head_dim)),
            CacheSlot::NewValue => Some(rows("value", &new.value, shape.num_kv_heads, shape.head_dim_v)),
            CacheSlot::Key => Some(key.clone()),
            CacheSlot::Value => Some(value.clone()),
            CacheSlot::Query => {
                let (spec, num_heads) = new.rotation.as_ref()?.query.as_ref()?;
                Some(rows("query", spec, *num_heads, shape.head_dim))
            }
            CacheSlot::Angles => {
                let rotation = new.rotation.as_ref()?;
                let rotary = rotation.rotary?;
                Some(if rotation.by_token { token_angles(&rotary, new.slots.len() * new.seq_len) } else { angles(&rotary) })
            }
            CacheSlot::Norm => Some(TensorExport::contiguous("norm", "f32", 4, &[2 * shape.head_dim + 1])),
        };
        let export = |step: CacheStep| {
            let tensors = step.key.bindings().into_iter().filter_map(|(slot, _)| tensor(slot)).collect();
            PlanExport::of_cache_steps(&[(step, tensors)])
        };
        Ok(steps.into_iter().map(export).collect())
    }

    /// Exports the dispatch that gathers the angles of the new tokens of a step, `tokens` of all slots, for positions of their
    /// own. Reads `positions` and `angles`, writes `token_angles`. One run serves all layers that have this rotary embedding.
    ///
    /// `positions` is u32 `[tokens]`, or `[3, tokens]` if the rotary embedding has sections, with the tokens in the order
    /// [slot, token]. A position without angles rotates to NaN.
    ///
    /// Errors: no tokens, no positions, more than a shader can count.
    pub fn token_angles(&self, rotary: &RotarySpec, tokens: usize) -> Result<PlanExport> {
        let step = rotary.token_angles(tokens, &self.caps)?;
        let sizes = [3, tokens];
        let positions = TensorExport::contiguous("positions", "u32", 4, &sizes[if rotary.sections.is_some() { 0 } else { 1 }..]);
        Ok(PlanExport::of_cache_steps(&[(step, vec![positions, angles(rotary), token_angles(rotary, tokens)])]))
    }

    /// Exports copies of `copies` pages in the pools of each bank of a layer, for the pairs that [`super::Ledger::extend`]
    /// returns. Reads `page_copies`, the pairs; writes `cache_key` and `cache_value`. One plan serves all banks, each with
    /// pools of its own.
    ///
    /// Errors: a layer that does not exist, no copies, more words than a shader can count.
    pub fn copy_pages(&self, layer: usize, copies: usize) -> Result<PlanExport> {
        let pairs = TensorExport::contiguous("page_copies", "u32", 4, &[copies, 2]);
        let steps = self.copy_steps(layer, copies)?.into_iter().zip(self.pools(layer)?);
        Ok(PlanExport::of_cache_steps(&steps.map(|(step, pool)| (step, vec![pairs.clone(), pool])).collect::<Vec<_>>()))
    }

    /// Exports up to `most` copies of single tokens in the pools of each bank of a layer, one after the other, for the pairs
    /// that [`super::Ledger::keep`] returns. Reads `token_moves`, the pairs, up to the first pair of equal numbers, such as
    /// zeros; writes `cache_key` and `cache_value`. One plan serves all banks, each with pools of its own.
    ///
    /// Errors: a layer that does not exist, no copies, more words than a shader can count.
    pub fn move_tokens(&self, layer: usize, most: usize) -> Result<PlanExport> {
        let step = self.move_step(layer, most)?;
        let [key, value] = self.pools(layer)?;
        let pairs = TensorExport::contiguous("token_moves", "u32", 4, &[most, 2]);
        Ok(PlanExport::of_cache_steps(&[(step, vec![pairs, key, value])]))
    }

    /// State of the cache.
    fn state(&self) -> TensorExport {
        TensorExport::contiguous("cache_state", "u32", 4, &[self.size().state_words() as usize])
    }

    /// Pools of keys and of values of each bank of a layer.
    fn pools(&self, layer: usize) -> Result<[TensorExport; 2]> {
        let (layer, banks): (&LayerShape, usize) = (self.shape().layer(layer)?, self.banks(layer)?);
        let pool = |name, side| TensorExport::stored(name, &self.pool_spec(layer, side), self.pool_shape(layer, banks, side));
        Ok([pool("cache_key", 0), pool("cache_value", 1)])
    }
}

fn angles(rotary: &RotarySpec) -> TensorExport {
    TensorExport::contiguous("angles", "f32", 4, &[rotary.positions, rotary.pairs, 2])
}

fn token_angles(rotary: &RotarySpec, tokens: usize) -> TensorExport {
    TensorExport::contiguous("token_angles", "f32", 4, &[tokens, rotary.pairs, 2])
}
