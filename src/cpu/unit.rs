//! Unit of work: some query rows of one key/value head against a range of keys.

use super::job::{Block, BlockBuffers, Cut, Job, Unit, Use};
use super::narrow;
use super::pack::Transpose;
use super::shared::Shared;
use super::softmax::Weights;
use super::tile::{Masking, Panel, Tile, softcap_before_biases};
use super::user_grid::By;
use super::user_terms::each_block;
use crate::problem::{Operand, ScoreStage};

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) panels: Vec<Panel>,
    pub(super) block: BlockBuffers,
    pub(super) tile: Tile,
}

/// Computes a unit and writes its results.
pub(super) fn run(job: &Job<'_>, unit: &Unit, scratch: &mut Scratch) {
    let Scratch { panels, block: buffers, tile } = scratch;
    let widest = job.isa.panel();
    let count = unit.rows.div_ceil(widest);
    if panels.len() < count {
        panels.resize_with(count, Panel::default);
    }
    let panels = &mut panels[..count];
    // Statistics must come from scores computed in panels, as in the backward pass.
    if unit.rows * 2 <= job.isa.lanes() && job.scores.is_none() && job.weights.is_none() && job.stats.is_none() {
        let [key, value, ..] = buffers;
        return narrow::run(job, unit, &mut panels[0], tile, [key, value]);
    }
    for (p, panel) in panels.iter_mut().enumerate() {
        panel.load(job, unit, p * widest, &mut tile.rows);
    }
    let reads_rows = panels.iter().any(|panel| !panel.is_packed);
    each_block(job, unit, (Operand::Value, reads_rows), buffers, |block| {
        for panel in panels.iter_mut() {
            accumulate(job, unit, panel, block, tile);
        }
    });
    for panel in panels {
        finish(job, unit, panel, tile);
        if job.scores.is_some() || job.weights.is_some() {
            write_scores(job, unit, panel, tile, buffers);
        }
    }
}

/// Folds the block's keys in the rows' intervals into the panel's running max, running sum and output.
fn accumulate(job: &Job<'_>, unit: &Unit, panel: &mut Panel, block: &Block<'_>, tile: &mut Tile) {
    let Some(cut) = block.cut(&panel.some) else { return };
    let grid = panel.grid(job, unit, &cut.keys, block.tests_users);
    let masking = tile.masking(panel, &grid);
    if masking == Masking::Everything {
        return;
    }
    tile.score(job, panel, cut.key, cut.packed_key);
    tile.modify(job, panel.width, cut.keys.len(), masking, job.problem.softcap);
    tile.apply_user_terms(&grid, By::Nothing);
    let (Some(plan), Some(values)) = (job.matrix, cut.packed_value) else {
        return add(job, unit, panel, block, &cut, tile);
    };
    tile.softmax(job, panel, cut.keys.len(), Some(plan));
    panel.add_packed(job, plan, values, cut.keys.len(), tile);
}

/// Folds the modified scores of some keys into a panel's running max, running sum and output.
fn add(job: &Job<'_>, unit: &Unit, panel: &mut Panel, block: &Block<'_>, cut: &Cut<'_>, tile: &mut Tile) {
    let Cut { keys, value, .. } = cut;
    let (value, width, len) = (*value, panel.width, panel.width * keys.len());
    let finite = job.output.is_none() || block.is_finite(); // a score that overflows to -inf hides, whatever `masking` says
    if !finite {
        tile.keep_scores(len);
    }
    tile.softmax(job, panel, keys.len(), None);
    if job.output.is_none() {
        return;
    }
    if job.problem.dropout_rule().is_some() {
        tile.drop(job, unit, panel, keys);
        tile.scores.take(len).iter_mut().zip(tile.dropout_mask.take(len)).for_each(|(weight, factor)| *weight *= *factor);
    }
    let used = if finite { value } else { value.cleaned(&mut tile.clean) };
    panel.add(job, used, tile.scores.take(len), Some(tile.alpha.take(width)));
    if finite {
        return;
    }
    // A value that is NaN or infinite is added to only those rows that it is visible to: a weight of 0 times infinity must
    // not reach the others.
    let output = panel.output.take(width * value.width);
    for j in 0..keys.len() {
        for (e, &x) in value.row(j).iter().enumerate().filter(|(_, x)| !x.is_finite()) {
            for lane in (0..panel.rows).filter(|lane| tile.sees(j * width + lane)) {
                output[e * width + lane] += tile.scores.get(j * width + lane) * x;
            }
        }
    }
}

