//! One task of the backward pass: query rows of one key/value head against all their keys.

use super::backward_matrix::{PackedPairs, PackedSide, parts_of_pairs};
use super::bias_gradient::{add_tile, d_bias};
use super::job::{Block, BlockBuffers, Cut, Job, Unit};
use super::kernel::Isa;
use super::pack::{Rows, SharedOutput, Transpose, all_finite};
use super::product::{Product, Start};
use super::shared::{Buffer, LINE, Shared};
use super::softmax::Gradient;
use super::tile::{Masking, Panel, Tile, softcap_before_biases};
use super::user_grid::{By, ByTable};
use super::user_terms::each_block;
use crate::numbers::HostSlice;
use crate::problem::{Operand, WantGradients};

/// Inputs and outputs that all tasks share: [`crate::BackwardInputs`] with statistics.
pub(super) struct Work<'a> {
    pub(super) job: Job<'a>,
    pub(super) output: HostSlice<'a>,
    pub(super) stats: &'a [[f32; 2]],
    pub(super) d_output: HostSlice<'a>,
    pub(super) d_lse: Option<&'a [f32]>,
    pub(super) want: &'a WantGradients,
    pub(super) query: Option<SharedOutput<'a>>,
    /// Gradient of the bias, where each of its elements belongs to one unit.
    pub(super) bias: Option<Shared<'a, f32>>,
}

/// Gradients that a task accumulates; empty where they are not wanted.
pub(super) struct Sums {
    pub(super) key: KeySums,
    pub(super) value: KeySums,
    /// [query heads of the group, columns].
    pub(super) relative_bias: Vec<f32>,
    /// One element per query head of the group.
    pub(super) sinks: Vec<f32>,
}

/// Gradient of keys or values, summed in two levels: per block of keys, and over the blocks.
pub(super) struct KeySums {
    /// Elements of a row: its width rounded up to whole cache lines.
    pub(super) step: usize,
    /// [keys of a block, step]: sums of the current block; 0 at its start.
    block: Vec<f32>,
    /// [keys of the item, step].
    pub(super) all: Vec<f32>,
}

/// Panel with the data that its gradients need. Its output is dQ; max and sum are those of the forward pass.
#[derive(Default)]
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
    packed: PackedSide,
    delta: Buffer,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) sides: Vec<Side>,
    pub(super) block: BlockBuffers,
    pub(super) tile: Tile,
    /// Operands of matrix products.
    pub(super) pairs: PackedPairs,
}

impl KeySums {
    fn new(wanted: bool, block: usize, keys: usize, width: usize) -> Self {
        let step = width.next_multiple_of(LINE);
        let zeros = |rows| vec![0.0; if wanted { rows * step } else { 0 }];
        Self { step, block: zeros(block), all: zeros(keys) }
    }

    /// Adds the sum over the lanes of `factors[key][lane] * rows[lane]` to the block's rows from `first` on.
    fn add(&mut self, isa: Isa, first: usize, factors: Rows<'_>, rows: &[f32]) {
        isa.run(Product::new(factors, self.step, rows, &mut self.block[first * self.step..], Start::There));
    }

    /// Adds the sums of the block that starts at key `start` to the totals, and clears them.
    fn fold(&mut self, start: usize) {
        for (x, block) in self.all.iter_mut().skip(start * self.step).zip(&mut self.block[..]) {
            *x += std::mem::take(block);
        }
    }
}

impl Side {
    /// Loads rows of the unit from `first` on, and adds their share to the gradients in `sinks`.
    fn load(&mut self, work: &Work<'_>, unit: &Unit, first: usize, tile: &mut Tile, sinks: &mut [f32]) {
        let (job, d) = (&work.job, &work.job.problem.dims);
        self.panel.load(job, unit, first, &mut tile.rows);
        self.unfinite.clear();
        let width = self.panel.width;
        let (query_step, step) = (d.head_dim.next_multiple_of(LINE), d.head_dim_v.next_multiple_of(LINE));
        let query_rows = self.query_rows.take(width * query_step);
        let d_output_rows = self.d_output_rows.take(width * step);
        let (max, factor, delta) = (self.panel.max.take(width), self.panel.sum.take(width), self.delta.take(width));
        [&mut *query_rows, &mut *d_output_rows, &mut *max, &mut *factor, &mut *delta].into_iter().for_each(|all| all.fill(0.0));
        let output = tile.rows.take(d.head_dim_v);
        for r in 0..self.panel.rows {
            let query = &mut query_rows[r * query_step..][..d.head_dim];
            job.read_query(unit, first + r, query);
            query.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 0.0);
            let d_output = &mut d_output_rows[r * step..][..d.head_dim_v];
            job.read_row(work.d_output, Operand::Output, unit, first + r, d_output);
            job.read_row(work.output, Operand::Output, unit, first + r, output);
            // A row without visible keys has output 0, and its output gradient may be anything.
            delta[r] = output.iter().zip(&*d_output).map(|(&o, &d)| if o == 0.0 { 0.0 } else { o * d }).sum();
            let (head, i) = unit.row(job.problem, first + r);
            let of_lse = job.items[unit.item].lse_place(job.problem, head, i);
            let [m, l] = work.stats[of_lse];
            if l != 0.0 {
                (max[r], factor[r]) = (m, 1.0 / l);
                delta[r] -= work.d_lse.map_or(0.0, |d_lse| d_lse[of_lse]);
            }
            if let Some(sink) = sinks.get_mut(head % d.group()) {
                *sink -= (job.inputs.sinks[head] - max[r]).exp() * factor[r] * delta[r];
            }
        }
        let to = self.d_output.take(width * d.head_dim_v);
        job.isa.run(Transpose { rows: width, columns: d.head_dim_v, from: d_output_rows, from_step: step, to });
        if !all_finite(d_output_rows) {
            for (at, x) in d_output_rows.iter_mut().enumerate().filter(|(_, x)| !x.is_finite()) {
                self.unfinite.push((at / step, at % step, *x));
                *x = 0.0;
            }
        }
        if self.unfinite.is_empty() {
            let rows = [(&*self.query_rows.take(width * query_step), query_step), (&*d_output_rows, step)];
            self.packed.pack(job, &self.panel, self.d_output.take(width * d.head_dim_v), rows);
        } else {
            self.packed = PackedSide::default();
        }
    }
}

