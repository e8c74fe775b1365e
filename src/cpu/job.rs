//! Data of a call that all its units of work share, and the reading and writing of rows.

use std::cell::OnceCell;
use std::ops::Range;

use super::kernel::Isa;
use super::pack::{RowLayout, Rows, SharedOutput, Widen};
use super::shared::{Buffer, LINE, Shared};
use super::tile_list::TileList;
use super::user_term::UserTerm;
use super::visible::Item;
use crate::numbers::HostSlice;
use crate::problem::{Inputs, Operand, Problem, ScoreStage};
use crate::terms::TileAt;

/// Keys between two rescalings of the output. GFLOP/s on Ice Lake with AVX-512, one thread, 1x1x1024x64: 64 keys 140,
/// 96 139, 128 132, 192 130, 256 133. With 64, a panel's weights and queries leave room in 48 KiB of first-level cache.
pub(super) const KEY_BLOCK: usize = 64;

/// Problem, data and outputs that all units share.
pub(super) struct Job<'a> {
    pub(super) problem: &'a Problem,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) isa: Isa,
    pub(super) items: &'a [Item],
    /// List of visible tiles, where the masks of users' terms have one.
    pub(super) list: Option<&'a TileList>,
    /// `None` where only statistics are wanted.
    pub(super) output: Option<SharedOutput<'a>>,
    pub(super) lse: Option<Shared<'a, f32>>,
    pub(super) stats: Option<Shared<'a, [f32; 2]>>,
    pub(super) scores: Option<(ScoreStage, Shared<'a, f32>)>,
    pub(super) weights: Option<Shared<'a, f32>>,
    /// The user's terms.
    pub(super) users: Vec<UserTerm<'a>>,
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
    /// Estimate of the pairs that are computed.
    pub(super) work: usize,
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

    /// Smallest tile that contains some of the unit's rows, counted from its first, and these keys.
    pub(super) fn tile(&self, problem: &Problem, batch: usize, rows: Range<usize>, keys: Range<usize>) -> TileAt {
        let group = problem.dims.group();
        let (first, last) = (self.first_row + rows.start, self.first_row + rows.end - 1);
        let first_head = self.kv_head * group;
        let heads = if first / group == last / group { first % group..last % group + 1 } else { 0..group };
        TileAt { batch, heads: first_head + heads.start..first_head + heads.end, rows: first / group..last / group + 1, keys }
    }

    /// First and last query head of its rows' group.
    pub(super) fn heads(&self, problem: &Problem) -> [usize; 2] {
        let group = problem.dims.group();
        [self.kv_head * group, self.kv_head * group + group - 1]
    }
}

/// Block of a unit's keys and their values.
pub(super) struct Block<'a> {
    pub(super) keys: Range<usize>,
    /// True if masks of the user's terms may hide some of its pairs.
    pub(super) tests_users: bool,
    key: Rows<'a>,
    value: Rows<'a>,
    summed: Operand,
    finite: OnceCell<bool>,
}

impl<'a> Block<'a> {
    /// Reads the block that starts at key `start`. Rows of the operand `summed` will be multiplied by weights and added.
    pub(super) fn read(
        job: &'a Job<'_>,
        unit: &Unit,
        start: usize,
        tests_users: bool,
        summed: Operand,
        buffers: &'a mut [Buffer; 2],
    ) -> Self {
        let keys = start..unit.keys.end.min(start + KEY_BLOCK);
        let [key, value] = buffers;
        // For a sum, rows are read column by column: at a stride of a multiple of 8 cache lines, they would evict each other.
        let in_place = |operand| {
            let strides = job.problem.spec(operand).strides(job.problem.shape(operand));
            operand != summed || !strides.seq.is_multiple_of(8 * LINE)
        };
        let key = job.key_rows(unit, Operand::Key, &keys, in_place(Operand::Key), key);
        let value = job.key_rows(unit, Operand::Value, &keys, in_place(Operand::Value), value);
        Self { keys, tests_users, key, value, summed, finite: OnceCell::new() }
    }

    /// Returns those of its keys that are in `range`, and the rows of keys and values. `None` if no key is.
    pub(super) fn cut(&self, range: &Range<usize>) -> Option<(Range<usize>, Rows<'a>, Rows<'a>)> {
        let keys = range.start.max(self.keys.start)..range.end.min(self.keys.end);
        let part = |rows: Rows<'a>| rows.part(keys.start - self.keys.start, keys.len());
        (!keys.is_empty()).then(|| (keys.clone(), part(self.key), part(self.value)))
    }

    /// True if no element of the operand that is summed is NaN or infinite.
    pub(super) fn is_finite(&self) -> bool {
        *self.finite.get_or_init(|| if self.summed == Operand::Key { self.key } else { self.value }.is_finite())
    }
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

