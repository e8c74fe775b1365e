//! One task of the backward pass: query rows of one key/value head against all their keys.

use std::ops::Range;

use super::gradient::{Gradient, Slope};
use super::pack::{Rows, SharedOutput, Transpose, all_finite, read_rows};
use super::product::{Product, Start};
use super::shared::{Buffer, LINE};
use super::tile::{Masking, Tile};
use super::unit::{Job, KEY_BLOCK, Panel, Unit, key_rows};
use crate::numbers::HostSlice;
use crate::problem::{Operand, ScoreOrder, WantGradients};

/// Results of the forward pass and the gradient of its output: [`crate::BackwardInputs`] with statistics.
pub(super) struct Forward<'a> {
    pub(super) output: HostSlice<'a>,
    pub(super) stats: &'a [[f32; 2]],
    pub(super) d_output: HostSlice<'a>,
}

/// Inputs and outputs that all tasks share.
pub(super) struct Work<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) forward: &'a Forward<'a>,
    pub(super) want: &'a WantGradients,
    pub(super) query: Option<SharedOutput<'a>>,
}

/// Gradients that a task accumulates; empty where they are not wanted.
pub(super) struct Sums {
    /// [keys of the item, head_dim rounded up to whole cache lines].
    pub(super) key: Vec<f32>,
    /// [keys of the item, head_dim_v rounded up to whole cache lines].
    pub(super) value: Vec<f32>,
    /// [query heads of the group, columns].
    pub(super) relative_bias: Vec<f32>,
    /// One element per query head of the group.
    pub(super) sinks: Vec<f32>,
}

/// Panel with the data that its gradients need.
pub(super) struct Side {
    pub(super) panel: Panel,
    /// [lane][dim], with 0 for NaN and infinity, which show in the scores.
    query_rows: Buffer,
    /// [lane][dim], with 0 for NaN and infinity.
    d_output_rows: Buffer,
    /// Lane, dim and value of each element of the output gradient that is NaN or infinite.
    unfinite: Vec<(usize, usize, f32)>,
    /// [dim][lane].
    d_output: Buffer,
    /// [dim][lane].
    d_query: Buffer,
    max: Buffer,
    /// 1 / l; 0 for a row without visible keys.
    factor: Buffer,
    delta: Buffer,
    started: bool,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    sides: Vec<Side>,
    key: Buffer,
    value: Buffer,
    tile: GradientTile,
}

/// Scores and gradients of one panel and one block of keys.
#[derive(Default)]
pub(super) struct GradientTile {
    pub(super) tile: Tile,
    /// Products of output gradients with values, then the gradients of the scores.
    pub(super) products: Buffer,
    /// Capped scores, then the gradients of the biases; used only where a softcap comes before the biases.
    capped: Buffer,
    rows: Buffer,
}

impl Side {
    fn new() -> Self {
        Self {
            panel: Panel::new(),
            query_rows: Buffer::default(),
            d_output_rows: Buffer::default(),
            unfinite: Vec::new(),
            d_output: Buffer::default(),
            d_query: Buffer::default(),
            max: Buffer::default(),
            factor: Buffer::default(),
            delta: Buffer::default(),
            started: false,
        }
    }

    /// Loads rows `first..first + rows` of the unit, and adds their share to the gradients in `sinks`.
    fn load(
        &mut self,
        job: &Job<'_>,
        forward: &Forward<'_>,
        unit: &Unit,
        (first, rows): (usize, usize),
        tile: &mut GradientTile,
        sinks: &mut [f32],
    ) {
        let problem = job.problem;
        let d = &problem.dims;
        let item = &job.items[unit.item];
        self.panel.load(job, unit, first, rows, &mut tile.tile);
        self.started = false;
        self.unfinite.clear();
        let width = self.panel.width;
        let (query_step, step) = (d.head_dim.next_multiple_of(LINE), d.head_dim_v.next_multiple_of(LINE));
        let query_rows = self.query_rows.take(width * query_step);
        let d_output_rows = self.d_output_rows.take(width * step);
        let (max, factor, delta) = (self.max.take(width), self.factor.take(width), self.delta.take(width));
        query_rows.fill(0.0);
        d_output_rows.fill(0.0);
        max.fill(0.0);
        factor.fill(0.0);
        delta.fill(0.0);
        let output = tile.rows.take(d.head_dim_v);
        for r in 0..rows {
            let (head, i) = unit.row(problem, first + r);
            let query = &mut query_rows[r * query_step..][..d.head_dim];
            job.read_query(unit, first + r, query);
            query.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 0.0);
            let place = job.place(unit, Operand::Output, head, i);
            let d_output = &mut d_output_rows[r * step..][..d.head_dim_v];
            read_rows(job.isa, forward.d_output, place, (1, d.head_dim_v), d_output, d.head_dim_v);
            read_rows(job.isa, forward.output, place, (1, d.head_dim_v), output, d.head_dim_v);
            // A row without visible keys has output 0, and its output gradient may be anything.
            delta[r] = output.iter().zip(&*d_output).map(|(&o, &d)| if o == 0.0 { 0.0 } else { o * d }).sum();
            let [m, l] = forward.stats[item.lse_place(problem, head, i)];
            if l != 0.0 {
                (max[r], factor[r]) = (m, 1.0 / l);
            }
            if let Some(sink) = sinks.get_mut(head % d.group()) {
                *sink -= (job.inputs.sinks[head] - max[r]).exp() * factor[r] * delta[r];
            }
        }
        job.isa.run(Transpose {
            rows: width,
            columns: d.head_dim_v,
            from: d_output_rows,
            from_step: step,
            to: self.d_output.take(width * d.head_dim_v),
            to_step: width,
        });
        if !all_finite(d_output_rows) {
            for (at, x) in d_output_rows.iter_mut().enumerate().filter(|(_, x)| !x.is_finite()) {
                self.unfinite.push((at / step, at % step, *x));
                *x = 0.0;
            }
        }
    }
}

