//! Data of a call that all its units of work share, and the reading and writing of rows.

use std::cell::OnceCell;
use std::ops::Range;

use half::bf16;

use super::kernel::Isa;
use super::matrix::{Configured, PackedRows, ROWS, SMALLEST};
use super::matrix_pack::{MatrixPlan, Packing};
use super::pack::{Element, RowLayout, Rows, SharedOutput, Widen};
use super::shared::{Buffer, LINE, Shared};
use super::tile_list::TileList;
use super::user_term::UserTerm;
use super::visible::Item;
use crate::numbers::HostSlice;
use crate::problem::{Inputs, Operand, PageTable, Problem, ScoreStage};
use crate::terms::TileAt;

/// Keys between two rescalings of the output. GFLOP/s on Ice Lake with AVX-512, one thread, 1x1x1024x64: 64 keys 140,
/// 96 139, 128 132, 192 130, 256 133. With 64, a panel's weights and queries leave room in 48 KiB of first-level cache.
pub(super) const KEY_BLOCK: usize = 64;
/// Block of keys for matrix products of bf16 keys. 1x8x2048x64 on two cores of a Sapphire Rapids: 64 keys 10.8 ms, 128 9.2,
/// 256 9.6. Keys of several parts take as much room in 64.
const MATRIX_KEY_BLOCK: usize = 128;

/// Problem, data and outputs that all units share.
pub(super) struct Job<'a> {
    pub(super) problem: &'a Problem,
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) isa: Isa,
    /// Matrix products, where the instruction set has them.
    pub(super) matrix: Option<MatrixPlan>,
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

/// Memory of a block: keys and values, both packed for matrix products, and the transposed keys.
pub(super) type BlockBuffers = [Buffer; 5];

/// Block of a unit's keys and their values.
pub(super) struct Block<'a> {
    pub(super) keys: Range<usize>,
    /// True if masks of the user's terms may hide some of its pairs.
    pub(super) tests_users: bool,
    key: Rows<'a>,
    value: Rows<'a>,
    packed_key: Option<PackedRows<'a>>,
    packed_value: Option<PackedRows<'a>>,
    packed_columns: Option<PackedRows<'a>>,
    /// Its parts start at multiples of this number of keys.
    granule: usize,
    summed: Operand,
    finite: OnceCell<bool>,
}

/// Purpose of a block.
#[derive(Clone, Copy)]
pub(super) struct Use<'a> {
    /// Operand whose rows will be multiplied by weights and added.
    pub(super) summed: Operand,
    /// Engine that operands are packed for.
    pub(super) engine: Option<&'a Configured>,
    /// False if rows that are packed may be left unread.
    pub(super) reads_rows: bool,
}

/// Some keys of a block.
pub(super) struct Cut<'a> {
    pub(super) keys: Range<usize>,
    pub(super) key: Rows<'a>,
    pub(super) value: Rows<'a>,
    /// Keys as the matrix a of a product, unless an element is out of its range.
    pub(super) packed_key: Option<PackedRows<'a>>,
    /// Values, likewise, transposed if they are summed.
    pub(super) packed_value: Option<PackedRows<'a>>,
    /// Transposed keys, likewise, if they are summed.
    pub(super) packed_columns: Option<PackedRows<'a>>,
}

impl<'a> Block<'a> {
    /// Reads the block that starts at key `start`.
    pub(super) fn read(
        job: &'a Job<'_>,
        unit: &Unit,
        start: usize,
        tests_users: bool,
        Use { summed, engine, reads_rows }: Use<'a>,
        buffers: &'a mut BlockBuffers,
    ) -> Self {
        let keys = start..unit.keys.end.min(start + job.key_block());
        let [key, value, packed_key, packed_value, packed_columns] = buffers;
        // For a sum, rows are read column by column: at a stride of a multiple of 8 cache lines, they would evict each other.
        let in_place = |operand| {
            let strides = job.problem.spec(operand).strides(job.problem.shape(operand));
            operand != summed || !strides.seq.is_multiple_of(8 * LINE)
        };
        let read = |operand, is_packed, buffer: &'a mut Buffer, to: &'a mut Buffer| {
            let (count, width) = (keys.len(), job.problem.shape(operand)[3]);
            let Some((plan, engine)) = job.matrix.zip(engine).filter(|_| is_packed) else {
                return (job.key_rows(unit, operand, &keys, in_place(operand), buffer), None);
            };
            let (parts, is_transposed) = match operand {
                Operand::Key => (plan.key, false),
                _ => (plan.value, summed == operand),
            };
            let packing = Packing { engine, isa: job.isa, parts, is_transposed, smallest: SMALLEST };
            // Rows of bf16 need not be widened if only matrix products read them.
            if let Some(rows) = job.rows_in_place::<bf16>(unit, operand, &keys).filter(|_| !reads_rows)
                && packing.pack(rows, to)
            {
                return (Rows::unread(count, width), Some(packing.packed(count, width, to)));
            }
            let rows = job.key_rows(unit, operand, &keys, in_place(operand), buffer);
            let fits = packing.pack(rows, to);
            (rows, fits.then(|| packing.packed(count, width, to)))
        };
        let packs_values = summed == Operand::Key || job.problem.dropout_rule().is_none();
        let (key, packed_key) = read(Operand::Key, true, key, packed_key);
        // Without an output, values are only of use to gradients.
        let (value, packed_value) = match summed == Operand::Key || job.output.is_some() {
            true => read(Operand::Value, packs_values, value, packed_value),
            false => (Rows::unread(keys.len(), job.problem.dims.head_dim_v), None),
        };
        let columns = packed_key.zip(job.matrix).filter(|_| summed == Operand::Key && reads_rows).and_then(|(packed, plan)| {
            let (engine, isa, parts) = (packed.engine, job.isa, plan.key);
            let packing = Packing { engine, isa, parts, is_transposed: true, smallest: SMALLEST };
            packing.pack(key, packed_columns).then(|| packing.packed(key.count, key.width, packed_columns))
        });
        let granule = if job.matrix.is_some() { ROWS } else { 1 };
        Self { keys, tests_users, key, value, packed_key, packed_value, packed_columns: columns, granule, summed, finite: OnceCell::new() }
    }