impl Work<'_> {
    /// Loads the rows of a unit, and adds their share to the gradients in `sinks`.
    pub(super) fn load<'s>(&self, unit: &Unit, sides: &'s mut Vec<Side>, tile: &mut Tile, sinks: &mut [f32]) -> &'s mut [Side] {
        let widest = self.job.isa.panel();
        let count = unit.rows.div_ceil(widest);
        if sides.len() < count {
            sides.resize_with(count, Side::default);
        }
        let sides = &mut sides[..count];
        sides.iter_mut().enumerate().for_each(|(p, side)| side.load(self, unit, p * widest, tile, sinks));
        sides
    }

    /// Computes the weights and score gradients of the block's keys that are in the intervals of a side's rows. Returns
    /// those keys; `None` if all pairs are masked. With a `table`, the gradients are by its elements.
    pub(super) fn differentiate<'b>(
        &self,
        unit: &Unit,
        side: &mut Side,
        block: &Block<'b>,
        tile: &mut Tile,
        table: Option<&ByTable<'_>>,
    ) -> Option<Cut<'b>> {
        let (job, problem) = (&self.job, self.job.problem);
        let panel = &mut side.panel;
        let cut = block.cut(&panel.some)?;
        let Cut { keys, value, .. } = &cut;
        let (width, count, len) = (panel.width, keys.len(), panel.width * keys.len());
        let grid = panel.grid(job, unit, keys, block.tests_users);
        let masking = tile.masking(panel, &grid);
        if masking == Masking::Everything {
            return None;
        }
        tile.score(job, panel, cut.key, cut.packed_key);
        let before_biases = softcap_before_biases(problem);
        if before_biases.is_some() {
            tile.modify(job, width, count, Masking::Nothing, before_biases);
            tile.capped.take(len).copy_from_slice(tile.scores.take(len));
        }
        tile.modify(job, width, count, masking, problem.softcap.filter(|_| before_biases.is_none()));
        let has_users = problem.has_user_terms();
        if has_users && before_biases.is_none() && problem.softcap.is_some() {
            tile.capped.take(len).copy_from_slice(tile.scores.take(len));
        }
        let has_slopes = table.is_some() || job.users.iter().any(|term| term.slope.is_some());
        let by_scores = if has_slopes { By::Scores } else { By::Nothing };
        tile.apply_user_terms(&grid, table.map_or(by_scores, By::Table));
        if !side.unfinite.is_empty() {
            tile.keep_scores(len);
        }
        if !side.packed.multiply_values(job, &cut, width, &mut tile.products) {
            let (products, d_output) = (tile.products.take(len), side.d_output.take(width * value.width));
            job.isa.run(Product::new(*value, width, d_output, products, Start::Nothing));
        }
        let drops = problem.dropout_rule().is_some();
        if drops {
            tile.drop(job, unit, &side.panel, keys);
        }
        let panel = &mut side.panel;
        let slopes: &mut [f32] = tile.slopes.take(len);
        job.isa.run(Gradient {
            panel: width,
            scores: tile.scores.take(len),
            scale: tile.scale,
            products: tile.products.take(len),
            max: panel.max.take(width),
            factor: panel.sum.take(width),
            delta: side.delta.take(width),
            dropout_mask: drops.then_some(tile.dropout_mask.take(len)),
            softcap: problem.softcap,
            capped: problem.softcap.filter(|_| has_users || before_biases.is_some()).map(|_| tile.capped.take(len)),
            slopes: has_slopes.then_some(slopes),
        });
        Some(cut)
    }

    /// Computes the sums of a task.
    pub(super) fn run(&self, units: &[Unit], scratch: &mut Scratch) -> Sums {
        let (job, d) = (&self.job, &self.job.problem.dims);
        let keys = units.first().map_or(0, |unit| job.items[unit.item].keys);
        let zeros = |wanted: bool, columns: usize| vec![0.0; if wanted { d.group() * columns } else { 0 }];
        let mut sums = Sums {
            key: KeySums::new(self.want.key, job.key_block(), keys, d.head_dim),
            value: KeySums::new(self.want.value, job.key_block(), keys, d.head_dim_v),
            relative_bias: zeros(self.want.relative_bias, job.problem.relative_bias_columns()),
            sinks: zeros(self.want.sinks, 1),
        };
        let Scratch { sides, block: buffers, tile, pairs } = scratch;
        for unit in units {
            let sides = self.load(unit, sides, tile, &mut sums.sinks);
            each_block(job, unit, (Operand::Key, true), buffers, |block| {
                for side in sides.iter_mut() {
                    self.add(unit, side, block, (tile, pairs), &mut sums);
                }
                sums.key.fold(block.keys.start);
                sums.value.fold(block.keys.start);
            });
            sides.iter_mut().for_each(|side| self.write_query(unit, side, tile));
        }
        sums
    }

    /// Adds the gradients of a block's keys: dQ += dscore K, dK += dscoreᵀ Q and dV += pᵀ dO, and those of the biases.
    fn add(&self, unit: &Unit, side: &mut Side, block: &Block<'_>, (tile, pairs): (&mut Tile, &mut PackedPairs), sums: &mut Sums) {
        let Some(cut) = self.differentiate(unit, side, block, tile, None) else { return };
        let (keys, key, parts) = (&cut.keys, cut.key, parts_of_pairs(self.job.problem, self.want));
        let (job, width) = (&self.job, side.panel.width);
        let (first, len) = (keys.start - block.keys.start, width * keys.len());
        let factors = |data| Rows { data, count: keys.len(), width, step: width };
        let Side { panel, packed, query_rows, d_output_rows, .. } = side;
        let d_scores = tile.products.take(len);
        if self.query.is_some() && !packed.add_query(job, &cut, panel, (d_scores, parts), pairs) {
            // NaN or infinity in a key shows in the scores of rows that it is visible to; for others, 0 times it must be 0.
            let used = if block.is_finite() { key } else { key.cleaned(&mut tile.clean) };
            panel.add(job, used, d_scores, None);
        }
        if self.want.key {
            let (factors, step) = ((factors(d_scores), parts), sums.key.step);
            let block = (&mut sums.key.block[first * step..], step);
            if !packed.add_keys(job, &cut, factors, Operand::Query, pairs, block) {
                sums.key.add(job.isa, first, factors.0, query_rows.take(width * step));
            }
        }
        if self.want.value {
            let (factors, step) = ((factors(tile.scores.take(len)), parts), sums.value.step);
            let block = (&mut sums.value.block[first * step..], step);
            if !packed.add_keys(job, &cut, factors, Operand::Output, pairs, block) {
                sums.value.add(job.isa, first, factors.0, d_output_rows.take(width * step));
            }
            for &(lane, e, x) in &side.unfinite {
                for j in (0..keys.len()).filter(|j| tile.sees(j * width + lane)) {
                    sums.value.block[(first + j) * step + e] += tile.scores.get(j * width + lane) * x;
                }
            }
        }
        if let Some(bias) = &self.bias {
            // SAFETY: each element belongs to one unit, and a unit to one task.
            unsafe { add_tile(job, unit, &side.panel, keys.clone(), tile, (bias, 0)) };
        }
        let (Some(max), true) = (job.problem.relative_bias_max_distance.map(i64::from), self.want.relative_bias) else { return };
        let columns = job.problem.relative_bias_columns();
        let d_bias = d_bias(job.problem, &mut tile.capped, &mut tile.products).take(len);
        for lane in 0..side.panel.rows {
            let (head, i) = unit.row(job.problem, side.panel.first + lane);
            let position = i as i64 + job.items[unit.item].offset;
            let table = &mut sums.relative_bias[head % job.problem.dims.group() * columns..][..columns];
            for (j, key) in keys.clone().enumerate() {
                let column = (position - key as i64).clamp(-max, max) + max;
                table[column as usize] += d_bias[j * width + lane];
            }
        }
    }

    /// Writes dQ of a panel's rows.
    fn write_query(&self, unit: &Unit, side: &mut Side, tile: &mut Tile) {
        let Some(query) = &self.query else { return };
        let (job, head_dim) = (&self.job, self.job.problem.dims.head_dim);
        let scale = job.problem.effective_scale();
        let rows = side.panel.output_rows(job, head_dim, &mut tile.rows);
        for (r, row) in rows.chunks_exact_mut(head_dim).take(side.panel.rows).enumerate() {
            // SAFETY: `WantGradients::check` rejects queries whose elements share a place; each row is finished once.
            unsafe { query.write_row(job.isa, job.row_place(unit, Operand::Query, side.panel.first + r), row, Some(scale)) };
        }
    }
}