    /// Location of row `r` of a unit in the query or output.
    pub(super) fn row_place(&self, unit: &Unit, operand: Operand, r: usize) -> RowLayout {
        let (head, i) = unit.row(self.problem, r);
        self.place(unit, operand, head, i)
    }

    /// Reads row `r` of a unit from `data`, which is stored as the query or output.
    pub(super) fn read_row(&self, data: HostSlice<'_>, operand: Operand, unit: &Unit, r: usize, to: &mut [f32]) {
        let width = to.len();
        Widen { data, at: self.row_place(unit, operand, r), rows: 1, width, to, to_step: width }.read(self.isa);
    }

    /// Reads the scaled query of row `r` of a unit.
    pub(super) fn read_query(&self, unit: &Unit, r: usize, to: &mut [f32]) {
        self.read_row(self.inputs.query, Operand::Query, unit, r, to);
        let scale = self.problem.effective_scale();
        to.iter_mut().for_each(|x| *x *= scale);
    }

    /// Returns some keys or values: in place if that is wanted and they are f32 on one page, contiguous; else a copy.
    pub(super) fn key_rows<'a>(
        &'a self,
        unit: &Unit,
        operand: Operand,
        keys: &Range<usize>,
        in_place: bool,
        scratch: &'a mut Buffer,
    ) -> Rows<'a> {
        let data = if operand == Operand::Key { self.inputs.key } else { self.inputs.value };
        let (count, width) = (keys.len(), self.problem.shape(operand)[3]);
        let place = |key| self.place(unit, operand, unit.kv_head, key);
        let page_size = self.problem.paged.map_or(usize::MAX, |paged| paged.page_size);
        let run_end = |key: usize| keys.end.min((key / page_size + 1) * page_size);
        let at = place(keys.start);
        if let (HostSlice::F32(data), 1, true) = (data, at.step, in_place && run_end(keys.start) == keys.end) {
            let end = at.start + (count - 1) * at.row_step + width;
            return Rows { data: &data[at.start..end], count, width, step: at.row_step };
        }
        Rows::copy(count, width, scratch, |to, to_step| {
            let mut key = keys.start;
            while key < keys.end {
                let (end, to) = (run_end(key), &mut to[(key - keys.start) * to_step..]);
                Widen { data, at: place(key), rows: end - key, width, to, to_step }.read(self.isa);
                key = end;
            }
        })
    }

    /// Finishes a row, or writes it to `partials` if the unit is a part. Returns the factor that normalises weights, or 1.
    pub(super) fn hand_out_row(&self, unit: &Unit, r: usize, row: &mut [f32], max: f32, sum: f32) -> f32 {
        let Some(partial) = unit.partial else {
            return self.finish_row(unit, r, (row, max, sum), 1.0);
        };
        let (width, at) = (row.len(), partial + r * (row.len() + 2));
        // SAFETY: each row of each part has a record of its own, read only after all units are done.
        let record = unsafe { self.partials.slice(at..at + width + 2) };
        let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        record[..width].iter_mut().zip(row).for_each(|(to, x)| *to = if sum == 0.0 { 0.0 } else { *x * factor });
        record[width..].copy_from_slice(&[max, sum]);
        1.0
    }

    /// Writes output, lse and statistics of a row from its output, max and sum. The row's output must be the sum of
    /// values with weights `exp(score - max) / divided`. Returns the factor that turns `exp(score - max)` into a weight.
    pub(super) fn finish_row(&self, unit: &Unit, r: usize, (row, max, sum): (&mut [f32], f32, f32), divided: f32) -> f32 {
        let (head, i) = unit.row(self.problem, r);
        let (mut top, mut rescale, mut total) = (max, 1.0, sum);
        if self.problem.sinks {
            let sink = self.inputs.sinks[head];
            top = max.max(sink);
            rescale = (max - top).exp();
            total = sum * rescale + (sink - top).exp();
        }
        let factor = if total == 0.0 { 0.0 } else { rescale / total };
        // A row whose weights are all 0 has output 0, even if a value with weight 0 has left a NaN.
        row.iter_mut().for_each(|x| *x = if total == 0.0 { 0.0 } else { *x * (factor * divided) });
        let at = self.items[unit.item].lse_place(self.problem, head, i);
        // SAFETY: `Problem::check` rejects outputs whose elements share a place, and each row is finished once.
        unsafe {
            if let Some(output) = &self.output {
                output.write_row(self.place(unit, Operand::Output, head, i), row);
            }
            if let Some(lse) = &self.lse {
                lse.slice(at..at + 1)[0] = top + total.ln();
            }
            if let Some(stats) = &self.stats {
                stats.slice(at..at + 1)[0] = [top, total];
            }
        }
        factor
    }
}