impl GradientTile {
    /// Computes the weights and score gradients of a panel and these keys. Returns false if all pairs are masked.
    pub(super) fn compute(
        &mut self,
        job: &Job<'_>,
        unit: &Unit,
        side: &mut Side,
        keys: &Range<usize>,
        key: Rows<'_>,
        value: Rows<'_>,
    ) -> bool {
        let problem = job.problem;
        let (panel, tile) = (&mut side.panel, &mut self.tile);
        let (width, count) = (panel.width, keys.len());
        let masking = tile.masking(job, unit, panel, keys);
        if masking == Masking::Everything {
            return false;
        }
        tile.score(job, panel, key, count);
        let caps_first = problem.softcap.is_some() && problem.score_order == ScoreOrder::SoftcapThenBias;
        let capped = self.capped.take(width * count);
        if caps_first {
            tile.cap(job, panel, count);
            capped.copy_from_slice(tile.scores.take(width * count));
            if masking != Masking::Nothing {
                tile.add_and_mask(job, panel, count, masking);
            }
        } else {
            tile.modify(job, panel, count, masking);
        }
        if !side.unfinite.is_empty() {
            tile.keep_scores(width * count);
        }
        let products = self.products.take(width * count);
        job.isa.run(Product {
            panel: width,
            count,
            depth: value.width,
            a: value.data,
            row_step: value.step,
            depth_step: 1,
            b: side.d_output.take(width * value.width),
            b_step: width,
            c: products,
            c_step: width,
            start: Start::Nothing,
            ahead: None,
        });
        let drops = problem.dropout_rule().is_some();
        if drops {
            tile.dropout_mask(job, unit, panel, keys);
        }
        job.isa.run(Gradient {
            panel: width,
            scores: tile.scores.take(width * count),
            products,
            max: side.max.take(width),
            factor: side.factor.take(width),
            delta: side.delta.take(width),
            dropout_mask: drops.then_some(tile.dropout_mask.take(width * count)),
            softcap: problem.softcap.map(|softcap| Slope { softcap, capped: caps_first.then_some(capped) }),
        });
        true
    }

    /// Returns the gradients of the biases, [key][lane], of the tile that was computed last.
    pub(super) fn d_bias(&mut self, job: &Job<'_>, len: usize) -> &[f32] {
        let caps_first = job.problem.softcap.is_some() && job.problem.score_order == ScoreOrder::SoftcapThenBias;
        if caps_first { self.capped.take(len) } else { self.products.take(len) }
    }
}

