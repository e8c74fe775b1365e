//! Gradient of the additive bias: those of the scores, summed over the bias's broadcast axes.

use std::ops::Range;

use super::job::{Job, Unit};
use super::pack::Transpose;
use super::shared::{Buffer, Shared};
use super::tile::{Panel, Tile, softcap_before_biases};
use crate::problem::{BroadcastShape, Problem};

/// Picks the gradients of the biases, [key][lane], among the buffers of the tile that was differentiated last.
pub(super) fn d_bias<'t>(problem: &Problem, capped: &'t mut Buffer, products: &'t mut Buffer) -> &'t mut Buffer {
    if softcap_before_biases(problem).is_some() { capped } else { products }
}

/// Adds the tile of a panel's rows and these keys, which was differentiated last, to the copy of the gradient that begins
/// at `start`.
///
/// # Safety
/// Nothing else adds to the same elements of the copy meanwhile.
pub(super) unsafe fn add_tile(
    job: &Job<'_>,
    unit: &Unit,
    panel: &Panel,
    keys: Range<usize>,
    tile: &mut Tile,
    (bias, start): (&Shared<'_, f32>, usize),
) {
    let [of_batch, of_head, of_row, of_key] = job.problem.bias.map_or([0; 4], BroadcastShape::strides);
    let (width, count) = (panel.width, keys.len());
    let start = start + job.items[unit.item].batch * of_batch + keys.start * of_key;
    let from = d_bias(job.problem, &mut tile.capped, &mut tile.products).take(width * count);
    let rows = tile.rows.take(width * count);
    job.isa.run(Transpose { rows: count, columns: width, from, from_step: width, to: rows });
    for (lane, row) in rows.chunks_exact(count).take(panel.rows).enumerate() {
        let (head, i) = unit.row(job.problem, panel.first + lane);
        let at = start + head * of_head + i * of_row;
        // SAFETY: not aliased, by contract; the slice ends inside the copy.
        match unsafe { bias.slice(at..at + (count - 1) * of_key + 1) } {
            [to] if of_key == 0 => *to += row.iter().sum::<f32>(),
            to => to.iter_mut().zip(row).for_each(|(x, term)| *x += term),
        }
    }
}
