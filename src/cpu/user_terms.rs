//! Blocks of rows and keys that the masks of users' terms show.

use std::ops::Range;

use super::job::{Block, BlockBuffers, Job, KEY_BLOCK, Unit, Use};
use super::tile_list::TileList;
use super::user_term::UserTerm;
use super::visible::Item;
use crate::custom::tile::Status;
use crate::problem::{Operand, Problem};

/// Parts of a unit's keys that [`work`] asks the masks for.
const PARTS: usize = 16;

/// Status of some rows of a unit, counted from its first, and keys, by the masks and, if there is one, the list of tiles.
fn status(
    (users, list): (&[UserTerm<'_>], Option<&TileList>),
    problem: &Problem,
    item: &Item,
    unit: &Unit,
    rows: Range<usize>,
    keys: &Range<usize>,
) -> Status {
    if users.iter().all(|term| term.rule.is_none()) || rows.is_empty() || keys.is_empty() {
        return Status::All;
    }
    TileList::status(list, users, problem, (item, unit.kv_head), &unit.tile(problem, item.batch, rows, keys.clone()))
}

/// Status of some rows of a unit of a job, counted from its first, and keys.
pub(super) fn of_job(job: &Job<'_>, unit: &Unit, rows: Range<usize>, keys: &Range<usize>) -> Status {
    status((&job.users, job.list), job.problem, &job.items[unit.item], unit, rows, keys)
}

/// Estimates the number of pairs of a unit that are computed.
pub(super) fn work(users: &[UserTerm<'_>], problem: &Problem, item: &Item, unit: &Unit) -> usize {
    let step = unit.keys.len().div_ceil(PARTS).max(KEY_BLOCK);
    let parts = unit.keys.clone().step_by(step).map(|start| {
        let keys = start..unit.keys.end.min(start + step);
        if status((users, None), problem, item, unit, 0..unit.rows, &keys) == Status::None { 0 } else { keys.len() }
    });
    unit.rows * parts.sum::<usize>()
}

/// Reads each block of the unit's keys and calls `run` with it, in order, but not where the masks hide all of it. The rows of
/// the operand `summed` will be multiplied by weights and added; without `reads_rows`, rows that are packed may be left unread.
pub(super) fn each_block(
    job: &Job<'_>,
    unit: &Unit,
    (summed, reads_rows): (Operand, bool),
    buffers: &mut BlockBuffers,
    mut run: impl FnMut(&Block<'_>),
) {
    let (block, engine) = (job.key_block(), job.engine());
    let use_of = Use { summed, engine: engine.as_ref(), reads_rows };
    let mut run = |start, tests_users| run(&Block::read(job, unit, start, tests_users, use_of, buffers));
    if job.users.is_empty() {
        return unit.keys.clone().step_by(block).for_each(|start| run(start, false));
    }
    // Halves whose status is unknown, the next one last.
    let mut parts = vec![unit.keys.clone()];
    while let Some(part) = parts.pop() {
        match of_job(job, unit, 0..unit.rows, &part) {
            Status::None => {}
            Status::Some if part.len() > block => {
                let middle = part.start + (part.len() / 2).next_multiple_of(block);
                parts.extend([middle..part.end, part.start..middle]);
            }
            status => part.step_by(block).for_each(|start| run(start, status == Status::Some)),
        }
    }
}
