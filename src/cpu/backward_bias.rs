//! Gradient of an additive bias on the CPU: a separate pass, because dK and dV are divided into other tasks.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::backward_unit::{SCRATCH, Scratch, Work, units};
use super::job::{Block, KEY_BLOCK, Unit};
use super::shared::Shared;
use crate::problem::Operand;
use crate::{BroadcastShape, Progress, Result};

/// Limit on the elements of all copies of a bias together; one copy is always allowed.
const COPIES: usize = 1 << 24;

/// Computes the gradient in the shape of the bias.
///
/// Units that add to the same elements form one task, in a fixed order. Where that leaves too few tasks, the units are
/// split among tasks that add to copies of the gradient, and the copies are summed in order.
pub(super) fn gradient(work: &Work<'_>, threads: usize, control: &mut Progress<'_>) -> Result<Vec<f32>> {
    let job = &work.job;
    let shape = job.problem.bias.unwrap_or(BroadcastShape([0; 4]));
    let elements = shape.elements().unwrap_or(0);
    let mut groups: BTreeMap<[usize; 3], Vec<Unit>> = BTreeMap::new();
    for item in 0..job.items.len() {
        for kv_head in 0..job.problem.dims.num_kv_heads {
            for unit in units(job.problem, job.items, item, kv_head) {
                let own = |axis: usize, index: usize| if shape.0[axis] == 1 { 0 } else { index };
                groups.entry([own(0, item), own(1, kv_head), own(2, unit.first_row)]).or_default().push(unit);
            }
        }
    }
    let wanted = if threads == 1 { 1 } else { (2 * threads).div_ceil(groups.len().max(1)) };
    let copies = wanted.min(COPIES / elements.max(1)).max(1);
    let mut bias = vec![0.0; elements * copies];
    let shared = Shared::new(&mut bias);
    let tasks: Vec<(usize, &[Unit])> = groups
        .values()
        .flat_map(|group| group.chunks(group.len().div_ceil(copies)).enumerate().map(|(copy, units)| (copy * elements, units)))
        .collect();
    let run = |&(start, units): &(usize, &[Unit])| {
        SCRATCH.with_borrow_mut(|scratch| units.iter().for_each(|unit| add_unit(work, unit, shape, &shared, start, scratch)));
    };
    for (index, some) in tasks.chunks(4 * threads).enumerate() {
        control.report((index * 4 * threads) as f64 / tasks.len() as f64)?;
        if threads == 1 { some.iter().for_each(run) } else { some.par_iter().with_max_len(1).for_each(run) }
    }
    let (sum, others) = bias.split_at_mut(elements);
    for copy in others.chunks(elements.max(1)) {
        sum.iter_mut().zip(copy).for_each(|(x, copy)| *x += copy);
    }
    bias.truncate(elements);
    Ok(bias)
}

/// Adds a unit's contribution to the copy of the gradient that starts at `start`.
fn add_unit(work: &Work<'_>, unit: &Unit, shape: BroadcastShape, bias: &Shared<'_, f32>, start: usize, scratch: &mut Scratch) {
    let job = &work.job;
    let [of_batch, of_head, of_row, of_key] = shape.strides();
    let start = start + job.items[unit.item].batch * of_batch;
    let Scratch { sides, block: buffers, tile } = scratch;
    let sides = work.load(unit, sides, tile, &mut []);
    for first in unit.keys.clone().step_by(KEY_BLOCK) {
        let block = Block::read(job, unit, first, Operand::Key, buffers);
        for side in sides.iter_mut() {
            let Some((keys, _)) = work.differentiate(unit, side, &block, tile) else { continue };
            let width = side.panel.width;
            let d_bias = work.d_bias(tile, width * keys.len());
            for lane in 0..side.panel.rows {
                let (head, i) = unit.row(job.problem, side.panel.first + lane);
                let at = start + head * of_head + i * of_row + keys.start * of_key;
                // SAFETY: units that add to the same elements of a copy are in one task; the slice ends inside the copy.
                let to = unsafe { bias.slice(at..at + (keys.len() - 1) * of_key + 1) };
                let terms = d_bias.chunks_exact(width).map(|row| row[lane]);
                match to {
                    [to] if of_key == 0 => *to += terms.sum::<f32>(),
                    to => to.iter_mut().zip(terms).for_each(|(x, term)| *x += term),
                }
            }
        }
    }
}
