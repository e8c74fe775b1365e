//! Terms that users wrote, applied to a tile of scores.

use std::ops::Range;

use super::job::{Job, Unit};
use super::kernel::SimdKernel;
use super::simd::Simd;
use super::visible::Item;
use crate::custom::evaluate::{LANES, Lanes, Pairs, evaluate};
use crate::custom::interval::{Interval, Status};
use crate::custom::program::{Field, Op, Program};
use crate::problem::Problem;

/// Memory of the evaluation of users' terms.
#[derive(Default)]
pub(super) struct UserScratch {
    pairs: Pairs,
    registers: Vec<Lanes>,
    /// Head, row and position of each row of the tile.
    rows: [Vec<u32>; 3],
}

/// Evaluates the masks of the user's terms for whole blocks of rows and keys.
pub(super) fn status(job: &Job<'_>, unit: &Unit, rows: Range<usize>, keys: &Range<usize>) -> Status {
    if rows.is_empty() || keys.is_empty() {
        return Status::All;
    }
    let (mut heads, mut indices) = ([i64::MAX, i64::MIN], [i64::MAX, i64::MIN]);
    for (head, i) in rows.map(|row| unit.row(job.problem, row)) {
        for (interval, x) in [(&mut heads, head as i64), (&mut indices, i as i64)] {
            *interval = [interval[0].min(x), interval[1].max(x)];
        }
    }
    let keys = [keys.start as i64, keys.end as i64 - 1];
    status_of(job.problem, &job.items[unit.item], unit.kv_head, [heads, indices, keys])
}

/// Evaluates the masks of the user's terms for all pairs of these heads, rows and keys.
pub(super) fn status_of(problem: &Problem, item: &Item, kv_head: usize, [heads, rows, keys]: [Interval; 3]) -> Status {
    let one = |x: usize| [x as i64; 2];
    let positions = rows.map(|i| i + item.offset);
    let fields = [one(item.batch), heads, one(kv_head), rows, keys, positions, keys, one(item.rows), one(item.length)];
    let masks = problem.user_terms.iter().filter_map(|term| term.functions().intervals.as_ref());
    masks.map(|mask| mask.status(&fields)).min().unwrap_or(Status::All)
}

/// Applies the user's terms to scores that nothing else will change: -inf masks, and stays.
pub(super) struct UserTerms<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) unit: &'a Unit,
    pub(super) scratch: &'a mut UserScratch,
    /// First row of the tile, counted from the unit's first, and number of rows.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) first_key: usize,
    pub(super) scores: &'a mut [f32],
    /// Elements between two keys (each has one score of every row), or between two rows (each has one of every key).
    pub(super) step: Step,
    /// False if the masks show all of these pairs.
    pub(super) tests: bool,
    /// Set to the derivatives of the scores by what they were.
    pub(super) slopes: Option<&'a mut [f32]>,
}

/// Order of the scores of a tile.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// [key][row], rows padded to so many.
    Keys(usize),
    /// [row][key], keys padded to so many.
    Rows(usize),
}

impl SimdKernel for UserTerms<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(mut self) {
        let (problem, item) = (self.job.problem, &self.job.items[self.unit.item]);
        let UserScratch { pairs, registers, rows } = self.scratch;
        if !self.tests && problem.user_terms.iter().all(|term| term.functions().score.is_none()) {
            return self.slopes.into_iter().for_each(|slopes| slopes.fill(1.0));
        }
        rows.iter_mut().for_each(Vec::clear);
        for r in 0..self.rows {
            let (head, i) = self.unit.row(problem, self.first_row + r);
            let of_row = [head as u32, i as u32, (i as i64 + item.offset) as u32];
            rows.iter_mut().zip(of_row).for_each(|(all, value)| all.push(value));
        }
        for (field, value) in
            [(Field::Batch, item.batch), (Field::KvHead, self.unit.kv_head), (Field::LenQ, item.rows), (Field::LenKv, item.length)]
        {
            pairs.fill(field, value);
        }
        let programs = || {
            problem.user_terms.iter().flat_map(|term| {
                let functions = term.functions();
                functions.visible.iter().chain(&functions.score)
            })
        };
        let reads = |field| programs().any(|program: &Program| program.has(|op| op == Op::Pair(field)));
        let of_rows = [Field::Head, Field::Row, Field::Position].map(reads);
        let tables: Vec<Vec<&[u32]>> =
            (0..problem.user_terms.len()).map(|index| problem.tables_of(index, self.job.inputs.term_tables)).collect();
        if let Some(slopes) = &mut self.slopes {
            slopes.fill(1.0);
        }

        for start in (0..self.scores.len()).step_by(LANES) {
            let count = LANES.min(self.scores.len() - start);
            for lane in 0..LANES {
                let at = start + lane;
                let (r, key) = match self.step {
                    Step::Keys(step) => (at % step, at / step),
                    Step::Rows(step) => (at / step, at % step),
                };
                let r = r.min(self.rows - 1);
                let key = (self.first_key + key) as u32;
                (pairs.fields[Field::Key as usize][lane], pairs.fields[Field::KeyPosition as usize][lane]) = (key, key);
                for ((field, all), reads) in [Field::Head, Field::Row, Field::Position].into_iter().zip(&*rows).zip(of_rows) {
                    if reads {
                        pairs.fields[field as usize][lane] = all[r];
                    }
                }
            }
            let scores = &mut self.scores[start..start + count];
            for (term, tables) in problem.user_terms.iter().zip(&tables) {
                let functions = term.functions();
                if let Some(program) = functions.visible.as_ref().filter(|_| self.tests) {
                    let visible = evaluate(program, pairs, tables, registers);
                    scores.iter_mut().zip(visible).filter(|(_, visible)| **visible == 0).for_each(|(score, _)| *score = f32::NEG_INFINITY);
                }
                let Some(program) = &functions.score else { continue };
                pairs.score.iter_mut().zip(&*scores).for_each(|(to, score)| *to = score.to_bits());
                pairs.after = *evaluate(program, pairs, tables, registers);
                if let (Some(slopes), Some(program)) = (&mut self.slopes, functions.slope()) {
                    let slope = evaluate(program, pairs, tables, registers);
                    for (to, &slope) in slopes[start..start + count].iter_mut().zip(slope) {
                        let slope = f32::from_bits(slope);
                        // A derivative of 0 makes 0, even of what is infinite.
                        *to = if slope == 0.0 || *to == 0.0 { 0.0 } else { *to * slope };
                    }
                }
                for (score, &after) in scores.iter_mut().zip(&pairs.after) {
                    *score = if *score == f32::NEG_INFINITY || score.is_nan() { *score } else { f32::from_bits(after) };
                }
            }
        }
    }
}
