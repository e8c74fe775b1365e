//! Terms that users wrote, on tiles of scores.
//!
//! Results that depend on a row or a key alone are computed once a tile, the rest for each pair. Masks come before the
//! scores, which a tile without visible pairs does not need.

use std::ops::Range;

use super::job::{Job, Unit};
use super::kernel::SimdKernel;
use super::shared::Buffer;
use super::simd::Simd;
use super::user_terms::of_job;
use crate::custom::evaluate::{LANES, Lanes, Pairs, evaluate_some};
use crate::custom::program::Field;
use crate::custom::schedule::Schedule;
use crate::custom::tile::Status;

/// Memory of the evaluation of users' terms.
#[derive(Default)]
pub(super) struct UserScratch {
    memory: Memory,
    /// Bits 1 where the masks show a pair, else 0.
    visible: Buffer,
    /// Results of a program.
    result: Buffer,
    /// Bits of the indices of the elements that pairs read of a table.
    elements: Buffer,
}

/// Table by whose elements scores are derived.
pub(super) struct ByTable<'a> {
    /// Index of its term.
    pub(super) term: usize,
    /// Element that a pair reads.
    pub(super) index: Schedule<'a>,
    /// Derivative of the score after the term by this element.
    pub(super) slope: Schedule<'a>,
}

/// Variable by which scores are derived.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    Nothing,
    /// The scores before the user's terms.
    Scores,
    Table(&'a ByTable<'a>),
}

impl UserScratch {
    /// Bits of the indices of the elements that the pairs of the last tile read of a table.
    pub(super) fn elements(&mut self, len: usize) -> &[f32] {
        self.elements.take(len)
    }
}

/// Rows and keys of a tile, and the order of its pairs.
pub(super) struct Grid<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) unit: &'a Unit,
    /// Counted from the unit's first row.
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) step: Step,
    /// False if the masks are known to show all of its pairs.
    pub(super) tests: bool,
}

/// Order of the pairs of a tile.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// [key][row], rows padded to so many.
    Keys(usize),
    /// [row][key], keys padded to so many.
    Rows(usize),
}

impl Grid<'_> {
    /// Number of pairs, padding included.
    pub(super) fn len(&self) -> usize {
        match self.step {
            Step::Keys(step) => step * self.keys.len(),
            Step::Rows(step) => step * self.rows.len(),
        }
    }

    /// Least that the built-in terms show of the tile.
    pub(super) fn of_built_ins(&self) -> Status {
        let item = &self.job.items[self.unit.item];
        if !item.knows_tiles() || self.rows.is_empty() || self.keys.is_empty() {
            return Status::All;
        }
        let tile = self.unit.tile(self.job.problem, item.batch, self.rows.clone(), self.keys.clone());
        item.status(self.job.problem, self.job.inputs, &tile)
    }

    /// Determines which pairs the masks of the user's terms show.
    pub(super) fn mask(&self, scratch: &mut UserScratch) -> Status {
        let status = if self.tests { of_job(self.job, self.unit, self.rows.clone(), &self.keys) } else { Status::All };
        let UserScratch { memory, visible, result, .. } = scratch;
        let (visible, result) = (visible.take(self.len()), result.take(self.len()));
        let mut is_first = true;
        for term in self.job.users.iter().filter(|_| status == Status::Some) {
            let (Some(schedule), tables) = (&term.visible, &term.tables) else { continue };
            let pairs = if is_first { &mut *visible } else { &mut *result };
            self.job.isa.run(Evaluate { grid: self, schedule, tables, memory, pairs, after: &[], is_score: false });
            if !is_first {
                visible.iter_mut().zip(&*result).for_each(|(to, x)| *to = f32::from_bits(to.to_bits() & x.to_bits()));
            }
            is_first = false;
        }
        if is_first {
            return status;
        }
        let mut any_all = [false; 2];
        self.job.isa.run(Count { visible, any_all: &mut any_all });
        match any_all {
            [false, _] => Status::None,
            [_, false] => Status::Some,
            _ => Status::All,
        }
    }

    /// Applies the user's terms to scores that nothing else will change: -inf masks, and stays. `tests` is false if the
    /// masks show all of these pairs; else they were determined last. Multiplies `slopes`, which has every pair unless they
    /// are by nothing, by the derivatives of the scores.
    pub(super) fn apply(&self, scratch: &mut UserScratch, tests: bool, scores: &mut [f32], slopes: &mut [f32], by: By<'_>) {
        let UserScratch { memory, visible, result: slope, elements } = scratch;
        let (isa, len) = (self.job.isa, self.len());
        if tests {
            isa.run(Hide { visible: visible.take(len), scores });
        }
        for (index, term) in self.job.users.iter().enumerate() {
            let (Some(schedule), tables) = (&term.score, &term.tables) else { continue };
            let derivative = match by {
                By::Table(table) if index == table.term => {
                    let (schedule, pairs) = (&table.index, elements.take(len));
                    isa.run(Evaluate { grid: self, schedule, tables, memory, pairs, after: &[], is_score: false });
                    Some(&table.slope)
                }
                By::Table(table) if index > table.term => term.slope.as_ref(),
                By::Scores => term.slope.as_ref(),
                _ => None,
            };
            let slope = slope.take(if derivative.is_some() { len } else { 0 });
            slope.copy_from_slice(&scores[..slope.len()]);
            isa.run(Evaluate { grid: self, schedule, tables, memory, pairs: scores, after: &[], is_score: true });
            if let Some(schedule) = derivative {
                isa.run(Evaluate { grid: self, schedule, tables, memory, pairs: slope, after: scores, is_score: false });
                isa.run(Chain { slope, slopes });
            }
        }
    }
}

