//! Unit of work: some query rows of one key/value head against a range of keys.

use std::cell::OnceCell;
use std::ops::Range;

use super::narrow::Narrow;
use super::pack::{RowLayout, Rows, SharedOutput, Transpose, all_finite, read_rows};
use super::product::{Product, Start};
use super::shared::{Buffer, LINE, Shared};
use super::simd::Isa;
use super::softmax::Softmax;
use super::tile::{Masking, Tile};
use super::visible::Item;
use crate::numbers::HostSlice;
use crate::problem::{Inputs, Operand, Problem, ScoreStage};

/// Keys between two rescalings of the output. GFLOP/s on Ice Lake with AVX-512, one thread, 1x1x1024x64: 64 keys 140,
/// 96 139, 128 132, 192 130, 256 133. With 64, a panel's weights and queries leave room in 48 KiB of first-level cache.
pub(super) const KEY_BLOCK: usize = 64;
/// Panels of 64 rows in a unit, which share the conversion of a key block. GFLOP/s in f16: 1 panel 105, 2 120, 4 130.
pub(super) const UNIT_PANELS: usize = 4;

/// Problem, data and outputs that all units share.
pub(super) struct Job<'a> {
    pub(super) problem: &'a Problem,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) isa: Isa,
    pub(super) items: &'a [Item],
    /// `None` where only statistics are wanted.
    pub(super) output: Option<SharedOutput<'a>>,
    pub(super) lse: Option<Shared<'a, f32>>,
    pub(super) stats: Option<Shared<'a, [f32; 2]>>,
    pub(super) scores: Option<(ScoreStage, Shared<'a, f32>)>,
    pub(super) weights: Option<Shared<'a, f32>>,
    /// Output, max and sum of each row of each part of a split unit.
    pub(super) partials: Shared<'a, f32>,
}

/// Rows `first_row..first_row + rows` of the query heads that share `kv_head`, counted position by position:
/// row r is position r / group of head r % group. Therefore the rows of a unit have similar intervals.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) item: usize,
    pub(super) kv_head: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Range that contains the intervals of all rows, or a part of it.
    pub(super) keys: Range<usize>,
    /// Offset of the result in `partials`, if the keys are only a part.
    pub(super) partial: Option<usize>,
}

impl Unit {
    /// Query head and position of row `r`, counted from the unit's first row.
    pub(super) fn row(&self, problem: &Problem, r: usize) -> (usize, usize) {
        let group = problem.dims.group();
        let row = self.first_row + r;
        (self.kv_head * group + row % group, row / group)
    }
}

/// Rows of a unit that are computed side by side, one per lane.
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
    started: bool,
    pub(super) query: Buffer,
    output: Buffer,
    max: Buffer,
    sum: Buffer,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    panels: Vec<Panel>,
    key: Buffer,
    value: Buffer,
    tile: Tile,
    narrow: Narrow,
}

/// Block of keys and their values.
struct Block<'a> {
    keys: Range<usize>,
    key: Rows<'a>,
    value: Rows<'a>,
    finite: OnceCell<bool>,
}

impl Block<'_> {
    /// True if no value is NaN or infinite.
    fn is_finite(&self) -> bool {
        *self.finite.get_or_init(|| (0..self.keys.len()).all(|j| all_finite(self.value.row(j))))
    }
}

/// Returns the keys or the values of a block, in place if that is wanted and possible.
pub(super) fn key_rows<'a>(
    job: &'a Job<'_>,
    unit: &Unit,
    operand: Operand,
    keys: &Range<usize>,
    in_place: bool,
    scratch: &'a mut Buffer,
) -> Rows<'a> {
    let data: HostSlice<'a> = if operand == Operand::Key { job.inputs.key } else { job.inputs.value };
    let place = |key| job.place(unit, operand, unit.kv_head, key);
    let width = job.problem.shape(operand)[3];
    let run_end = |key: usize| job.problem.paged.map_or(keys.end, |paged| keys.end.min((key / paged.page_size + 1) * paged.page_size));
    if run_end(keys.start) == keys.end {
        return Rows::read(job.isa, data, place(keys.start), (keys.len(), width), in_place, scratch);
    }
    Rows::copy(keys.len(), width, scratch, |to, step| {
        let mut key = keys.start;
        while key < keys.end {
            let end = run_end(key);
            read_rows(job.isa, data, place(key), (end - key, width), &mut to[(key - keys.start) * step..], step);
            key = end;
        }
    })
}

