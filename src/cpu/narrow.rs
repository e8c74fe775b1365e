//! Units of few rows, as in decoding: rows are contiguous, and the lanes of a vector are dims. Reading keys and values
//! once dominates the time; a panel of mostly empty lanes would take longer.
//!
//! Matrices are [row][dim] and [row][key], with rows padded to whole cache lines.

use std::ops::Range;

use super::job::{Job, KEY_BLOCK, Unit};
use super::pack::Rows;
use super::product::{Dots, Product, Start};
use super::shared::{Buffer, LINE};
use super::softmax::RowSoftmax;
use super::tile::{AdditiveMask, Masking, Panel, Tile};
use super::user_grid::{By, Grid, Step};
use crate::numbers::DType;
use crate::problem::Operand;

/// Keys between two rescalings where rows are read in place: long runs of keys, then of values. For 16 x 8 heads of
/// 2048 x 64, 256 took 5 % longer, 64 took 20 %. Copies use [`KEY_BLOCK`], so that they fit in the first-level cache.
const BLOCK_IN_PLACE: usize = 1024;
/// Keys whose weighted values are summed in one chain of multiply-adds.
const CHAIN: usize = 64;
/// Prefetch distance for rows read in place, in elements: 8 KiB.
const AHEAD: usize = 2048;

/// Prefetch distance for an operand whose rows can be read in place, because they are f32 and whole cache lines.
fn ahead(job: &Job<'_>, operand: Operand) -> Option<usize> {
    (job.problem.spec(operand).dtype == DType::F32 && job.problem.shape(operand)[3].is_multiple_of(LINE)).then_some(AHEAD)
}

/// Computes a unit and writes its results.
pub(super) fn run(job: &Job<'_>, unit: &Unit, panel: &mut Panel, tile: &mut Tile, [key_buffer, value_buffer]: [&mut Buffer; 2]) {
    let d = &job.problem.dims;
    let (query_step, output_step) = (d.head_dim.next_multiple_of(LINE), d.head_dim_v.next_multiple_of(LINE));
    for (r, to) in panel.query.take(unit.rows * query_step).chunks_exact_mut(query_step).enumerate() {
        let (to, padding) = to.split_at_mut(d.head_dim);
        job.read_query(unit, r, to);
        padding.fill(0.0);
    }
    panel.output.take(unit.rows * output_step).fill(0.0);
    panel.max.take(unit.rows).fill(f32::MIN);
    panel.sum.take(unit.rows).fill(0.0);
    let [key_in_place, value_in_place] = [Operand::Key, Operand::Value].map(|operand| ahead(job, operand).is_some());
    let block = if key_in_place && value_in_place && job.problem.paged.is_none() { BLOCK_IN_PLACE } else { KEY_BLOCK };
    for start in unit.keys.clone().step_by(block) {
        let keys = start..unit.keys.end.min(start + block);
        let step = Step::Rows(keys.len().next_multiple_of(LINE));
        let grid = Grid { job, unit, rows: 0..unit.rows, keys: keys.clone(), step, tests: true };
        if !tile.may_see(&grid) {
            continue;
        }
        let key = job.key_rows(unit, Operand::Key, &keys, key_in_place, key_buffer);
        let value = job.key_rows(unit, Operand::Value, &keys, value_in_place, value_buffer);
        let query = panel.query.take(unit.rows * query_step);
        score(&grid, Rows { data: query, count: unit.rows, width: d.head_dim, step: query_step }, key, tile);
        accumulate(job, unit, panel, &keys, value, tile);
    }
    let (max, sum) = (panel.max.take(unit.rows), panel.sum.take(unit.rows));
    for (r, row) in panel.output.take(unit.rows * output_step).chunks_exact_mut(output_step).enumerate() {
        job.hand_out_row(unit, r, &mut row[..d.head_dim_v], max[r], sum[r]);
    }
}

