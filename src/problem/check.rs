//! Contradictions within a problem; those of its terms are found by the terms.

use super::Operand;
use super::inputs::Inputs;
use super::{PageTable, Paged, Problem, ScoreStage};
use crate::error::{Error, Result};
use crate::numbers::Hadamard;

impl Problem {
    /// Checks everything but the terms.
    pub(crate) fn check_sizes(&self) -> Result<()> {
        let d = &self.dims;
        for (argument, value) in [("head_dim", d.head_dim), ("head_dim_v", d.head_dim_v)] {
            if value == 0 {
                return Err(Error::invalid(argument, "is 0; it must be at least 1"));
            }
        }
        for (argument, rotates, width) in [("head_dim", self.key_hadamard, d.head_dim), ("head_dim_v", self.value_hadamard, d.head_dim_v)] {
            Hadamard::check(argument, rotates, width)?;
        }
        if !d.num_heads.is_multiple_of(d.num_kv_heads) {
            return Err(Error::invalid(
                "num_kv_heads",
                format!("num_heads = {} is not a multiple of num_kv_heads = {}", d.num_heads, d.num_kv_heads),
            ));
        }
        if let Some(scale) = self.scale
            && !scale.is_finite()
        {
            return Err(Error::invalid("scale", format!("{scale} is not finite")));
        }
        if let Some(probability) = self.dropout
            && !(0.0..1.0).contains(&probability)
        {
            return Err(Error::invalid("dropout", format!("{probability} is not a probability from 0 on and below 1")));
        }
        let v = &self.visibility;
        if v.prefix_lengths && !v.causal {
            return Err(Error::invalid("prefix_lengths", "a prefix lifts the causal bound, but the problem is not causal"));
        }
        for operand in Operand::ALL {
            let shape = self.shape(operand);
            if self.spec(operand).required_len(shape).and_then(|len| len.checked_mul(4)).is_none() {
                return Err(Error::invalid(operand.name(), format!("shape {shape:?} with its strides overflows")));
            }
            let spec = self.spec(operand);
            if spec.dtype.is_quantised() && matches!(operand, Operand::Query | Operand::Output) {
                return Err(Error::invalid(operand.name(), format!("is {}, which only keys and values can be", spec.dtype)));
            }
            spec.check_blocks(operand.name(), shape)?;
        }
        self.output.check_no_overlap("output", self.shape(Operand::Output))?;
        if [d.batch, d.num_heads, d.seq_len_q, d.seq_len_kv].iter().try_fold(4usize, |p, &n| p.checked_mul(n)).is_none()
            || d.seq_len_q > i32::MAX as usize
            || d.seq_len_kv > i32::MAX as usize
        {
            return Err(Error::invalid(
                "seq_len_kv",
                format!("{:?} is more than can be counted: lengths go up to {}", d.scores_shape(), i32::MAX),
            ));
        }
        if let Some(paged) = self.paged {
            paged.check(self)?;
        }
        if let Some(varlen) = self.varlen {
            let is_paged = self.paged.is_some();
            if (v.kv_lengths && !is_paged) || v.segments {
                return Err(Error::invalid(
                    "varlen",
                    "varlen sequences have their lengths and borders in cu_seqlens; leave kv_lengths and segments out",
                ));
            }
            if varlen.tokens_q < d.seq_len_q || (varlen.tokens_kv < d.seq_len_kv && !is_paged) {
                return Err(Error::invalid(
                    "varlen",
                    format!(
                        "the longest sequence ({} queries, {} keys) has more tokens than all together ({varlen:?})",
                        d.seq_len_q, d.seq_len_kv
                    ),
                ));
            }
        }
        Ok(())
    }
}

impl Paged {
    /// Checks the sizes against the rest of the problem.
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        let Self { page_size, pages, pages_per_item } = *self;
        if page_size == 0 {
            return Err(Error::invalid("page_size", "is 0; it must be at least 1"));
        }
        if pages > u32::MAX as usize {
            return Err(Error::invalid("pages", format!("{pages} cannot be counted in a table of u32")));
        }
        if problem.dims.batch.checked_mul(pages_per_item).is_none() {
            return Err(Error::invalid("pages_per_item", format!("a table of {pages_per_item} pages an item overflows")));
        }
        if !problem.visibility.kv_lengths {
            return Err(Error::invalid("kv_lengths", "paged keys have no length of their own: kv_lengths must be there"));
        }
        if problem.dims.seq_len_kv > pages_per_item.saturating_mul(page_size) {
            let why = format!("is {}, but {pages_per_item} pages of {page_size} hold less", problem.dims.seq_len_kv);
            return Err(Error::invalid("seq_len_kv", why));
        }
        if problem.varlen.is_some_and(|varlen| varlen.tokens_kv != 0) {
            return Err(Error::invalid("tokens_kv", "with paged keys only the queries are varlen: it must be 0"));
        }
        Ok(())
    }

    /// Checks that all pages in use are in the pool. The sizes of lengths and table have been checked.
    ///
    /// A page may be missing, [`PageTable::UNUSED`], if the problem sees none of its keys: caches with a window give such
    /// pages back.
    pub(crate) fn check_table(&self, problem: &Problem, inputs: &Inputs<'_>) -> Result<()> {
        let returns_all = matches!(problem.want.scores, Some(ScoreStage::Raw | ScoreStage::Capped));
        for (item, &length) in inputs.kv_lengths.iter().enumerate() {
            let used = &inputs.page_table[item * self.pages_per_item..][..(length as usize).div_ceil(self.page_size)];
            for (at, &page) in used.iter().enumerate().filter(|&(_, &page)| page as usize >= self.pages) {
                if page != PageTable::UNUSED || self.pages == 0 {
                    let why = format!("item {item} uses page {page} at {at}, but the pool has {} pages", self.pages);
                    return Err(Error::invalid("page_table", why));
                }
                let keys = at * self.page_size..((at + 1) * self.page_size).min(length as usize);
                if returns_all || !problem.hides(inputs, item, keys.clone()) {
                    let why = format!(
                        "item {item} has no page for its keys {keys:?}, but may see them or return their scores: give the problem the \
                         window of the cache, as the cache's own `problem` has it"
                    );
                    return Err(Error::invalid("page_table", why));
                }
            }
        }
        Ok(())
    }
}
