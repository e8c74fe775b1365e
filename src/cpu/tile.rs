//! Panel of query rows, and its tile with one block of keys: product, softcap, biases, masking and dropout.

use std::ops::Range;

use super::job::{Job, Unit};
use super::kernel::SimdKernel;
use super::matrix::{MatrixProduct, PackedRows, Parts, ROWS, SMALLEST};
use super::matrix_pack::{MatrixPlan, PackedPanel, panel_words};
use super::pack::{Rows, Transpose};
use super::product::{Product, Start};
use super::shared::{Buffer, LINE};
use super::simd::Simd;
use super::softmax::{Modify, Softmax};
use super::user_grid::{By, Grid, Step, UserScratch};
use super::visible::hull;
use crate::custom::tile::Status;
use crate::problem::{Problem, ScoreOrder, along_keys};

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
    /// Queries as the matrix b of a product: scaled, or not, as the plan has it.
    packed_query: PackedPanel,
    /// True if all queries are in the range of matrix products.
    pub(super) is_packed: bool,
    /// Sums of weighted rows, [dim][lane]: the output, or dQ. Nothing was added unless `started`.
    /// Rows of padding may follow.
    pub(super) output: Buffer,
    started: bool,
    /// Max of each lane.
    pub(super) max: Buffer,
    /// Running sum of each lane; in the end the factor that makes weights of `exp(score - max)`.
    pub(super) sum: Buffer,
}

impl Panel {
    /// Rows of the panel, counted from the unit's first.
    pub(super) const fn range(&self) -> Range<usize> {
        self.first..self.first + self.rows
    }