impl Job<'_> {
    /// Location of the rows of an operand's head, from position `seq` of the unit's item on.
    pub(super) fn place(&self, unit: &Unit, operand: Operand, head: usize, seq: usize) -> RowLayout {
        let item = &self.items[unit.item];
        let spec = self.problem.spec(operand);
        let strides = spec.strides(self.problem.shape(operand));
        let (stored, seq) = match (operand, self.problem.paged) {
            (Operand::Query | Operand::Output, _) => (item.stored, item.first_q + seq),
            (Operand::Key | Operand::Value, None) => (item.stored, item.first_kv + seq),
            (Operand::Key | Operand::Value, Some(paged)) => {
                let page = self.inputs.page_table[item.batch * paged.pages_per_item + seq / paged.page_size];
                (page as usize, seq % paged.page_size)
            }
        };
        let start = spec.offset + stored * strides.batch + head * strides.head + seq * strides.seq;
        RowLayout { start, row_step: strides.seq, step: strides.dim }
    }

    /// Reads the scaled query of row `r` of a unit.
    pub(super) fn read_query(&self, unit: &Unit, r: usize, to: &mut [f32]) {
        let (head, i) = unit.row(self.problem, r);
        let (width, scale) = (to.len(), self.problem.effective_scale());
        read_rows(self.isa, self.inputs.query, self.place(unit, Operand::Query, head, i), (1, width), to, width);
        to.iter_mut().for_each(|x| *x *= scale);
    }
}

impl Panel {
    pub(super) fn new() -> Self {
        Self {
            first: 0,
            rows: 0,
            width: 0,
            some: 0..0,
            all: 0..0,
            seen: Vec::new(),
            started: false,
            query: Buffer::default(),
            output: Buffer::default(),
            max: Buffer::default(),
            sum: Buffer::default(),
        }
    }

    /// Returns max and factor of each lane of a finished panel: weights are `exp(score - max) * factor`.
    pub(super) fn weighing(&mut self) -> (&[f32], &[f32]) {
        (self.max.take(self.width), self.sum.take(self.width))
    }

    /// Loads rows `first..first + rows` of the unit: their intervals, and their scaled queries as [dim][lane].
    pub(super) fn load(&mut self, job: &Job<'_>, unit: &Unit, first: usize, rows: usize, tile: &mut Tile) {
        let problem = job.problem;
        let item = &job.items[unit.item];
        let head_dim = problem.dims.head_dim;
        (self.first, self.rows, self.started) = (first, rows, false);
        self.width = rows.next_multiple_of(job.isa.lanes());
        self.max.take(self.width).fill(f32::MIN);
        self.sum.take(self.width).fill(0.0);

        let staged = tile.rows.take(self.width * head_dim);
        staged[rows * head_dim..].fill(0.0);
        self.seen.clear();
        for (r, to) in staged.chunks_exact_mut(head_dim).take(rows).enumerate() {
            job.read_query(unit, first + r, to);
            let (_, i) = unit.row(problem, first + r);
            let seen = item.interval(problem, i);
            self.seen.push(seen.start.max(unit.keys.start)..seen.end.min(unit.keys.end).max(seen.start.max(unit.keys.start)));
        }
        let seeing = || self.seen.iter().filter(|seen| !seen.is_empty());
        self.some = seeing().map(|s| s.start).min().unwrap_or(0)..seeing().map(|s| s.end).max().unwrap_or(0);
        self.all = self.seen.iter().map(|s| s.start).max().unwrap_or(0)..self.seen.iter().map(|s| s.end).min().unwrap_or(0);
        job.isa.run(Transpose {
            rows: self.width,
            columns: head_dim,
            from: staged,
            from_step: head_dim,
            to: self.query.take(self.width * head_dim),
            to_step: self.width,
        });
    }
}

