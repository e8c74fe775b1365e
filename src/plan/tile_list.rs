//! The step that finds which tiles users' masks show, for the kernels that follow to skip by.

use super::builder::Builder;
use super::limits::grid;
use super::step::BufferRef;
use crate::error::Result;
use crate::problem::{BlockList, Problem};
use crate::wgsl::{Kernel, Params, Slot};

/// Returns the list that `kernels` kernels share, if each of its tiles is used more than once: else a kernel's own vote
/// over the tile's pairs costs as much.
pub(super) fn wanted(problem: &Problem, kernels: usize) -> Option<BlockList> {
    let uses = |list: &BlockList| kernels * problem.dims.num_heads / list.heads * problem.dims.batch / list.batch.max(1);
    problem.tile_list().filter(|list| uses(list) > 1)
}

/// Returns `params` with a list that starts at word `start` of the tables.
pub(super) fn placed(params: Params, problem: &Problem, list: BlockList, start: usize) -> Result<Params> {
    let items = if list.batch == 1 { 0 } else { list.words(&problem.dims) / list.batch.max(1) };
    let (list_start, list_item_words) = (grid(start)?, items as u32);
    Ok(Params { list_start, list_share: (problem.dims.num_heads / list.heads) as u32, list_item_words, ..params })
}

/// Adds the step that writes the list to `bits`, and copies the first `table_words` of the tables in front of it.
pub(super) fn push(plan: &mut Builder<'_>, params: Params, list: BlockList, bits: BufferRef) -> Result<()> {
    let d = plan.problem.dims;
    let workgroups = list.words(&d).max(params.table_words.div_ceil(64) as usize);
    let pairs = list.words(&d) as f64 * f64::from(list.rows * list.keys * 32);
    let key = plan.key(false, Kernel::TileList);
    plan.push(key, Params { end_workgroup: grid(workgroups)?, ..params }, 20.0 * pairs, |slot| (slot == Slot::Bits).then_some(bits))
}

/// Adds a list to a forward plan. Returns the params that find it, and the buffer that takes the place of the tables; `None`
/// where it would not fit.
pub(super) fn forward(plan: &mut Builder<'_>, params: Params) -> Result<Option<(Params, BufferRef)>> {
    let problem = plan.problem;
    let Some(list) = wanted(problem, 1 + usize::from(problem.want.key_sums.is_some())) else { return Ok(None) };
    let words = plan.table_words as usize + list.words(&problem.dims);
    if 4 * words as u64 > plan.scratch_left().min(plan.caps.binding_bytes) {
        return Ok(None);
    }
    let bits = plan.scratch("tables and list of visible tiles", 4 * words as u64)?;
    let table_words = plan.table_words;
    let params = placed(params, problem, list, table_words as usize)?;
    let own = placed(plan.params(), problem, list, table_words as usize)?;
    push(plan, Params { table_words, ..own }, list, bits)?;
    Ok(Some((params, bits)))
}
