//! Sums of the weights of each key, in a second pass over the scores.
//!
//! Weights are exp(score - m) / l from the statistics of the finished rows. A unit owns a range of the keys of a key/value
//! head and visits the summed rows of its group, in order: no other unit adds to its sums, so that they do not depend on
//! which thread is faster.

use super::job::{Block, Job, Unit};
use super::shared::{LINE, Shared};
use super::softmax::Weights;
use super::tile::{Masking, Panel, Tile};
use super::unit::Scratch;
use super::user_grid::By;
use super::user_terms::each_block;
use crate::problem::{Operand, SummedRows};

/// Rows whose queries are in memory at a time.
const ROWS_AT_ONCE: usize = 256;

/// Divides the keys that the summed rows may see into at least `wanted` units, if they are enough. The sums of other keys
/// stay 0.
pub(super) fn units(job: &Job<'_>, summed: SummedRows, wanted: usize) -> Vec<Unit> {
    let d = &job.problem.dims;
    let parts = wanted.div_ceil((job.items.len() * d.num_kv_heads).max(1));
    let mut units = Vec::new();
    for (index, item) in job.items.iter().enumerate() {
        let count = summed.of(item.rows);
        let (first, rows) = (item.rows - count, count * d.group());
        let seen = item.seen_by_some(job.problem, first..item.rows);
        let step = seen.len().div_ceil(parts).next_multiple_of(job.key_block()).max(1);
        for kv_head in 0..d.num_kv_heads {
            units.extend(seen.clone().step_by(step).map(|start| {
                let keys = start..seen.end.min(start + step);
                Unit { item: index, kv_head, first_row: first * d.group(), rows, work: rows * keys.len(), keys, partial: None }
            }));
        }
    }
    units
}

/// Computes the sums of a unit's keys in `sums`, [batch, num_kv_heads, seq_len_kv].
pub(super) fn run(job: &Job<'_>, unit: &Unit, sums: &Shared<'_, f32>, scratch: &mut Scratch) {
    let (d, batch) = (&job.problem.dims, job.items[unit.item].batch);
    let start = (batch * d.num_kv_heads + unit.kv_head) * d.seq_len_kv;
    // SAFETY: each key of a head belongs to one unit.
    let sums = unsafe { sums.slice(start + unit.keys.start..start + unit.keys.end) };
    let Scratch { panels, block: buffers, tile } = scratch;
    let widest = job.isa.panel();
    for first in (0..unit.rows).step_by(ROWS_AT_ONCE) {
        let some = Unit { first_row: unit.first_row + first, rows: ROWS_AT_ONCE.min(unit.rows - first), ..unit.clone() };
        let count = some.rows.div_ceil(widest);
        if panels.len() < count {
            panels.resize_with(count, Panel::default);
        }
        let panels = &mut panels[..count];
        panels.iter_mut().enumerate().for_each(|(p, panel)| load(job, &some, panel, p * widest, tile));
        let reads_rows = panels.iter().any(|panel| !panel.is_packed);
        each_block(job, &some, (Operand::Value, reads_rows), buffers, |block| {
            panels.iter_mut().for_each(|panel| add(job, &some, panel, block, tile, sums));
        });
    }
}

/// Loads a panel with the statistics of its rows.
fn load(job: &Job<'_>, unit: &Unit, panel: &mut Panel, first: usize, tile: &mut Tile) {
    panel.load(job, unit, first, &mut tile.rows);
    let Some(stats) = &job.stats else { return };
    let (max, factor) = (panel.max.take(panel.width), panel.sum.take(panel.width));
    for r in 0..panel.rows {
        let (head, i) = unit.row(job.problem, first + r);
        let at = job.items[unit.item].lse_place(job.problem, head, i);
        // SAFETY: all rows are finished; nothing writes statistics any more.
        let [m, l] = unsafe { stats.slice(at..at + 1) }[0];
        (max[r], factor[r]) = if l == 0.0 { (0.0, 0.0) } else { (m, 1.0 / l) };
    }
}

/// Adds the weights of a panel and a block of keys to the sums of the unit's keys.
fn add(job: &Job<'_>, unit: &Unit, panel: &mut Panel, block: &Block<'_>, tile: &mut Tile, sums: &mut [f32]) {
    let Some(cut) = block.cut(&panel.some) else { return };
    let (width, count) = (panel.width, cut.keys.len());
    let grid = panel.grid(job, unit, &cut.keys, block.tests_users);
    let masking = tile.masking(panel, &grid);
    if masking == Masking::Everything {
        return;
    }
    tile.score(job, panel, cut.key, cut.packed_key);
    tile.modify(job, width, count, masking, job.problem.softcap);
    tile.apply_scale(job, width, count);
    tile.apply_user_terms(&grid, By::Nothing);
    let (max, factor) = (panel.max.take(width), panel.sum.take(width));
    job.isa.run(Weights { panel: width, scores: tile.scores.take(width * count), max, factor });
    let sums = &mut sums[cut.keys.start - unit.keys.start..][..count];
    for (sum, weights) in sums.iter_mut().zip(tile.scores.take(width * count).chunks_exact(width)) {
        *sum += sum_of(&weights[..panel.rows]);
    }
}

/// Sum of some weights, by so many running sums that compilers use vectors.
fn sum_of(weights: &[f32]) -> f32 {
    let lines = weights.chunks_exact(LINE);
    let rest: f32 = lines.remainder().iter().sum();
    let mut sums = [0.0f32; LINE];
    lines.for_each(|line| sums.iter_mut().zip(line).for_each(|(sum, weight)| *sum += weight));
    rest + sums.iter().sum::<f32>()
}