    /// Its tile with some keys. `tests` is false if masks of the user's terms are known to show all of it.
    pub(super) fn grid<'a>(&self, job: &'a Job<'a>, unit: &'a Unit, keys: &Range<usize>, tests: bool) -> Grid<'a> {
        Grid { job, unit, rows: self.range(), keys: keys.clone(), step: Step::Keys(self.width), tests }
    }

    /// Loads rows of the unit from `first` on, as many as fit: their intervals and scaled queries.
    pub(super) fn load(&mut self, job: &Job<'_>, unit: &Unit, first: usize, scratch: &mut Buffer) {
        let (item, head_dim) = (&job.items[unit.item], job.problem.dims.head_dim);
        let rows = job.isa.panel().min(unit.rows - first);
        let width = rows.next_multiple_of(job.isa.panel_unit());
        (self.first, self.rows, self.width, self.started) = (first, rows, width, false);
        self.max.take(width).fill(f32::MIN);
        self.sum.take(width).fill(0.0);

        let from = scratch.take(width * head_dim);
        from[rows * head_dim..].fill(0.0);
        self.seen.clear();
        for (r, to) in from.chunks_exact_mut(head_dim).take(rows).enumerate() {
            job.read_unscaled_query(unit, first + r, to);
            let seen = item.interval(job.problem, unit.row(job.problem, first + r).1);
            let start = seen.start.max(unit.keys.start);
            self.seen.push(start..seen.end.min(unit.keys.end).max(start));
        }
        self.some = hull(self.seen.iter().cloned());
        self.all = self.seen.iter().map(|s| s.start).max().unwrap_or(0)..self.seen.iter().map(|s| s.end).min().unwrap_or(0);
        let to = self.query.take(width * head_dim);
        job.isa.run(Transpose { rows: width, columns: head_dim, from, from_step: head_dim, to: &mut *to });
        let scale = job.problem.effective_scale();
        let scale_all = |queries: &mut [f32]| job.isa.run(Modify { scale, ..Modify::nothing(width, queries) });
        let scales_first = job.matrix.is_none_or(|plan| plan.scales_query);
        if scales_first {
            scale_all(to);
        }
        self.is_packed = false;
        if let Some(plan) = job.matrix {
            self.is_packed = self.packed_query.pack(job.isa, to, width, plan.query, SMALLEST);
        }
        if !scales_first {
            scale_all(to);
        }
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

    /// Adds the products of packed values and the weights that a tile has packed to the output, which is first rescaled.
    pub(super) fn add_packed(&mut self, job: &Job<'_>, plan: MatrixPlan, a: PackedRows<'_>, keys: usize, tile: &mut Tile) {
        let (width, rows) = (self.width, job.problem.dims.head_dim_v.next_multiple_of(ROWS));
        let start = match self.started {
            false => Start::Nothing,
            true if tile.is_loose => Start::There,
            true => Start::Scaled(tile.alpha.take(width)),
        };
        let step = panel_words(1, keys, width);
        job.isa.run(MatrixProduct {
            a,
            b: Parts { words: tile.packed.take(plan.weights * step), count: plan.weights, step },
            chunks: keys.div_ceil(ROWS),
            rows,
            width,
            c: self.output.take(width * rows),
            start,
        });
        self.started = true;
    }

    /// Adds the products of packed columns of keys and a packed panel [key][lane] to the output.
    pub(super) fn add_columns(&mut self, a: PackedRows<'_>, b: Parts<'_>, keys: usize, job: &Job<'_>) {
        let (width, rows) = (self.width, job.problem.dims.head_dim.next_multiple_of(ROWS));
        let start = if self.started { Start::There } else { Start::Nothing };
        job.isa.run(MatrixProduct { a, b, chunks: keys.div_ceil(ROWS), rows, width, c: self.output.take(width * rows), start });
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

/// Scores of one panel and one block of keys, with the scratch memory to compute them. Matrices are [key][lane].
#[derive(Default)]
pub(super) struct Tile {
    /// Scores, then weights.
    /// Rows of padding may follow.
    pub(super) scores: Buffer,
    /// Factor that the scores have not been multiplied by yet.
    pub(super) scale: f32,
    /// Weights as the matrix b of a product.
    pub(super) packed: Buffer,
    before: Buffer,
    pub(super) additive_mask: Buffer,
    pub(super) dropout_mask: Buffer,
    bounds: Buffer,
    /// Factor of each lane on earlier sums, unless they stay as they are.
    pub(super) alpha: Buffer,
    /// True if the last step of the running softmax was loose: see [`Softmax`].
    is_loose: bool,
    /// Products of output gradients with values, then the gradients of the scores.
    pub(super) products: Buffer,
    /// Capped scores, then the gradients of the biases; used only where a softcap comes before the biases.
    pub(super) capped: Buffer,
    /// Keys or values without NaN and infinity.
    pub(super) clean: Buffer,
    /// Scratch memory, [lane][any].
    pub(super) rows: Buffer,
    /// Derivatives of the scores by what they were before the user's terms.
    pub(super) slopes: Buffer,
    pub(super) users: UserScratch,
    /// True if the masks of the user's terms hide some of the pairs.
    tests_users: bool,
    /// True if terms with a status may hide some of the pairs.
    tests_told: bool,
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
    /// Determines how the pairs of a panel's grid are masked, and prepares the additive mask.
    pub(super) fn masking(&mut self, panel: &Panel, grid: &Grid<'_>) -> Masking {
        let (job, unit, keys) = (grid.job, grid.unit, &grid.keys);
        let (width, step) = (panel.width, keys.len());
        if !self.may_see(grid) {
            return Masking::Everything;
        }
        if self.has_additive_mask(job) {
            let to = self.rows.take(width * step);
            to[panel.rows * step..].fill(0.0);
            let mut kind = Masking::Additive;
            job.isa.run(AdditiveMask { job, unit, rows: panel.range(), keys: keys.clone(), to, step, kind: &mut kind });
            if kind == Masking::Additive {
                let (from, to) = (self.rows.take(width * step), self.additive_mask.take(width * step));
                job.isa.run(Transpose { rows: width, columns: step, from, from_step: step, to });
            }
            return kind;
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

    /// False if terms that know tiles hide all of some rows and keys.
    pub(super) fn may_see(&mut self, grid: &Grid<'_>) -> bool {
        let of_terms = grid.of_built_ins();
        let of_users = if of_terms == Status::None { of_terms } else { grid.mask(&mut self.users) };
        (self.tests_users, self.tests_told) = (of_users == Status::Some, of_terms != Status::All);
        of_users != Status::None
    }

    /// True if scores need an additive mask besides the intervals, after [`Self::may_see`].
    pub(super) fn has_additive_mask(&self, job: &Job<'_>) -> bool {
        job.problem.terms().any(|term| term.add.is_some() || (term.mask.is_some() && (term.status.is_none() || self.tests_told)))
    }

    /// Computes scores before softcap and biases, except for a factor: `self.scale`.
    pub(super) fn score(&mut self, job: &Job<'_>, panel: &mut Panel, key: Rows<'_>, packed: Option<PackedRows<'_>>) {
        let width = panel.width;
        self.scale = 1.0;
        let (Some(plan), Some(a), true) = (job.matrix, packed, panel.is_packed) else {
            let (query, scores) = (panel.query.take(width * key.width), self.scores.take(width * key.count));
            return job.isa.run(Product::new(key, width, query, scores, Start::Nothing));
        };
        if !plan.scales_query {
            self.scale = job.problem.effective_scale();
        }
        let rows = key.count.next_multiple_of(ROWS);
        job.isa.run(MatrixProduct {
            a,
            b: panel.packed_query.parts(),
            chunks: key.width.div_ceil(ROWS),
            rows,
            width,
            c: self.scores.take(width * rows),
            start: Start::Nothing,
        });
    }

    /// Applies a softcap and biases to the scores of some keys, in the problem's order, and writes -inf where masked. Leaves
    /// the factor to what comes next if nothing else changes the scores.
    pub(super) fn modify(&mut self, job: &Job<'_>, width: usize, keys: usize, masking: Masking, softcap: Option<f32>) {
        let scores = self.scores.take(width * keys);
        match masking {
            Masking::Everything => scores.fill(f32::NEG_INFINITY),
            Masking::Nothing if softcap.is_none() && (self.scale == 1.0 || !job.problem.has_user_terms()) => return,
            _ => job.isa.run(Modify {
                scale: self.scale,
                softcap,
                bias_first: job.problem.score_order == ScoreOrder::BiasThenSoftcap,
                additive_mask: (masking == Masking::Additive).then_some(self.additive_mask.take(width * keys)),
                bounds: (masking == Masking::Bounds).then_some(self.bounds.take(2 * width).split_at(width)),
                ..Modify::nothing(width, scores)
            }),
        }
        self.scale = 1.0;
    }

    /// Multiplies the scores of some keys by the factor that [`Self::modify`] has left.
    pub(super) fn apply_scale(&mut self, job: &Job<'_>, width: usize, keys: usize) {
        let scale = std::mem::replace(&mut self.scale, 1.0);
        if scale != 1.0 {
            job.isa.run(Modify { scale, ..Modify::nothing(width, self.scores.take(width * keys)) });
        }
    }

    /// Applies the user's terms to modified scores, the last that changes them. [`Self::may_see`] came before.
    pub(super) fn apply_user_terms(&mut self, grid: &Grid<'_>, by: By<'_>) {
        let len = grid.len();
        let slopes = self.slopes.take(if matches!(by, By::Nothing) { 0 } else { len });
        slopes.fill(1.0);
        grid.apply(&mut self.users, self.tests_users, self.scores.take(len), slopes, by);
    }

    /// Folds the modified scores of so many keys into the panel's running softmax. They become weights, which are packed if
    /// there is a plan.
    pub(super) fn softmax(&mut self, job: &Job<'_>, panel: &mut Panel, keys: usize, plan: Option<MatrixPlan>) {
        let width = panel.width;
        let packed = plan.map(|plan| (self.packed.take(panel_words(plan.weights, keys, width)), plan.weights));
        self.is_loose = packed.is_some() && job.lse.is_none() && job.stats.is_none() && job.weights.is_none();
        job.isa.run(Softmax {
            panel: width,
            scores: self.scores.take(width * keys),
            scale: self.scale,
            max: panel.max.take(width),
            sum: panel.sum.take(width),
            alpha: self.alpha.take(width),
            packed,
            loose: &mut self.is_loose,
        });
    }

    /// Computes the dropout factors of a panel and these keys.
    pub(super) fn drop(&mut self, job: &Job<'_>, unit: &Unit, panel: &Panel, keys: &Range<usize>) {
        job.isa.run(DropoutMask { job, unit, panel, keys, to: self.dropout_mask.take(panel.width * keys.len()) });
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

/// Softcap of a problem, if it comes before the biases.
pub(super) fn softcap_before_biases(problem: &Problem) -> Option<f32> {
    problem.softcap.filter(|_| problem.score_order == ScoreOrder::SoftcapThenBias)
}

/// Runs [`Item::fill_additive_mask`] for some rows of a unit, which are `step` apart in `to` and zero-padded to `step`.
pub(super) struct AdditiveMask<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) unit: &'a Unit,
    /// Counted from the unit's first row.
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) to: &'a mut [f32],
    pub(super) step: usize,
    /// Set to the masking that the result means: none, additive, or of everything.
    pub(super) kind: &'a mut Masking,
}

impl SimdKernel for AdditiveMask<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (job, keys) = (self.job, self.keys);
        let item = &job.items[self.unit.item];
        // All elements are -inf if both `or` and `and` of their bits are; all are 0 if `or` has at most the sign bit.
        let (mut or, mut and) = (0, u32::MAX);
        let (first, count) = (self.rows.start, self.rows.len());
        for (r, row) in self.rows.zip(self.to.chunks_exact_mut(self.step)) {
            let at = self.unit.row(job.problem, r);
            let (row, padding) = row.split_at_mut(keys.len());
            padding.fill(0.0);
            item.fill_additive_mask(job.problem, job.inputs, at, keys.clone(), row);
            if job.problem.bias.is_some() {
                // The row of the unit's next panel in the same block, or of its first panel in the next block: too far away for the
                // hardware prefetcher. Rows of the next block of the same panel would be evicted until then, because equal parts
                // of many pages share few sets of the cache.
                let (row_ahead, key_ahead) = if r + count < self.unit.rows { (r + count, keys.start) } else { (r - first, keys.end) };
                let (head, i) = self.unit.row(job.problem, row_ahead);
                if let (bias, 1) = along_keys(job.problem.bias, [item.batch, head, i, key_ahead]) {
                    for ahead in (0..keys.len()).step_by(LINE) {
                        // SAFETY: the machine has V's instructions by contract.
                        unsafe { V::prefetch(job.inputs.bias.as_ptr().wrapping_add(bias + ahead)) };
                    }
                }
            }
            for x in row {
                or |= x.to_bits();
                and &= x.to_bits();
            }
        }
        const HIDDEN: u32 = f32::NEG_INFINITY.to_bits();
        *self.kind = match (or, and) {
            (HIDDEN, HIDDEN) => Masking::Everything,
            (or, _) if or << 1 == 0 => Masking::Nothing,
            _ => Masking::Additive,
        };
    }
}

/// Computes the dropout factors of a panel's weights, [key][lane].
struct DropoutMask<'a> {
    job: &'a Job<'a>,
    unit: &'a Unit,
    panel: &'a Panel,
    keys: &'a Range<usize>,
    to: &'a mut [f32],
}

impl SimdKernel for DropoutMask<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        /// Lanes at a time; divides every panel width.
        const N: usize = 4;
        let Self { job, unit, panel, keys, to } = self;
        let Some(rule) = job.problem.dropout_rule() else { return to.fill(1.0) };
        let first_pair = job.items[unit.item].batch * job.problem.dims.num_heads;
        for lane in (0..panel.width).step_by(N) {
            let at: [_; N] = std::array::from_fn(|n| unit.row(job.problem, panel.first + (lane + n).min(panel.rows - 1)));
            let (pairs, rows) = (at.map(|(head, _)| (first_pair + head) as u32), at.map(|(_, i)| i as u32));
            for quad in keys.start / 4..keys.end.div_ceil(4) {
                let words = job.inputs.dropout.words_of(pairs, rows, quad);
                for (key, words) in (4 * quad..).zip(words).filter(|(key, _)| keys.contains(key)) {
                    let to = &mut to[(key - keys.start) * panel.width + lane..][..N];
                    to.iter_mut().zip(words).for_each(|(to, word)| *to = rule.scale(word));
                }
            }
        }
    }
}