/// Evaluates a program for all pairs of a tile.
struct Evaluate<'a> {
    grid: &'a Grid<'a>,
    schedule: &'a Schedule<'a>,
    tables: &'a [&'a [u32]],
    memory: &'a mut Memory,
    /// Scores before the term, which become the results, by their bits.
    pairs: &'a mut [f32],
    /// Scores after the term, where the program reads them.
    after: &'a [f32],
    /// True if the results are scores: what is masked or NaN stays.
    is_score: bool,
}

/// Registers and inputs of some pairs, and of the rows or the keys of a tile, whichever are outside in its order.
#[derive(Default)]
struct Memory {
    registers: [Vec<Lanes>; 2],
    pairs: [Pairs; 2],
}

impl SimdKernel for Evaluate<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let Self { grid, schedule, tables, memory, pairs: all, after, is_score } = self;
        let Schedule { program, fields, uniform, of_rows, of_keys, read_of_rows, read_of_keys, of_pairs } = schedule;
        let Memory { registers: [registers, of_outer], pairs: [pairs, outer] } = memory;
        let item = &grid.job.items[grid.unit.item];
        for (field, value) in
            [(Field::Batch, item.batch), (Field::KvHead, grid.unit.kv_head), (Field::LenQ, item.rows), (Field::LenKv, item.length)]
        {
            if fields[field as usize] {
                pairs.fill(field, value);
                outer.fill(field, value);
            }
        }
        let (step, lines, inner_operations, read) = match grid.step {
            Step::Keys(step) => {
                grid.set_keys(outer, fields, 0, LANES);
                evaluate_some(program, of_keys, outer, tables, of_outer);
                (step, grid.keys.len(), of_rows, read_of_keys)
            }
            Step::Rows(step) => {
                grid.set_rows(outer, fields, 0, LANES);
                evaluate_some(program, of_rows, outer, tables, of_outer);
                (step, grid.rows.len(), of_keys, read_of_rows)
            }
        };
        // As many whole lines at once as fit, or a part of one.
        let (at_once, width) = ((LANES / step).max(1), step.min(LANES));
        for first in (0..step).step_by(LANES) {
            match grid.step {
                Step::Keys(_) => grid.set_rows(pairs, fields, first, width),
                Step::Rows(_) => grid.set_keys(pairs, fields, first, width),
            }
            for operations in [uniform, inner_operations] {
                evaluate_some(program, operations, pairs, tables, registers);
            }
            for line in (0..lines).step_by(at_once) {
                for &id in read {
                    let (from, to) = (&of_outer[id as usize][line..], &mut registers[id as usize]);
                    to.chunks_mut(width).zip(from).for_each(|(to, &value)| to.fill(value));
                }
                let start = line * step + first;
                let count = (at_once * width).min(lines * step - start).min(if at_once > 1 { LANES } else { step - first });
                let scores = &mut all[start..start + count];
                pairs.score.iter_mut().zip(&*scores).for_each(|(to, x)| *to = x.to_bits());
                if let Some(after) = after.get(start..start + count) {
                    pairs.after.iter_mut().zip(after).for_each(|(to, x)| *to = x.to_bits());
                }
                evaluate_some(program, of_pairs, pairs, tables, registers);
                let results = scores.iter_mut().zip(&registers[program.nodes.len() - 1]);
                if is_score {
                    results.for_each(|(x, &y)| *x = if *x == f32::NEG_INFINITY || x.is_nan() { *x } else { f32::from_bits(y) });
                } else {
                    results.for_each(|(x, &y)| *x = f32::from_bits(y));
                }
            }
        }
    }
}