    /// Returns those of its keys that are in `range`, and, where matrix products are used, more to make up whole tiles.
    /// `None` if no key is.
    pub(super) fn cut(&self, range: &Range<usize>) -> Option<Cut<'a>> {
        let keys = range.start.max(self.keys.start)..range.end.min(self.keys.end);
        if keys.is_empty() {
            return None;
        }
        let (first, end) = (keys.start - self.keys.start, keys.end - self.keys.start);
        let first = first / self.granule * self.granule;
        let end = end.next_multiple_of(self.granule).min(self.keys.len());
        let part = |rows: Rows<'a>| rows.part(first, end - first);
        let rows = |packed: PackedRows<'a>| packed.from(first * packed.step);
        let columns = |packed: PackedRows<'a>| packed.from(first / 2);
        Some(Cut {
            keys: self.keys.start + first..self.keys.start + end,
            key: part(self.key),
            value: part(self.value),
            packed_key: self.packed_key.map(rows),
            packed_value: if self.summed == Operand::Value { self.packed_value.map(columns) } else { self.packed_value.map(rows) },
            packed_columns: self.packed_columns.map(columns),
        })
    }

    /// True if no element of the operand that is summed is NaN or infinite.
    pub(super) fn is_finite(&self) -> bool {
        *self.finite.get_or_init(|| if self.summed == Operand::Key { self.key } else { self.value }.is_finite())
    }
}

impl Job<'_> {
    /// Makes the engine of matrix products ready on this thread.
    pub(super) fn engine(&self) -> Option<Configured> {
        // SAFETY: the machine has the job's instruction set, and so the engine's.
        self.matrix.map(|plan| unsafe { Configured::new(plan.engine) })
    }

    /// Keys of a block.
    pub(super) fn key_block(&self) -> usize {
        if self.matrix.is_some_and(|plan| plan.key == 1) { MATRIX_KEY_BLOCK } else { KEY_BLOCK }
    }

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
                // Keys that are masked may be read with others. A page that is missing is page 0 to them.
                (if page == PageTable::UNUSED { 0 } else { page as usize }, seq % paged.page_size)
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

    /// Reads the query of row `r` of a unit, rotated as the keys are, without the scale.
    pub(super) fn read_unscaled_query(&self, unit: &Unit, r: usize, to: &mut [f32]) {
        self.read_row(self.inputs.query, Operand::Query, unit, r, to);
        if let Some(rotation) = self.problem.query_rotation() {
            rotation.rotate(to);
        }
    }

    /// Reads the scaled query of row `r` of a unit.
    pub(super) fn read_query(&self, unit: &Unit, r: usize, to: &mut [f32]) {
        self.read_unscaled_query(unit, r, to);
        let scale = self.problem.effective_scale();
        to.iter_mut().for_each(|x| *x *= scale);
    }

    /// Returns some keys or values in place if they are stored in this type on one page, contiguous.
    pub(super) fn rows_in_place<T: Element>(&self, unit: &Unit, operand: Operand, keys: &Range<usize>) -> Option<Rows<'_, T>> {
        let (data, width) = (T::of(self.operand(operand))?, self.problem.shape(operand)[3]);
        let [first, last] = [keys.start, keys.end - 1].map(|key| self.place(unit, operand, unit.kv_head, key));
        let end = first.start + (keys.len() - 1) * first.row_step;
        (first.step == 1 && last.start == end && self.problem.paged.is_none_or(|paged| keys.len() <= paged.page_size)).then(|| Rows {
            data: &data[first.start..end + width],
            count: keys.len(),
            width,
            step: first.row_step,
        })
    }

    fn operand(&self, operand: Operand) -> HostSlice<'_> {
        if operand == Operand::Key { self.inputs.key } else { self.inputs.value }
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
        if let (true, Some(rows)) = (in_place, self.rows_in_place(unit, operand, keys)) {
            return rows;
        }
        let data = self.operand(operand);
        let (count, width) = (keys.len(), self.problem.shape(operand)[3]);
        let page_size = self.problem.paged.map_or(usize::MAX, |paged| paged.page_size);
        let run_end = |key: usize| keys.end.min((key / page_size + 1) * page_size);
        Rows::copy(count, width, scratch, |to, to_step| {
            let mut key = keys.start;
            while key < keys.end {
                let (end, to) = (run_end(key), &mut to[(key - keys.start) * to_step..]);
                Widen { data, at: self.place(unit, operand, unit.kv_head, key), rows: end - key, width, to, to_step }.read(self.isa);
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
        let at = self.items[unit.item].lse_place(self.problem, head, i);
        // SAFETY: `Problem::check` rejects outputs whose elements share a place, and each row is finished once.
        unsafe {
            if let Some(output) = &self.output {
                if let Some(rotation) = self.problem.output_rotation() {
                    rotation.rotate(row);
                }
                // A row whose weights are all 0 has output 0, even if a value with weight 0 has left a NaN.
                let factor = (total != 0.0).then_some(factor * divided);
                output.write_row(self.isa, self.place(unit, Operand::Output, head, i), row, factor);
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
