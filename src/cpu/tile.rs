//! Scores of one panel and one block of keys: product, softcap, biases and masking.

use std::ops::Range;

use super::gradient::DropoutMask;
use super::pack::{Rows, Transpose};
use super::product::{Product, Start};
use super::shared::Buffer;
use super::softmax::Modify;
use super::unit::{Job, Panel, Unit};
use super::visible::{AdditiveMask, Item, MaskKind};
use crate::problem::{DropoutRule, ScoreOrder};

/// Scores of one panel and one block of keys, with the scratch memory to compute them.
#[derive(Default)]
pub(super) struct Tile {
    pub(super) scores: Buffer,
    before: Buffer,
    additive_mask: Buffer,
    pub(super) rows: Buffer,
    bounds: Buffer,
    pub(super) alpha: Buffer,
    pub(super) clean: Buffer,
    pub(super) dropout_mask: Buffer,
    lanes: [Vec<u32>; 2],
}

/// Kind of masking that a tile needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Masking {
    /// All pairs are visible, and nothing is added to their scores.
    Nothing,
    /// The rows' intervals mask some pairs.
    Bounds,
    /// An additive mask holds biases and -inf for masked pairs.
    Additive,
    /// No pair is visible.
    Everything,
}

impl Tile {
    /// Determines how a panel and these keys are masked, and prepares the additive mask.
    pub(super) fn masking(&mut self, job: &Job<'_>, unit: &Unit, panel: &Panel, keys: &Range<usize>) -> Masking {
        let width = panel.width;
        if Item::has_additive_mask(job.problem) {
            let rows = self.rows.take(width * keys.len());
            rows[panel.rows * keys.len()..].fill(0.0);
            let mut kind = MaskKind::Mixed;
            job.isa.run(AdditiveMask {
                job,
                unit,
                rows: panel.first..panel.first + panel.rows,
                keys: keys.clone(),
                to: rows,
                step: keys.len(),
                kind: &mut kind,
            });
            match kind {
                MaskKind::Zero => return Masking::Nothing,
                MaskKind::AllHidden => return Masking::Everything,
                MaskKind::Mixed => {}
            }
            job.isa.run(Transpose {
                rows: width,
                columns: keys.len(),
                from: rows,
                from_step: keys.len(),
                to: self.additive_mask.take(width * keys.len()),
                to_step: width,
            });
            return Masking::Additive;
        }
        if panel.all.start <= keys.start && keys.end <= panel.all.end {
            return Masking::Nothing;
        }
        let (first, end) = self.bounds.take(2 * width).split_at_mut(width);
        first.fill(0.0);
        end.fill(keys.len() as f32);
        for (r, seen) in panel.seen.iter().enumerate() {
            first[r] = (seen.start.clamp(keys.start, keys.end) - keys.start) as f32;
            end[r] = (seen.end.clamp(keys.start, keys.end) - keys.start) as f32;
        }
        Masking::Bounds
    }

    /// Computes scores, [key][lane], before softcap and biases.
    pub(super) fn score(&mut self, job: &Job<'_>, panel: &mut Panel, key: Rows<'_>, keys: usize) {
        let head_dim = job.problem.dims.head_dim;
        job.isa.run(Product {
            panel: panel.width,
            count: keys,
            depth: head_dim,
            a: key.data,
            row_step: key.step,
            depth_step: 1,
            b: panel.query.take(panel.width * head_dim),
            b_step: panel.width,
            c: self.scores.take(panel.width * keys),
            c_step: panel.width,
            start: Start::Nothing,
            ahead: None,
        });
    }

    /// Applies softcap and biases, and writes -inf where masked.
    pub(super) fn modify(&mut self, job: &Job<'_>, panel: &Panel, keys: usize, masking: Masking) {
        let width = panel.width;
        if masking == Masking::Everything {
            return self.scores.take(width * keys).fill(f32::NEG_INFINITY);
        }
        if masking == Masking::Nothing && job.problem.softcap.is_none() {
            return;
        }
        self.change(job, width, keys, masking, job.problem.softcap);
    }

    /// Applies biases to capped scores, and writes -inf where masked.
    pub(super) fn add_and_mask(&mut self, job: &Job<'_>, panel: &Panel, keys: usize, masking: Masking) {
        self.change(job, panel.width, keys, masking, None);
    }

    fn change(&mut self, job: &Job<'_>, width: usize, keys: usize, masking: Masking, softcap: Option<f32>) {
        let bounds = self.bounds.take(2 * width).split_at(width);
        job.isa.run(Modify {
            panel: width,
            scores: self.scores.take(width * keys),
            softcap,
            bias_first: job.problem.score_order == ScoreOrder::BiasThenSoftcap,
            additive_mask: (masking == Masking::Additive).then_some(self.additive_mask.take(width * keys)),
            bounds: (masking == Masking::Bounds).then_some(bounds),
        });
    }

    /// Applies the softcap alone, if it comes before the biases.
    pub(super) fn cap(&mut self, job: &Job<'_>, panel: &Panel, keys: usize) {
        if job.problem.score_order == ScoreOrder::SoftcapThenBias && job.problem.softcap.is_some() {
            self.modify(job, panel, keys, Masking::Nothing);
        }
    }

    /// Computes the dropout factors of a panel and these keys, [key][lane].
    pub(super) fn dropout_mask(&mut self, job: &Job<'_>, unit: &Unit, panel: &Panel, keys: &Range<usize>) -> &[f32] {
        let batch = job.items[unit.item].batch;
        let lanes = |r: usize| unit.row(job.problem, panel.first + r.min(panel.rows - 1));
        self.lanes[0].clear();
        self.lanes[0].extend((0..panel.width).map(|r| lanes(r).1 as u32));
        self.lanes[1].clear();
        self.lanes[1].extend((0..panel.width).map(|r| (batch * job.problem.dims.num_heads + lanes(r).0) as u32));
        let dropout_mask = self.dropout_mask.take(panel.width * keys.len());
        let drop = job.problem.dropout_rule().unwrap_or(DropoutRule::NOTHING);
        let [rows, pairs] = &self.lanes;
        job.isa.run(DropoutMask { rows, pairs, keys: keys.clone(), dropout: job.inputs.dropout, drop, to: dropout_mask });
        dropout_mask
    }

    /// Copies the scores as they enter softmax, for [`Self::sees`] to look up once they have become weights.
    pub(super) fn keep_scores(&mut self, len: usize) {
        self.before.take(len).copy_from_slice(self.scores.take(len));
    }

    /// True if the pair at index `at` of the copied scores is visible.
    pub(super) fn sees(&self, at: usize) -> bool {
        self.before.get(at) != f32::NEG_INFINITY
    }
}
