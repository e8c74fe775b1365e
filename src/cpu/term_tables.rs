//! Gradients of the tables that users' terms read, each in a pass of its own over all pairs.

use super::backward::{Grouped, by_pairs};
use super::backward_unit::{Scratch, Work};
use super::job::{Block, Job, KEY_BLOCK, Unit};
use super::kernel::SimdKernel;
use super::shared::Shared;
use super::simd::Simd;
use crate::custom::Owner;
use crate::custom::evaluate::{LANES, Lanes, Pairs, evaluate};
use crate::custom::program::Field;
use crate::error::Result;
use crate::problem::{Operand, OwnedTable};
use crate::progress::Progress;

/// Memory of the derivatives by a table.
#[derive(Default)]
pub(super) struct TableScratch {
    pairs: Pairs,
    registers: Vec<Lanes>,
    /// Derivative of each pair's last score by the element that it reads, [key][lane].
    pub(super) slopes: Vec<f32>,
    /// That element's index.
    elements: Vec<u32>,
}

/// Derives the scores of a tile, which are those before the user's terms, by the elements of a table.
pub(super) struct TableSlopes<'a> {
    pub(super) job: &'a Job<'a>,
    pub(super) unit: &'a Unit,
    pub(super) table: &'a OwnedTable<'a>,
    /// First row of the tile, counted from the unit's first, and number of rows.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    pub(super) first_key: usize,
    /// [key][row], rows padded to `width`.
    pub(super) scores: &'a [f32],
    pub(super) width: usize,
    pub(super) scratch: &'a mut TableScratch,
}

impl SimdKernel for TableSlopes<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (problem, item) = (self.job.problem, &self.job.items[self.unit.item]);
        let TableScratch { pairs, registers, slopes, elements } = self.scratch;
        slopes.resize(self.scores.len(), 0.0);
        elements.resize(self.scores.len(), 0);
        for (field, value) in
            [(Field::Batch, item.batch), (Field::KvHead, self.unit.kv_head), (Field::LenQ, item.rows), (Field::LenKv, item.length)]
        {
            pairs.fill(field, value);
        }
        let tables: Vec<Vec<&[u32]>> =
            (0..problem.user_terms.len()).map(|index| problem.tables_of(index, self.job.inputs.term_tables)).collect();
        for start in (0..self.scores.len()).step_by(LANES) {
            let count = LANES.min(self.scores.len() - start);
            for lane in 0..LANES {
                let (r, key) = ((start + lane) % self.width, self.first_key + (start + lane) / self.width);
                let (head, i) = self.unit.row(problem, self.first_row + r.min(self.rows - 1));
                for (field, value) in [
                    (Field::Head, head),
                    (Field::Row, i),
                    (Field::Position, (i as i64 + item.offset) as usize),
                    (Field::Key, key),
                    (Field::KeyPosition, key),
                ] {
                    pairs.fields[field as usize][lane] = value as u32;
                }
                pairs.score[lane] = self.scores.get(start + lane).map_or(0, |score| score.to_bits());
            }
            let slopes = &mut slopes[start..start + count];
            for (index, (term, tables)) in problem.user_terms.iter().zip(&tables).enumerate() {
                let functions = term.functions();
                let Some(program) = &functions.score else { continue };
                pairs.after = *evaluate(program, pairs, tables, registers);
                if index == self.table.term {
                    let of_pairs = evaluate(&self.table.gradient.slope, pairs, tables, registers);
                    slopes.iter_mut().zip(of_pairs).for_each(|(to, &slope)| *to = f32::from_bits(slope));
                    elements[start..start + count]
                        .copy_from_slice(&evaluate(&self.table.gradient.index, pairs, tables, registers)[..count]);
                } else if let Some(program) = functions.slope().filter(|_| index > self.table.term) {
                    for (to, &slope) in slopes.iter_mut().zip(evaluate(program, pairs, tables, registers)) {
                        let slope = f32::from_bits(slope);
                        // A derivative of 0 makes 0, even of what is infinite.
                        *to = if slope == 0.0 || *to == 0.0 { 0.0 } else { *to * slope };
                    }
                }
                for (score, &after) in pairs.score.iter_mut().zip(&pairs.after) {
                    let before = f32::from_bits(*score);
                    *score = if before == f32::NEG_INFINITY || before.is_nan() { *score } else { after };
                }
            }
        }
    }
}

/// Computes the gradients of all tables that have an owner, one after the other.
pub(super) fn gradients(work: &Work<'_>, threads: usize, control: &mut Progress<'_>) -> Result<Vec<f32>> {
    let problem = work.job.problem;
    let mut all = Vec::with_capacity(problem.d_term_tables_len());
    for table in problem.owned_tables() {
        // Units that add to other elements of a table that is owned by pairs can run side by side.
        let strides = problem.strides_of(&table).filter(|_| table.gradient.owner == Owner::Pair);
        let owns = strides.map_or([false; 3], |strides| [0, 1, 2].map(|axis: usize| strides.axes[axis] != 0));
        let grouped = Grouped { elements: table.range.len(), owns };
        all.extend(by_pairs(work, grouped, threads, control, |unit, to, start, scratch| add(work, &table, unit, (to, start), scratch))?);
    }
    Ok(all)
}

/// Adds a unit's contribution to the copy of the gradient that starts at `start`.
fn add(work: &Work<'_>, table: &OwnedTable<'_>, unit: &Unit, (to, start): (&Shared<'_, f32>, usize), scratch: &mut Scratch) {
    let job = &work.job;
    let Scratch { sides, block: buffers, tile } = scratch;
    let sides = work.load(unit, sides, tile, &mut []);
    for first in unit.keys.clone().step_by(KEY_BLOCK) {
        let block = Block::read(job, unit, first, Operand::Key, buffers);
        for side in sides.iter_mut() {
            let Some((keys, _)) = work.differentiate(unit, side, &block, tile, Some(table)) else { continue };
            let (width, rows) = (side.panel.width, side.panel.rows);
            let len = width * keys.len();
            let d_table = if job.problem.softcap.is_some() { tile.capped.take(len) } else { tile.products.take(len) };
            let TableScratch { slopes, elements, .. } = &tile.table;
            let pairs = d_table.iter().zip(slopes).zip(elements).enumerate();
            for (_, ((d_table, _), &element)) in pairs.filter(|(at, ((_, slope), _))| at % width < rows && **slope != 0.0) {
                let at = start + element as usize;
                // SAFETY: units that add to the same elements of a copy are in one task.
                let [sum] = (unsafe { to.slice(at..at + 1) }) else { unreachable!("one element") };
                *sum += d_table;
            }
        }
    }
}