/// Computes the scores of some keys, -inf where masked.
fn score(grid: &Grid<'_>, query: Rows<'_>, key: Rows<'_>, tile: &mut Tile) {
    let (job, unit, keys) = (grid.job, grid.unit, &grid.keys);
    let step = keys.len().next_multiple_of(LINE);
    let scores = tile.scores.take(unit.rows * step);
    job.isa.run(Dots { query, key, ahead: ahead(job, Operand::Key), scores, scores_step: step });
    let mut kind = Masking::Nothing;
    if tile.has_additive_mask(job) {
        let to = tile.additive_mask.take(unit.rows * step);
        job.isa.run(AdditiveMask { job, unit, rows: 0..unit.rows, keys: keys.clone(), to, step, kind: &mut kind });
        kind = Masking::Additive;
    }
    tile.scale = 1.0;
    tile.modify(job, step, unit.rows, kind, job.problem.softcap);
    tile.apply_user_terms(grid, By::Nothing);
    for (r, row) in tile.scores.take(unit.rows * step).chunks_exact_mut(step).enumerate() {
        let seen = job.items[unit.item].interval(job.problem, unit.row(job.problem, r).1);
        let inside = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
        row[..inside(seen.start)].fill(f32::NEG_INFINITY);
        row[inside(seen.end)..].fill(f32::NEG_INFINITY);
    }
}

/// Folds the scored keys into running max, running sum and output.
fn accumulate(job: &Job<'_>, unit: &Unit, panel: &mut Panel, keys: &Range<usize>, value: Rows<'_>, tile: &mut Tile) {
    let (count, step, output_step) = (keys.len(), keys.len().next_multiple_of(LINE), value.width.next_multiple_of(LINE));
    let scores = tile.scores.take(unit.rows * step);
    let any_masked = scores.iter().fold(false, |any, &score| any | (score == f32::NEG_INFINITY));
    let finite = job.output.is_none() || !any_masked || value.is_finite();
    if !finite {
        tile.keep_scores(unit.rows * step);
    }
    let (scores, alpha) = (tile.scores.take(unit.rows * step), tile.alpha.take(unit.rows));
    job.isa.run(RowSoftmax { scores, scores_step: step, max: panel.max.take(unit.rows), sum: panel.sum.take(unit.rows), alpha });
    if job.output.is_none() {
        return;
    }
    if let Some(rule) = job.problem.dropout_rule() {
        let batch = job.items[unit.item].batch;
        for (r, row) in scores.chunks_exact_mut(step).enumerate() {
            let (head, i) = unit.row(job.problem, r);
            for (key, weight) in keys.clone().zip(row) {
                let word = job.inputs.dropout.words(batch * job.problem.dims.num_heads + head, i, key / 4)[key % 4];
                *weight *= rule.scale(word);
            }
        }
    }
    let used = if finite { value } else { value.cleaned(&mut tile.clean) };
    let part = tile.rows.take(unit.rows * output_step);
    for chain in (0..count).step_by(CHAIN) {
        job.isa.run(Product {
            a: Rows { data: &scores[chain..], count: unit.rows, width: CHAIN.min(count - chain), step },
            transposed: false,
            b: &used.data[chain * used.step..],
            b_step: used.step,
            c: &mut *part,
            c_step: output_step,
            width: output_step,
            start: if chain == 0 { Start::Nothing } else { Start::There },
            ahead: ahead(job, Operand::Value),
        });
    }
    let output = panel.output.take(unit.rows * output_step);
    for ((row, part), &mut alpha) in output.chunks_exact_mut(output_step).zip(part.chunks_exact(output_step)).zip(alpha) {
        row.iter_mut().zip(part).for_each(|(x, part)| *x = *x * alpha + part);
    }
    if finite {
        return;
    }
    // Values that are NaN or infinite are added to only those rows that they are visible to.
    for (r, row) in output.chunks_exact_mut(output_step).enumerate() {
        for j in (0..count).filter(|j| tile.sees(r * step + j)) {
            let weight = tile.scores.get(r * step + j);
            let unfinite = row.iter_mut().zip(value.row(j)).filter(|(_, value)| !value.is_finite());
            unfinite.for_each(|(x, &value)| *x += weight * value);
        }
    }
}
