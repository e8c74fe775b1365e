//! Attention over the sequences of a cache on a device.

use std::ops::Range;

use super::plan::CachePlan;
use super::shape::Queries;
use crate::custom::Term;
use crate::error::{Error, Result};
use crate::plan::{CacheWords, Plan};
use crate::problem::{Algorithm, BroadcastShape, Layout, Operand, Problem};
use crate::wgsl::Kernel;

impl CachePlan {
    /// Plans attention over the sequences in `slots`, for a [`Self::problem`]: one plan for each bank of heads, which
    /// serves all layers of this layer's shape. All of them read the whole query and write to the whole output.
    ///
    /// Errors: those of [`Plan::new`]; a problem of another batch, keys or values, or one that may see more than the cache
    /// keeps; with several banks, an lse, dropout, or
    /// a mask, bias, block list or user's term that differs between heads.
    pub fn attention(&self, layer: usize, problem: &Problem, slots: Range<usize>, algorithm: Algorithm) -> Result<Vec<Plan>> {
        let banks = self.attention_of_banks(layer, problem, slots, algorithm, |_| None)?;
        Ok(banks.into_iter().map(|(_, plan)| plan).collect())
    }

    /// [`Self::attention`] with the problem of each bank. Prefers the kernel that `fastest` returns for it.
    pub(crate) fn attention_of_banks(
        &self,
        layer: usize,
        problem: &Problem,
        slots: Range<usize>,
        algorithm: Algorithm,
        fastest: impl Fn(&Problem) -> Option<Kernel>,
    ) -> Result<Vec<(Problem, Plan)>> {
        let d = &problem.dims;
        self.check_slots(&slots)?;
        let queries = Queries { num_heads: d.num_heads, seq_len: d.seq_len_q };
        let own = self.problem(layer, slots.clone(), queries)?;
        let of = |p: &Problem| (p.dims, p.paged, p.visibility.kv_lengths, p.key, p.value, p.key_hadamard, p.value_hadamard);
        if of(&own) != of(problem) {
            return Err(Error::invalid("problem", "its keys and values are not this cache's: begin with the cache's own `problem`"));
        }
        problem.check()?;
        self.shape().retention().check(problem)?;
        let banks = self.banks(layer)?;
        let by_head = |shape: Option<BroadcastShape>| shape.is_some_and(|BroadcastShape([_, heads, ..])| heads > 1);
        let lists_by_head = problem.visibility.block_list.is_some_and(|list| list.heads > 1);
        let counts_heads = problem.dropout.is_some() || problem.user_terms.iter().any(Term::uses_head) || lists_by_head;
        if banks > 1 && (problem.want.lse || by_head(problem.visibility.mask) || by_head(problem.bias) || counts_heads) {
            let what = format!("lse, dropout, or a mask, bias, block list or user's term by head, of a cache in {banks} banks");
            return Err(Error::unsupported(what, "make the cache smaller, or ask for an adapter's own limits"));
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
            let words = CacheWords {
                state: self.size().state_words() as u32,
                kv_lengths: slots.start as u32,
                page_table: self.size().page_table(slots.start) as u32,
                num_heads: problem.dims.num_heads,
                first_head,
            };
            let plan = Plan::on_cache(&part, &self.caps, algorithm, fastest(&part), words)?;
            Ok((part, plan))
        };
        (0..banks).map(of_bank).collect()
    }
}
