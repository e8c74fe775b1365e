//! Tables that users' terms read and that have gradients, each by a pass of its own over all pairs.

use super::backward_unit::{Scratch, Work};
use super::job::{Cut, Unit};
use super::shared::Shared;
use super::user_grid::ByTable;
use super::user_terms::each_block;
use crate::custom::Owner;
use crate::custom::schedule::Schedule;
use crate::problem::{Operand, Problem};

/// Table that has an owner.
pub(super) struct Owned<'a> {
    table: ByTable<'a>,
    pub(super) elements: usize,
    /// For batch, key/value heads and rows: true if others of them add to other elements.
    pub(super) owns: [bool; 3],
}

/// All tables that have an owner, in the order of their gradients.
pub(super) fn owned(problem: &Problem) -> impl Iterator<Item = Owned<'_>> {
    problem.owned_tables().map(|table| {
        // Units that add to other elements of a table that is owned by pairs can run side by side.
        let strides = problem.strides_of(&table).filter(|_| table.gradient.owner == Owner::Pair);
        let owns = strides.map_or([false; 3], |strides| [0, 1, 2].map(|axis: usize| strides.axes[axis] != 0));
        let (index, slope) = (Schedule::new(&table.gradient.index), Schedule::new(&table.gradient.slope));
        Owned { elements: table.range.len(), owns, table: ByTable { term: table.term, index, slope } }
    })
}

/// Adds a unit's contribution to the copy of the gradient that starts at `start`.
pub(super) fn add(work: &Work<'_>, owned: &Owned<'_>, unit: &Unit, to: &Shared<'_, f32>, start: usize, scratch: &mut Scratch) {
    let job = &work.job;
    let Scratch { sides, block: buffers, tile, .. } = scratch;
    let sides = work.load(unit, sides, tile, &mut []);
    each_block(job, unit, (Operand::Key, true), buffers, |block| {
        for side in sides.iter_mut() {
            let Some(Cut { keys, .. }) = work.differentiate(unit, side, block, tile, Some(&owned.table)) else { continue };
            let (width, rows) = (side.panel.width, side.panel.rows);
            let len = width * keys.len();
            let (slopes, elements) = (tile.slopes.take(len), tile.users.elements(len));
            let d_table = if job.problem.softcap.is_some() { tile.capped.take(len) } else { tile.products.take(len) };
            let pairs = d_table.iter().zip(slopes).zip(elements).enumerate();
            for (_, ((d_table, _), element)) in pairs.filter(|(at, ((_, slope), _))| at % width < rows && **slope != 0.0) {
                let at = start + element.to_bits() as usize;
                // SAFETY: units that add to the same elements of a copy are in one task.
                let [sum] = (unsafe { to.slice(at..at + 1) }) else { unreachable!("one element") };
                *sum += d_table;
            }
        }
    });
}