impl Tile {
    /// Folds the block's keys in the rows' intervals into the panel's running max, running sum and output.
    fn accumulate(&mut self, job: &Job<'_>, unit: &Unit, panel: &mut Panel, block: &Block<'_>) {
        let keys = &(panel.some.start.max(block.keys.start)..panel.some.end.min(block.keys.end));
        if keys.is_empty() {
            return;
        }
        let skipped = keys.start - block.keys.start;
        let (key, value) = (block.key.from(skipped), block.value.from(skipped));
        let masking = self.masking(job, unit, panel, keys);
        if masking == Masking::Everything {
            return;
        }
        self.score(job, panel, key, keys.len());
        self.modify(job, panel, keys.len(), masking);
        let width = panel.width;
        let finite = job.output.is_none() || block.is_finite(); // a score that overflows to -inf hides, whatever `masking` says
        if !finite {
            self.keep_scores(width * keys.len());
        }
        job.isa.run(Softmax {
            panel: width,
            scores: self.scores.take(width * keys.len()),
            max: panel.max.take(width),
            sum: panel.sum.take(width),
            alpha: self.alpha.take(width),
        });
        if job.output.is_none() {
            return;
        }
        if job.problem.dropout_rule().is_some() {
            let dropout_mask = self.dropout_mask(job, unit, panel, keys).to_vec();
            self.scores.take(width * keys.len()).iter_mut().zip(dropout_mask).for_each(|(weight, dropout_mask)| *weight *= dropout_mask);
        }
        let used = if finite { value } else { value.cleaned(keys.len(), &mut self.clean) };
        job.isa.run(Product {
            panel: width,
            count: value.width,
            depth: keys.len(),
            a: used.data,
            row_step: 1,
            depth_step: used.step,
            b: self.scores.take(width * keys.len()),
            b_step: width,
            c: panel.output.take(width * value.width),
            c_step: width,
            start: if panel.started { Start::Scaled(self.alpha.take(width)) } else { Start::Nothing },
            ahead: None,
        });
        panel.started = true;
        if !finite {
            self.add_not_finite(panel, keys, value);
        }
    }

    /// Adds values that are NaN or infinite to only those rows that they are visible to: a weight of 0 times infinity
    /// must not reach the others.
    fn add_not_finite(&mut self, panel: &mut Panel, keys: &Range<usize>, value: Rows<'_>) {
        let width = panel.width;
        for j in 0..keys.len() {
            for (e, &x) in value.row(j).iter().enumerate().filter(|(_, x)| !x.is_finite()) {
                for lane in 0..panel.rows {
                    if self.sees(j * width + lane) {
                        let weight = self.scores.get(j * width + lane);
                        panel.output.take(width * value.width)[e * width + lane] += weight * x;
                    }
                }
            }
        }
    }
}

/// Computes a unit and writes its results.
pub(super) fn run(job: &Job<'_>, unit: &Unit, scratch: &mut Scratch) {
    let Scratch { panels, key, value, tile, narrow } = scratch;
    // Statistics must come from scores computed in panels, as in the backward pass.
    if unit.rows * 2 <= job.isa.lanes() && job.scores.is_none() && job.weights.is_none() && job.stats.is_none() {
        return narrow.run(job, unit, key, value);
    }
    let widest = job.isa.panel();
    let count = unit.rows.div_ceil(widest);
    while panels.len() < count {
        panels.push(Panel::new());
    }
    let panels = &mut panels[..count];
    for (p, panel) in panels.iter_mut().enumerate() {
        let first = p * widest;
        panel.load(job, unit, first, widest.min(unit.rows - first), tile);
    }
    // Values are read column by column: at a stride of a multiple of 8 cache lines, rows would evict each other.
    let value_step = job.problem.value.strides(job.problem.shape(Operand::Value)).seq;
    let value_in_place = !value_step.is_multiple_of(8 * LINE);
    for start in unit.keys.clone().step_by(KEY_BLOCK) {
        let keys = start..unit.keys.end.min(start + KEY_BLOCK);
        let key = key_rows(job, unit, Operand::Key, &keys, true, key);
        let value = key_rows(job, unit, Operand::Value, &keys, value_in_place, value);
        let block = Block { keys, key, value, finite: OnceCell::new() };
        for panel in panels.iter_mut() {
            tile.accumulate(job, unit, panel, &block);
        }
    }
    for panel in panels.iter_mut() {
        finish_panel(job, unit, panel, tile);
        if job.scores.is_some() || job.weights.is_some() {
            super::staged::write(job, unit, panel, tile, key);
        }
    }
}

