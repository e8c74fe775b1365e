//! Units of few rows, as in decoding: rows are contiguous, and the lanes of a vector are dims. Reading keys and values
//! once dominates the time; a panel of mostly empty lanes would take longer.

use std::ops::Range;

use super::pack::{Rows, all_finite};
use super::product::{Dots, Product, Start};
use super::shared::{Buffer, LINE};
use super::softmax::{Modify, RowSoftmax};
use super::unit::{Job, KEY_BLOCK, Unit, hand_out_row, key_rows};
use super::visible::{AdditiveMask, Item, MaskKind};
use crate::numbers::DType;
use crate::problem::{Operand, ScoreOrder};

/// Keys between two rescalings where rows are read in place: long runs of keys, then of values. For 16 x 8 heads of
/// 2048 x 64, 256 took 5 % longer, 64 took 20 %. Copies use [`KEY_BLOCK`], so that they fit in the first-level cache.
const BLOCK_IN_PLACE: usize = 1024;
/// Keys whose weighted values are summed in one chain of multiply-adds.
const CHAIN: usize = 64;
/// Prefetch distance for rows read in place, in elements: 8 KiB.
const AHEAD: usize = 2048;

/// Scratch memory of one thread. The rows of its matrices are padded to whole cache lines.
#[derive(Default)]
pub(super) struct Narrow {
    query: Buffer,
    output: Buffer,
    /// Weighted values of one block of keys.
    part: Buffer,
    scores: Buffer,
    before: Buffer,
    additive_mask: Buffer,
    max: Buffer,
    sum: Buffer,
    alpha: Buffer,
    clean: Buffer,
}

/// True if an operand's rows can be read in place: they are f32 and whole cache lines.
fn in_place(job: &Job<'_>, operand: Operand) -> bool {
    job.problem.spec(operand).dtype == DType::F32 && job.problem.shape(operand)[3].is_multiple_of(LINE)
}

impl Narrow {
    /// Computes a unit and writes its results.
    pub(super) fn run(&mut self, job: &Job<'_>, unit: &Unit, key_buffer: &mut Buffer, value_buffer: &mut Buffer) {
        let d = &job.problem.dims;
        let output_step = d.head_dim_v.next_multiple_of(LINE);
        self.load(job, unit);
        self.output.take(unit.rows * output_step).fill(0.0);
        self.max.take(unit.rows).fill(f32::MIN);
        self.sum.take(unit.rows).fill(0.0);
        let [key_in_place, value_in_place] = [Operand::Key, Operand::Value].map(|operand| in_place(job, operand));
        let block = if key_in_place && value_in_place && job.problem.paged.is_none() { BLOCK_IN_PLACE } else { KEY_BLOCK };
        for start in unit.keys.clone().step_by(block) {
            let keys = start..unit.keys.end.min(start + block);
            let key = key_rows(job, unit, Operand::Key, &keys, key_in_place, key_buffer);
            let value = key_rows(job, unit, Operand::Value, &keys, value_in_place, value_buffer);
            self.score(job, unit, start, keys.len(), key);
            self.accumulate(job, unit, &keys, value);
        }
        let (max, sum) = (self.max.take(unit.rows), self.sum.take(unit.rows));
        for (r, row) in self.output.take(unit.rows * output_step).chunks_exact_mut(output_step).enumerate() {
            hand_out_row(job, unit, r, &mut row[..d.head_dim_v], max[r], sum[r]);
        }
    }

    /// Loads the unit's queries, scaled and zero-padded to whole cache lines.
    fn load(&mut self, job: &Job<'_>, unit: &Unit) {
        let head_dim = job.problem.dims.head_dim;
        let step = head_dim.next_multiple_of(LINE);
        for (r, to) in self.query.take(unit.rows * step).chunks_exact_mut(step).enumerate() {
            let (to, padding) = to.split_at_mut(head_dim);
            job.read_query(unit, r, to);
            padding.fill(0.0);
        }
    }

