//! Units of few rows, as in decoding: rows are contiguous, and the lanes of a vector are dims. Reading keys and values
//! once dominates the time; a panel of mostly empty lanes would take longer.
//!
//! Matrices are [row][dim] and [row][key], with rows padded to whole cache lines.

use std::ops::Range;

use half::{bf16, f16};

use super::job::{Job, KEY_BLOCK, Unit};
use super::pack::{Element, Rows};
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
/// Prefetch distance for rows read in place, in bytes.
const AHEAD: usize = 8192;

/// Keys or values: in place where they are contiguous floats of whole vectors, else a copy.
enum KeyRows<'a> {
    F32(Rows<'a>),
    F16(Rows<'a, f16>),
    BF16(Rows<'a, bf16>),
}

/// Applies a generic function to rows of any type.
macro_rules! of_any {
    ($rows:expr, $function:expr) => {
        match $rows {
            KeyRows::F32(rows) => $function(rows),
            KeyRows::F16(rows) => $function(rows),
            KeyRows::BF16(rows) => $function(rows),
        }
    };
}

impl<'a> KeyRows<'a> {
    fn read(job: &'a Job<'_>, unit: &Unit, operand: Operand, keys: &Range<usize>, scratch: &'a mut Buffer) -> Self {
        let in_place = is_in_place(job, operand);
        if in_place && let Some(rows) = job.rows_in_place(unit, operand, keys) {
            return Self::F16(rows);
        }
        if in_place && let Some(rows) = job.rows_in_place(unit, operand, keys) {
            return Self::BF16(rows);
        }
        Self::F32(job.key_rows(unit, operand, keys, in_place, scratch))
    }
}

/// True if rows of an operand can be read in place, because they are whole vectors of floats. Browsers have a small download instead of
/// kernels for 16 bits.
fn is_in_place(job: &Job<'_>, operand: Operand) -> bool {
    let dtype = job.problem.spec(operand).dtype;
    let is_read = dtype == DType::F32 || DType::FLOATS.contains(&dtype) && !cfg!(target_arch = "wasm32");
    is_read && job.problem.shape(operand)[3].is_multiple_of(LINE)
}

/// Prefetch distance, in elements, for rows read in place.
fn ahead<T>(job: &Job<'_>, operand: Operand) -> Option<usize> {
    is_in_place(job, operand).then_some(AHEAD / size_of::<T>())
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
    let in_place = [Operand::Key, Operand::Value].into_iter().all(|operand| is_in_place(job, operand));
    let block = if in_place && job.problem.paged.is_none() { BLOCK_IN_PLACE } else { KEY_BLOCK };
    for start in unit.keys.clone().step_by(block) {
        let keys = start..unit.keys.end.min(start + block);
        let step = Step::Rows(keys.len().next_multiple_of(LINE));
        let grid = Grid { job, unit, rows: 0..unit.rows, keys: keys.clone(), step, tests: true };
        if !tile.may_see(&grid) {
            continue;
        }
        let key = KeyRows::read(job, unit, Operand::Key, &keys, key_buffer);
        let value = KeyRows::read(job, unit, Operand::Value, &keys, value_buffer);
        let query = Rows { data: panel.query.take(unit.rows * query_step), count: unit.rows, width: d.head_dim, step: query_step };
        of_any!(key, |key| score(&grid, query, key, tile));
        of_any!(value, |value| accumulate(job, unit, panel, &keys, value, tile));
    }
    let (max, sum) = (panel.max.take(unit.rows), panel.sum.take(unit.rows));
    for (r, row) in panel.output.take(unit.rows * output_step).chunks_exact_mut(output_step).enumerate() {
        job.hand_out_row(unit, r, &mut row[..d.head_dim_v], max[r], sum[r]);
    }
}

/// Computes the scores of some keys, -inf where masked.
fn score<T: Element>(grid: &Grid<'_>, query: Rows<'_>, key: Rows<'_, T>, tile: &mut Tile) {
    let (job, unit, keys) = (grid.job, grid.unit, &grid.keys);
    let step = keys.len().next_multiple_of(LINE);
    let scores = tile.scores.take(unit.rows * step);
    job.isa.run(Dots { query, key, ahead: ahead::<T>(job, Operand::Key), scores, scores_step: step });
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
fn accumulate<T: Element>(job: &Job<'_>, unit: &Unit, panel: &mut Panel, keys: &Range<usize>, value: Rows<'_, T>, tile: &mut Tile) {
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
    let part = tile.rows.take(unit.rows * output_step);
    let weights = Rows { data: scores, count: unit.rows, width: count, step };
    match finite {
        true => weighted(job, weights, value, ahead::<T>(job, Operand::Value), part),
        false => weighted(job, weights, value.cleaned(&mut tile.clean), None, part),
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
            unfinite.for_each(|(x, value)| *x += weight * value.widen());
        }
    }
}

/// Sums weighted rows: `part[r] = sum over k of weights[r][k] * value[k]`, with rows padded to whole cache lines.
fn weighted<T: Element>(job: &Job<'_>, weights: Rows<'_>, value: Rows<'_, T>, ahead: Option<usize>, part: &mut [f32]) {
    let width = part.len() / weights.count;
    for chain in (0..weights.width).step_by(CHAIN) {
        job.isa.run(Product {
            a: Rows { data: &weights.data[chain..], width: CHAIN.min(weights.width - chain), ..weights },
            transposed: false,
            b: &value.data[chain * value.step..],
            b_step: value.step,
            c: &mut *part,
            c_step: width,
            width,
            start: if chain == 0 { Start::Nothing } else { Start::There },
            ahead,
        });
    }
}