/// Writes the results of a panel's rows. Replaces `sum` by the factors that normalise the weights.
fn finish_panel(job: &Job<'_>, unit: &Unit, panel: &mut Panel, tile: &mut Tile) {
    let (width, head_dim_v) = (panel.width, job.problem.dims.head_dim_v);
    let rows = tile.rows.take(width * head_dim_v);
    if panel.started {
        let from = &*panel.output.take(width * head_dim_v);
        job.isa.run(Transpose { rows: head_dim_v, columns: width, from, from_step: width, to: rows, to_step: head_dim_v });
    } else {
        rows.fill(0.0);
    }
    let (max, sum) = (panel.max.take(width), panel.sum.take(width));
    for (r, row) in rows.chunks_exact_mut(head_dim_v).take(panel.rows).enumerate() {
        sum[r] = hand_out_row(job, unit, panel.first + r, row, max[r], sum[r]);
    }
}

/// Finishes a row, or writes it to `partials` if the unit is a part. Returns the factor that normalises weights, or 1.
pub(super) fn hand_out_row(job: &Job<'_>, unit: &Unit, r: usize, row: &mut [f32], max: f32, sum: f32) -> f32 {
    let Some(partial) = unit.partial else {
        return finish_row(job, unit, r, (row, max, sum), 1.0);
    };
    let (width, at) = (row.len(), partial + r * (row.len() + 2));
    // SAFETY: each row of each part has a record of its own, read only after all units are done.
    let record = unsafe { job.partials.slice(at..at + width + 2) };
    let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    record[..width].iter_mut().zip(row).for_each(|(to, x)| *to = if sum == 0.0 { 0.0 } else { *x * factor });
    record[width..].copy_from_slice(&[max, sum]);
    1.0
}

/// Writes output, lse and statistics of a row from its output, max and sum. The row's output must be the sum of values
/// with weights `exp(score - max) / divided`. Returns the factor that turns `exp(score - max)` into a weight.
pub(super) fn finish_row(job: &Job<'_>, unit: &Unit, r: usize, (row, max, sum): (&mut [f32], f32, f32), divided: f32) -> f32 {
    let problem = job.problem;
    let item = &job.items[unit.item];
    let (head, i) = unit.row(problem, r);
    let (mut top, mut rescale, mut total) = (max, 1.0, sum);
    if problem.sinks {
        let sink = job.inputs.sinks[head];
        top = max.max(sink);
        rescale = (max - top).exp();
        total = sum * rescale + (sink - top).exp();
    }
    let factor = if total == 0.0 { 0.0 } else { rescale / total };
    // A row whose weights are all 0 has output 0, even if a value with weight 0 has left a NaN.
    row.iter_mut().for_each(|x| *x = if total == 0.0 { 0.0 } else { *x * (factor * divided) });
    if let Some(output) = &job.output {
        let place = job.place(unit, Operand::Output, head, i);
        // SAFETY: `Problem::check` rejects outputs whose elements share a place, and each row is finished once.
        unsafe { output.write_row(place.start, place.step, row) };
    }
    let at = item.lse_place(problem, head, i);
    if let Some(lse) = &job.lse {
        // SAFETY: each row has a place of its own.
        (unsafe { lse.slice(at..at + 1) })[0] = top + total.ln();
    }
    if let Some(stats) = &job.stats {
        // SAFETY: as above.
        (unsafe { stats.slice(at..at + 1) })[0] = [top, total];
    }
    factor
}
