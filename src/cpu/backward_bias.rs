//! Gradient of an additive bias on the CPU: a separate pass, because dK and dV are divided into other tasks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::backward::units;
use super::backward_unit::{Forward, GradientTile, Scratch, Side, Visitor, visit};
use super::pack::Rows;
use super::shared::Shared;
use super::unit::{Job, Unit};
use crate::error::Result;
use crate::problem::BroadcastShape;
use crate::progress::Progress;

/// Limit on the elements of all copies of a bias together; one copy is always allowed.
const COPIES: usize = 1 << 24;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes the gradient in the shape of the bias.
///
/// Units that add to the same elements form one task, in a fixed order. Where that leaves too few tasks, the units are
/// split among tasks that add to copies of the gradient, and the copies are summed in order.
pub(super) fn gradient(job: &Job<'_>, forward: &Forward<'_>, threads: usize, control: &mut Progress<'_>) -> Result<Vec<f32>> {
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
    let groups: Vec<Vec<Unit>> = groups.into_values().collect();
    let wanted = if threads == 1 { 1 } else { (2 * threads).div_ceil(groups.len().max(1)) };
    let copies = wanted.min(COPIES / elements.max(1)).max(1);
    let mut bias = vec![0.0; elements * copies];
    {
        let shared = Shared::new(&mut bias);
        let tasks: Vec<(usize, &[Unit])> = groups
            .iter()
            .flat_map(|group| group.chunks(group.len().div_ceil(copies)).enumerate().map(|(copy, units)| (copy * elements, units)))
            .collect();
        let run = |&(start, units): &(usize, &[Unit])| {
            SCRATCH.with_borrow_mut(|scratch| units.iter().for_each(|unit| add_unit(job, forward, unit, shape, &shared, start, scratch)));
        };
        for (index, some) in tasks.chunks(4 * threads).enumerate() {
            control.report((index * 4 * threads) as f64 / tasks.len() as f64)?;
            if threads == 1 { some.iter().for_each(run) } else { some.par_iter().with_max_len(1).for_each(run) }
        }
    }
    let (sum, others) = bias.split_at_mut(elements);
    for copy in others.chunks(elements.max(1)) {
        sum.iter_mut().zip(copy).for_each(|(x, copy)| *x += copy);
    }
    bias.truncate(elements);
    Ok(bias)
}

/// Adds a unit's contribution to the copy of the gradient that starts at `start`.
fn add_unit(
    job: &Job<'_>,
    forward: &Forward<'_>,
    unit: &Unit,
    shape: BroadcastShape,
    bias: &Shared<'_, f32>,
    start: usize,
    scratch: &mut Scratch,
) {
    let batch = job.items[unit.item].batch;
    visit(job, forward, unit, scratch, &mut [], &mut AddingBias { job, unit, strides: shape.strides(), start, batch, bias });
}

/// Visitor that adds a unit's contribution to the gradient of the bias.
struct AddingBias<'a> {
    job: &'a Job<'a>,
    unit: &'a Unit,
    strides: [usize; 4],
    start: usize,
    batch: usize,
    bias: &'a Shared<'a, f32>,
}

impl Visitor for AddingBias<'_> {
    fn tile(&mut self, tile: &mut GradientTile, side: &mut Side, keys: &Range<usize>, _: Rows<'_>) {
        let width = side.panel.width;
        let d_bias = tile.d_bias(self.job, width * keys.len());
        let [of_batch, of_head, of_row, of_key] = self.strides;
        for lane in 0..side.panel.rows {
            let (head, i) = self.unit.row(self.job.problem, side.panel.first + lane);
            let at = self.start + self.batch * of_batch + head * of_head + i * of_row + keys.start * of_key;
            // SAFETY: units that add to the same elements of a copy are in one task; the slice ends inside the copy.
            let to = unsafe { self.bias.slice(at..at + (keys.len() - 1) * of_key + 1) };
            if of_key == 0 {
                to[0] += (0..keys.len()).map(|j| d_bias[j * width + lane]).sum::<f32>();
                continue;
            }
            for (j, x) in to.iter_mut().enumerate() {
                *x += d_bias[j * width + lane];
            }
        }
    }
}
