//! Panel of query rows: their queries, their intervals, and sums over the keys.

use std::ops::Range;

use super::job::{Job, Unit};
use super::pack::{Rows, Transpose};
use super::product::{Product, Start};
use super::shared::Buffer;

/// Rows of a unit that are computed side by side, one per lane.
#[derive(Default)]
pub(super) struct Panel {
    /// Counted from the unit's first row.
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Lanes: `rows` rounded up to whole vectors.
    pub(super) width: usize,
    /// Smallest range that contains all intervals.
    pub(super) some: Range<usize>,
    /// Intersection of all intervals.
    pub(super) all: Range<usize>,
    /// Interval of each row, cut to the unit's keys.
    pub(super) seen: Vec<Range<usize>>,
    /// Scaled queries, [dim][lane].
    pub(super) query: Buffer,
    /// Sums of weighted rows, [dim][lane]: the output, or dQ. Nothing was added unless `started`.
    pub(super) output: Buffer,
    started: bool,
    /// Max of each lane.
    pub(super) max: Buffer,
    /// Running sum of each lane; in the end the factor that makes weights of `exp(score - max)`.
    pub(super) sum: Buffer,
}

impl Panel {
    /// Loads rows of the unit from `first` on, as many as fit: their intervals and scaled queries.
    pub(super) fn load(&mut self, job: &Job<'_>, unit: &Unit, first: usize, scratch: &mut Buffer) {
        let (item, head_dim) = (&job.items[unit.item], job.problem.dims.head_dim);
        let rows = job.isa.panel().min(unit.rows - first);
        let width = rows.next_multiple_of(job.isa.lanes());
        (self.first, self.rows, self.width, self.started) = (first, rows, width, false);
        self.max.take(width).fill(f32::MIN);
        self.sum.take(width).fill(0.0);

        let from = scratch.take(width * head_dim);
        from[rows * head_dim..].fill(0.0);
        self.seen.clear();
        for (r, to) in from.chunks_exact_mut(head_dim).take(rows).enumerate() {
            job.read_query(unit, first + r, to);
            let seen = item.interval(job.problem, unit.row(job.problem, first + r).1);
            let start = seen.start.max(unit.keys.start);
            self.seen.push(start..seen.end.min(unit.keys.end).max(start));
        }
        let seeing = || self.seen.iter().filter(|seen| !seen.is_empty());
        self.some = seeing().map(|s| s.start).min().unwrap_or(0)..seeing().map(|s| s.end).max().unwrap_or(0);
        self.all = self.seen.iter().map(|s| s.start).max().unwrap_or(0)..self.seen.iter().map(|s| s.end).min().unwrap_or(0);
        let to = self.query.take(width * head_dim);
        job.isa.run(Transpose { rows: width, columns: head_dim, from, from_step: head_dim, to });
    }

    /// Adds the sum over the rows of `weights[row][lane] * row` to the output, which is first multiplied by `alpha`.
    pub(super) fn add(&mut self, job: &Job<'_>, rows: Rows<'_>, weights: &[f32], alpha: Option<&[f32]>) {
        let start = match alpha {
            _ if !self.started => Start::Nothing,
            None => Start::There,
            Some(alpha) => Start::Scaled(alpha),
        };
        let output = self.output.take(self.width * rows.width);
        job.isa.run(Product { transposed: true, ..Product::new(rows, self.width, weights, output, start) });
        self.started = true;
    }

    /// Returns the output as [lane][dim].
    pub(super) fn output_rows<'a>(&mut self, job: &Job<'_>, dims: usize, scratch: &'a mut Buffer) -> &'a mut [f32] {
        let (columns, to) = (self.width, scratch.take(self.width * dims));
        if self.started {
            job.isa.run(Transpose { rows: dims, columns, from: self.output.take(columns * dims), from_step: columns, to });
        } else {
            to.fill(0.0);
        }
        to
    }
}