/// Writes the results of a panel's rows. Replaces `sum` by the factors that normalise the weights.
fn finish(job: &Job<'_>, unit: &Unit, panel: &mut Panel, tile: &mut Tile) {
    let head_dim_v = job.problem.dims.head_dim_v;
    let rows = panel.output_rows(job, head_dim_v, &mut tile.rows);
    let (max, sum) = (panel.max.take(panel.width), panel.sum.take(panel.width));
    for (r, row) in rows.chunks_exact_mut(head_dim_v).take(panel.rows).enumerate() {
        sum[r] = job.hand_out_row(unit, panel.first + r, row, max[r], sum[r]);
    }
}

/// Writes the scores and weights that are asked for, in a second pass over all keys, masked ones included. `panel` must
/// be finished. Blocks are those of the first pass, so that scores are the same.
fn write_scores(job: &Job<'_>, unit: &Unit, panel: &mut Panel, tile: &mut Tile, buffers: &mut BlockBuffers) {
    let engine = job.engine();
    for range in [0..unit.keys.start, unit.keys.clone(), unit.keys.end..job.items[unit.item].keys] {
        let part = Unit { keys: range.clone(), ..unit.clone() };
        for start in range.clone().step_by(job.key_block()) {
            let use_of = Use { summed: Operand::Key, engine: engine.as_ref(), reads_rows: !panel.is_packed };
            let block = Block::read(job, &part, start, true, use_of, buffers);
            if let Some(cut) = block.cut(&range) {
                write_block(job, unit, panel, tile, &cut);
            }
        }
    }
}

/// Writes the scores and weights of some keys.
fn write_block(job: &Job<'_>, unit: &Unit, panel: &mut Panel, tile: &mut Tile, cut: &Cut<'_>) {
    let (width, start, count) = (panel.width, cut.keys.start, cut.keys.len());
    if let Some((stage @ (ScoreStage::Raw | ScoreStage::Capped), scores)) = &job.scores {
        tile.score(job, panel, cut.key, cut.packed_key);
        let softcap = softcap_before_biases(job.problem).filter(|_| *stage == ScoreStage::Capped);
        tile.modify(job, width, count, Masking::Nothing, softcap);
        tile.apply_scale(job, width, count);
        write_rows(job, unit, panel, tile, start, count, scores);
        if job.weights.is_none() {
            return;
        }
    }
    tile.score(job, panel, cut.key, cut.packed_key);
    let grid = panel.grid(job, unit, &cut.keys, true);
    let masking = tile.masking(panel, &grid);
    tile.modify(job, width, count, masking, job.problem.softcap);
    tile.apply_scale(job, width, count);
    tile.apply_user_terms(&grid, By::Nothing);
    if let Some((ScoreStage::Masked, scores)) = &job.scores {
        write_rows(job, unit, panel, tile, start, count, scores);
    }
    if let Some(weights) = &job.weights {
        let (max, factor) = (panel.max.take(width), panel.sum.take(width));
        job.isa.run(Weights { panel: width, scores: tile.scores.take(width * count), max, factor });
        write_rows(job, unit, panel, tile, start, count, weights);
    }
}

/// Writes the tile's elements to rows of [batch, num_heads, seq_len_q, seq_len_kv], from key `start` on.
fn write_rows(job: &Job<'_>, unit: &Unit, panel: &Panel, tile: &mut Tile, start: usize, keys: usize, to: &Shared<'_, f32>) {
    let d = &job.problem.dims;
    let (from, rows) = (tile.scores.take(panel.width * keys), tile.rows.take(panel.width * keys));
    job.isa.run(Transpose { rows: keys, columns: panel.width, from, from_step: panel.width, to: rows });
    for (r, row) in rows.chunks_exact(keys).take(panel.rows).enumerate() {
        let (head, i) = unit.row(job.problem, panel.first + r);
        let at = ((job.items[unit.item].batch * d.num_heads + head) * d.seq_len_q + i) * d.seq_len_kv + start;
        // SAFETY: each row belongs to one unit.
        unsafe { to.slice(at..at + keys) }.copy_from_slice(row);
    }
}
