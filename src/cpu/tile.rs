//! Scores of one panel and one block of keys: product, softcap, biases and masking.

use std::ops::Range;

use super::gradient::Keep;
use super::pack::{Rows, Transpose};
use super::product::{Product, Start};
use super::shared::Buffer;
use super::softmax::Modify;
use super::unit::{Job, Panel, Unit};
use super::visible::{Extra, ExtraKind, Item};
use crate::ScoreOrder;
use crate::dropout::Drop;

/// Scores of one panel and one block of keys, with the scratch memory to compute them.
#[derive(Default)]
pub(super) struct Tile {
    pub(super) scores: Buffer,
    before: Buffer,
    extra: Buffer,
    pub(super) rows: Buffer,
    bounds: Buffer,
    pub(super) alpha: Buffer,
    pub(super) clean: Buffer,
    pub(super) kept: Buffer,
    lanes: [Vec<u32>; 2],
}

/// Kind of masking that a tile needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hiding {
    /// All pairs are visible, and nothing is added to their scores.
    Nothing,
    /// The rows' intervals mask some pairs.
    Bounds,
    /// An additive mask holds biases and -inf for masked pairs.
    Extra,
    /// No pair is visible.
    Everything,
}

impl Tile {
    /// Determines how a panel and these keys are masked, and prepares the additive mask.
    pub(super) fn hide(&mut self, job: &Job<'_>, unit: &Unit, panel: &Panel, keys: &Range<usize>) -> Hiding {
        let width = panel.width;
        if Item::has_extra(job.problem) {
            let rows = self.rows.take(width * keys.len());
            rows[panel.rows * keys.len()..].fill(0.0);
            let mut kind = ExtraKind::Mixed;
            job.isa.run(Extra {
                job,
                unit,
                rows: panel.first..panel.first + panel.rows,
                keys: keys.clone(),
                to: rows,
                step: keys.len(),
                kind: &mut kind,
            });
            match kind {
                ExtraKind::Zero => return Hiding::Nothing,
                ExtraKind::AllHidden => return Hiding::Everything,
                ExtraKind::Mixed => {}
            }
            job.isa.run(Transpose {
                rows: width,
                columns: keys.len(),
                from: rows,
                from_step: keys.len(),
                to: self.extra.take(width * keys.len()),
                to_step: width,
            });
            return Hiding::Extra;
        }
        if panel.all.start <= keys.start && keys.end <= panel.all.end {
            return Hiding::Nothing;
        }
        let (first, end) = self.bounds.take(2 * width).split_at_mut(width);
        first.fill(0.0);
        end.fill(keys.len() as f32);
        for (r, seen) in panel.seen.iter().enumerate() {
            first[r] = (seen.start.clamp(keys.start, keys.end) - keys.start) as f32;
            end[r] = (seen.end.clamp(keys.start, keys.end) - keys.start) as f32;
        }
        Hiding::Bounds
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
    pub(super) fn modify(&mut self, job: &Job<'_>, panel: &Panel, keys: usize, hiding: Hiding) {
        let width = panel.width;
        if hiding == Hiding::Everything {
            return self.scores.take(width * keys).fill(f32::NEG_INFINITY);
        }
        if hiding == Hiding::Nothing && job.problem.softcap.is_none() {
            return;
        }
        self.change(job, width, keys, hiding, job.problem.softcap);
    }

    /// Applies biases to capped scores, and writes -inf where masked.
    pub(super) fn add_and_hide(&mut self, job: &Job<'_>, panel: &Panel, keys: usize, hiding: Hiding) {
        self.change(job, panel.width, keys, hiding, None);
    }

    fn change(&mut self, job: &Job<'_>, width: usize, keys: usize, hiding: Hiding, softcap: Option<f32>) {
        let bounds = self.bounds.take(2 * width).split_at(width);
        job.isa.run(Modify {
            panel: width,
            scores: self.scores.take(width * keys),
            softcap,
            bias_first: job.problem.score_order == ScoreOrder::BiasThenSoftcap,
            extra: (hiding == Hiding::Extra).then_some(self.extra.take(width * keys)),
            bounds: (hiding == Hiding::Bounds).then_some(bounds),
        });
    }

    /// Applies the softcap alone, if it comes before the biases.
    pub(super) fn cap(&mut self, job: &Job<'_>, panel: &Panel, keys: usize) {
        if job.problem.score_order == ScoreOrder::SoftcapThenBias && job.problem.softcap.is_some() {
            self.modify(job, panel, keys, Hiding::Nothing);
        }
    }

    /// Computes the dropout factors of a panel and these keys, [key][lane].
    pub(super) fn keep(&mut self, job: &Job<'_>, unit: &Unit, panel: &Panel, keys: &Range<usize>) -> &[f32] {
        let batch = job.items[unit.item].batch;
        let lanes = |r: usize| unit.row(job.problem, panel.first + r.min(panel.rows - 1));
        self.lanes[0].clear();
        self.lanes[0].extend((0..panel.width).map(|r| lanes(r).1 as u32));
        self.lanes[1].clear();
        self.lanes[1].extend((0..panel.width).map(|r| (batch * job.problem.dims.num_heads + lanes(r).0) as u32));
        let kept = self.kept.take(panel.width * keys.len());
        let drop = job.problem.drop().unwrap_or(Drop::NOTHING);
        let [rows, pairs] = &self.lanes;
        job.isa.run(Keep { rows, pairs, keys: keys.clone(), dropout: job.inputs.dropout, drop, to: kept });
        kept
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