/// Consumer of a unit's weights and score gradients, tile by tile.
pub(super) trait Visitor {
    /// Consumes the tile of a panel and these keys.
    fn tile(&mut self, tile: &mut GradientTile, side: &mut Side, keys: &Range<usize>, key: Rows<'_>);

    /// Called once all panels are done with these keys.
    fn block_ended(&mut self, _keys: &Range<usize>) {}

    /// Called once a panel is done with all its keys.
    fn panel_ended(&mut self, _tile: &mut GradientTile, _side: &mut Side) {}
}

/// Visits every panel of a unit with the blocks of keys in its rows' intervals.
pub(super) fn visit(
    job: &Job<'_>,
    forward: &Forward<'_>,
    unit: &Unit,
    scratch: &mut Scratch,
    sinks: &mut [f32],
    visitor: &mut impl Visitor,
) {
    let Scratch { sides, key, value, tile } = scratch;
    let widest = job.isa.panel();
    let count = unit.rows.div_ceil(widest);
    while sides.len() < count {
        sides.push(Side::new());
    }
    let sides = &mut sides[..count];
    for (p, side) in sides.iter_mut().enumerate() {
        let first = p * widest;
        side.load(job, forward, unit, (first, widest.min(unit.rows - first)), tile, sinks);
    }
    let step = |operand: Operand| job.problem.spec(operand).strides(job.problem.shape(operand)).seq;
    // Keys are read column by column: at a stride of a multiple of 8 cache lines, rows would evict each other.
    let key_in_place = !step(Operand::Key).is_multiple_of(8 * LINE);
    for start in unit.keys.clone().step_by(KEY_BLOCK) {
        let keys = start..unit.keys.end.min(start + KEY_BLOCK);
        let key = key_rows(job, unit, Operand::Key, &keys, key_in_place, key);
        let value = key_rows(job, unit, Operand::Value, &keys, true, value);
        for side in sides.iter_mut() {
            let some = side.panel.some.start.max(keys.start)..side.panel.some.end.min(keys.end);
            if some.is_empty() {
                continue;
            }
            let (key, value) = (key.from(some.start - keys.start), value.from(some.start - keys.start));
            if tile.compute(job, unit, side, &some, key, value) {
                visitor.tile(tile, side, &some, key);
            }
        }
        visitor.block_ended(&keys);
    }
    sides.iter_mut().for_each(|side| visitor.panel_ended(tile, side));
}

/// Two-level sums: the rows of a unit are summed per block of keys, and those sums are added to the totals.
struct Level<'a> {
    /// [KEY_BLOCK, step]: sums of the current block; 0 at its start.
    block: &'a mut [f32],
    /// [keys, step]: totals; empty where they are not wanted.
    all: &'a mut [f32],
    step: usize,
}

impl Level<'_> {
    /// Returns the rows of the block from `key` on, counted from the unit's first key.
    fn from(&mut self, key: usize) -> &mut [f32] {
        &mut self.block[key % KEY_BLOCK * self.step..]
    }

    /// Adds the sums of the block to the totals, and clears them.
    fn fold(&mut self, keys: &Range<usize>) {
        for (x, block) in self.all.iter_mut().skip(keys.start * self.step).zip(&mut self.block[..]) {
            *x += std::mem::take(block);
        }
    }
}

/// Visitor that adds a unit's gradients to the sums of its task.
struct Adding<'a> {
    work: &'a Work<'a>,
    unit: &'a Unit,
    key: Level<'a>,
    value: Level<'a>,
    relative_bias: &'a mut [f32],
}

impl Visitor for Adding<'_> {
    fn tile(&mut self, tile: &mut GradientTile, side: &mut Side, keys: &Range<usize>, key: Rows<'_>) {
        let work = self.work;
        let width = side.panel.width;
        work.add_query(tile, side, keys, key);
        let first = keys.start - self.unit.keys.start;
        if work.want.key {
            let step = self.key.step;
            let rows = side.query_rows.take(width * step);
            work.add_rows(width, tile.products.take(width * keys.len()), rows, self.key.from(first), step, keys.len());
        }
        if work.want.value {
            let step = self.value.step;
            let rows = side.d_output_rows.take(width * step);
            let to = self.value.from(first);
            work.add_rows(width, tile.tile.scores.take(width * keys.len()), rows, to, step, keys.len());
            for &(lane, e, x) in &side.unfinite {
                for j in (0..keys.len()).filter(|j| tile.tile.sees(j * width + lane)) {
                    to[j * step + e] += tile.tile.scores.get(j * width + lane) * x;
                }
            }
        }
        work.add_relative_bias(tile, self.unit, &side.panel, keys, self.relative_bias);
    }

    fn block_ended(&mut self, keys: &Range<usize>) {
        self.key.fold(keys);
        self.value.fold(keys);
    }

    fn panel_ended(&mut self, tile: &mut GradientTile, side: &mut Side) {
        self.work.write_query(self.unit, tile, side);
    }
}