impl Grid<'_> {
    /// Sets the fields of rows that are read: from row `first` of the tile on, and the same again in each `period` of lanes.
    fn set_rows(&self, pairs: &mut Pairs, read: &[bool; Field::ALL.len()], first: usize, period: usize) {
        const FIELDS: [usize; 3] = [Field::Head as usize, Field::Row as usize, Field::Position as usize];
        if FIELDS.iter().all(|&field| !read[field]) {
            return;
        }
        let offset = self.job.items[self.unit.item].offset;
        let (mut head, mut i) = self.unit.row(self.job.problem, self.rows.start + first);
        let [first_head, last_head] = self.unit.heads(self.job.problem);
        // Padding repeats the last row.
        let last = self.rows.len() - 1 - first;
        for lane in 0..period {
            let values = [head, i, (i as i64 + offset) as usize];
            FIELDS.into_iter().zip(values).for_each(|(field, value)| pairs.fields[field][lane] = value as u32);
            if lane < last {
                (head, i) = if head == last_head { (first_head, i + 1) } else { (head + 1, i) };
            }
        }
        for field in FIELDS {
            let (once, again) = pairs.fields[field].split_at_mut(period);
            again.chunks_mut(period).for_each(|lanes| lanes.copy_from_slice(&once[..lanes.len()]));
        }
    }

    /// Sets the fields of keys, likewise.
    fn set_keys(&self, pairs: &mut Pairs, read: &[bool; Field::ALL.len()], first: usize, period: usize) {
        for field in [Field::Key, Field::KeyPosition].into_iter().filter(|&field| read[field as usize]) {
            for keys in pairs.fields[field as usize].chunks_mut(period) {
                keys.iter_mut().zip((self.keys.start + first) as u32..).for_each(|(to, key)| *to = key);
            }
        }
    }
}

/// Tells if masks show any of some pairs, and if they show all.
struct Count<'a> {
    visible: &'a [f32],
    any_all: &'a mut [bool; 2],
}

impl SimdKernel for Count<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (or, and) = self.visible.iter().fold((0, 1), |(or, and), x| (or | x.to_bits(), and & x.to_bits()));
        *self.any_all = [or != 0, and != 0];
    }
}

/// Writes -inf where masks hide a pair.
struct Hide<'a> {
    visible: &'a [f32],
    scores: &'a mut [f32],
}

impl SimdKernel for Hide<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        for (score, visible) in self.scores.iter_mut().zip(self.visible) {
            *score = if visible.to_bits() == 0 { f32::NEG_INFINITY } else { *score };
        }
    }
}

/// Multiplies derivatives by those of one more term.
struct Chain<'a> {
    slope: &'a [f32],
    slopes: &'a mut [f32],
}

impl SimdKernel for Chain<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        for (to, &slope) in self.slopes.iter_mut().zip(self.slope) {
            // A derivative of 0 makes 0, even of what is infinite.
            *to = if slope == 0.0 || *to == 0.0 { 0.0 } else { *to * slope };
        }
    }
}