    /// Computes the scores of `count` keys from `start` on, -inf where masked.
    fn score(&mut self, job: &Job<'_>, unit: &Unit, start: usize, count: usize, key: Rows<'_>) {
        let problem = job.problem;
        let item = &job.items[unit.item];
        let step = count.next_multiple_of(LINE);
        let scores = self.scores.take(unit.rows * step);
        job.isa.run(Dots {
            rows: unit.rows,
            keys: count,
            depth: key.width,
            query: self.query.take(unit.rows * key.width.next_multiple_of(LINE)),
            query_step: key.width.next_multiple_of(LINE),
            key: key.data,
            key_step: key.step,
            ahead: in_place(job, Operand::Key).then_some(AHEAD),
            scores,
            scores_step: step,
        });
        let has_additive_mask = Item::has_additive_mask(problem);
        let additive_mask = self.additive_mask.take(unit.rows * step);
        if has_additive_mask {
            let keys = start..start + count;
            job.isa.run(AdditiveMask { job, unit, rows: 0..unit.rows, keys, to: additive_mask, step, kind: &mut MaskKind::Mixed });
        }
        if has_additive_mask || problem.softcap.is_some() {
            job.isa.run(Modify {
                panel: step,
                scores,
                softcap: problem.softcap,
                bias_first: problem.score_order == ScoreOrder::BiasThenSoftcap,
                additive_mask: has_additive_mask.then_some(additive_mask),
                bounds: None,
            });
        }
        for (r, row) in scores.chunks_exact_mut(step).enumerate() {
            let seen = item.interval(problem, unit.row(problem, r).1);
            let inside = |key: usize| key.clamp(start, start + count) - start;
            row[..inside(seen.start)].fill(f32::NEG_INFINITY);
            row[inside(seen.end)..].fill(f32::NEG_INFINITY);
        }
    }

    /// Folds the scored keys into running max, running sum and output.
    fn accumulate(&mut self, job: &Job<'_>, unit: &Unit, keys: &Range<usize>, value: Rows<'_>) {
        let count = keys.len();
        let step = count.next_multiple_of(LINE);
        let output_step = value.width.next_multiple_of(LINE);
        let alpha = self.alpha.take(unit.rows);
        let output = self.output.take(unit.rows * output_step);
        let scores = self.scores.take(unit.rows * step);
        let hidden = || scores.iter().fold(false, |any, &score| any | (score == f32::NEG_INFINITY));
        let unfinite = job.output.is_some() && hidden() && !(0..count).all(|j| all_finite(value.row(j)));
        if unfinite {
            self.before.take(unit.rows * step).copy_from_slice(scores);
        }
        job.isa.run(RowSoftmax { scores, scores_step: step, max: self.max.take(unit.rows), sum: self.sum.take(unit.rows), alpha });
        if job.output.is_none() {
            return;
        }
        if let Some(drop) = job.problem.dropout_rule() {
            let batch = job.items[unit.item].batch;
            for (r, row) in scores.chunks_exact_mut(step).enumerate() {
                let (head, i) = unit.row(job.problem, r);
                for (key, weight) in keys.clone().zip(row) {
                    let word = job.inputs.dropout.words(batch * job.problem.dims.num_heads + head, i, key / 4)[key % 4];
                    *weight *= drop.scale(word);
                }
            }
        }
        let used = if unfinite { value.cleaned(count, &mut self.clean) } else { value };
        let panel = job.isa.panel();
        let part = self.part.take(unit.rows * output_step);
        for chain in (0..count).step_by(CHAIN) {
            for first in (0..output_step).step_by(panel) {
                job.isa.run(Product {
                    panel: panel.min(output_step - first),
                    count: unit.rows,
                    depth: CHAIN.min(count - chain),
                    a: &scores[chain..],
                    row_step: step,
                    depth_step: 1,
                    b: &used.data[chain * used.step + first..],
                    b_step: used.step,
                    c: &mut part[first..],
                    c_step: output_step,
                    start: if chain == 0 { Start::Nothing } else { Start::There },
                    ahead: in_place(job, Operand::Value).then_some(AHEAD),
                });
            }
        }
        for ((row, part), &mut alpha) in output.chunks_exact_mut(output_step).zip(part.chunks_exact(output_step)).zip(alpha) {
            row.iter_mut().zip(part).for_each(|(x, part)| *x = *x * alpha + part);
        }
        if unfinite {
            // Values that are NaN or infinite, only for the rows that they are visible to.
            for (r, row) in output.chunks_exact_mut(output_step).enumerate() {
                for j in 0..count {
                    if self.before.get(r * step + j) != f32::NEG_INFINITY {
                        let unfinite = row.iter_mut().zip(value.row(j)).filter(|(_, value)| !value.is_finite());
                        unfinite.for_each(|(x, &value)| *x += scores[r * step + j] * value);
                    }
                }
            }
        }
    }
}