impl Work<'_> {
    /// Computes the sums of a task.
    pub(super) fn run(&self, units: &[Unit], scratch: &mut Scratch) -> Sums {
        let (job, d) = (self.job, &self.job.problem.dims);
        let keys = units.first().map_or(0, |unit| job.items[unit.item].keys);
        let (key_step, value_step) = (d.head_dim.next_multiple_of(LINE), d.head_dim_v.next_multiple_of(LINE));
        let columns = job.problem.relative_bias_columns();
        let zeros = |wanted: bool, len: usize| vec![0.0; if wanted { len } else { 0 }];
        let mut sums = Sums {
            key: zeros(self.want.key, keys * key_step),
            value: zeros(self.want.value, keys * value_step),
            relative_bias: zeros(self.want.relative_bias, d.group() * columns),
            sinks: zeros(self.want.sinks, d.group()),
        };
        let mut block_key = zeros(self.want.key, KEY_BLOCK * key_step);
        let mut block_value = zeros(self.want.value, KEY_BLOCK * value_step);
        for unit in units {
            let Sums { key, value, relative_bias, sinks } = &mut sums;
            let key = Level { block: &mut block_key, all: key, step: key_step };
            let value = Level { block: &mut block_value, all: value, step: value_step };
            visit(job, self.forward, unit, scratch, sinks, &mut Adding { work: self, unit, key, value, relative_bias });
        }
        sums
    }

    /// dQ += dscore K.
    fn add_query(&self, tile: &mut GradientTile, side: &mut Side, keys: &Range<usize>, key: Rows<'_>) {
        if self.query.is_none() {
            return;
        }
        let width = side.panel.width;
        // NaN or infinity in a key shows in the scores of rows that it is visible to; for others, 0 times it must be 0.
        let finite = (0..keys.len()).all(|j| all_finite(key.row(j)));
        let used = if finite { key } else { key.cleaned(keys.len(), &mut tile.tile.clean) };
        self.job.isa.run(Product {
            panel: width,
            count: key.width,
            depth: keys.len(),
            a: used.data,
            row_step: 1,
            depth_step: used.step,
            b: tile.products.take(width * keys.len()),
            b_step: width,
            c: side.d_query.take(width * key.width),
            c_step: width,
            start: if side.started { Start::There } else { Start::Nothing },
            ahead: None,
        });
        side.started = true;
    }

    /// to[key] += sum over the lanes of factors[key][lane] * rows[lane], for rows of whole cache lines.
    fn add_rows(&self, width: usize, factors: &[f32], rows: &[f32], to: &mut [f32], step: usize, keys: usize) {
        let widest = self.job.isa.panel();
        for first in (0..step).step_by(widest) {
            self.job.isa.run(Product {
                panel: widest.min(step - first),
                count: keys,
                depth: width,
                a: factors,
                row_step: width,
                depth_step: 1,
                b: &rows[first..],
                b_step: step,
                c: &mut to[first..],
                c_step: step,
                start: Start::There,
                ahead: None,
            });
        }
    }

    fn add_relative_bias(&self, tile: &mut GradientTile, unit: &Unit, panel: &Panel, keys: &Range<usize>, to: &mut [f32]) {
        let (Some(max), true) = (self.job.problem.relative_bias_max_distance, self.want.relative_bias) else { return };
        let max = i64::from(max);
        let columns = 2 * max as usize + 1;
        let d_bias = tile.d_bias(self.job, panel.width * keys.len());
        for lane in 0..panel.rows {
            let (head, i) = unit.row(self.job.problem, panel.first + lane);
            let position = i as i64 + self.job.items[unit.item].offset;
            let table = &mut to[head % self.job.problem.dims.group() * columns..][..columns];
            for (j, key) in keys.clone().enumerate() {
                let column = (position - key as i64).clamp(-max, max) + max;
                table[column as usize] += d_bias[j * panel.width + lane];
            }
        }
    }

    /// Writes dQ of a panel's rows.
    fn write_query(&self, unit: &Unit, tile: &mut GradientTile, side: &mut Side) {
        let Some(query) = &self.query else { return };
        let problem = self.job.problem;
        let (width, head_dim) = (side.panel.width, problem.dims.head_dim);
        let rows = tile.rows.take(width * head_dim);
        if side.started {
            let from = &*side.d_query.take(width * head_dim);
            self.job.isa.run(Transpose { rows: head_dim, columns: width, from, from_step: width, to: rows, to_step: head_dim });
        } else {
            rows.fill(0.0);
        }
        let scale = problem.effective_scale();
        for (r, row) in rows.chunks_exact_mut(head_dim).take(side.panel.rows).enumerate() {
            row.iter_mut().for_each(|x| *x *= scale);
            let (head, i) = unit.row(problem, side.panel.first + r);
            let place = self.job.place(unit, Operand::Query, head, i);
            // SAFETY: `WantGradients::check` rejects queries whose elements share a place; each row is finished once.
            unsafe { query.write_row(place.start, place.step, row) };
        }
    }
}
