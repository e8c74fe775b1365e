//! Fast gradients on the CPU: scores are recomputed block by block, without a score matrix.
//!
//! The plain algorithm, for a panel of query rows and each block of keys: scores and products dp of dO with V; from
//! them p = exp(score - m) / l and dscore = p * (dp - delta); then dQ += dscore K, dK += dscoreᵀ Q and dV += pᵀ dO.
//!
//! For speed, besides what `tiled.rs` lists: each pair is visited once for dQ, dK and dV, by five products of one
//! register-blocked kernel. Sums are free of races and deterministic, because a task owns its dK and dV: one key/value
//! head of an item. Where heads are few, each task takes some query rows, and the parts are summed in order.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::backward_unit::{KeySums, Scratch, Sums, Work};
use super::bias_gradient::add_tile;
use super::job::{Cut, Job, Unit};
use super::kernel::Isa;
use super::matrix_pack::MatrixPlan;
use super::pack::SharedOutput;
use super::pool;
use super::shared::Shared;
use super::term_tables;
use super::tile_list::TileList;
use super::tiled::{UNITS_PER_THREAD, stats_on, threads};
use super::user_term::UserTerm;
use super::user_terms::each_block;
use super::visible::Item;
use crate::error::Result;
use crate::numbers::{HostVec, pages};
use crate::problem::{BackwardInputs, Gradients, Inputs, Operand, Problem, WantGradients};
use crate::progress::Progress;

/// Query rows of a unit, whose panels share the conversion of a block of keys.
const UNIT_ROWS: usize = 256;
/// Limit on the elements of all copies of a bias together; one copy is always allowed.
const COPIES: usize = 1 << 24;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes the wanted gradients with the machine's best instruction set, on all threads of the current rayon pool.
///
/// Memory besides the gradients grows with seq_len. Runs with equal thread counts return bit-identical results.
/// A watched `control` is called after every few tasks, and can stop the work with [`crate::Error::Cancelled`].
pub fn attention(
    problem: &Problem,
    inputs: &Inputs<'_>,
    backward: &BackwardInputs<'_>,
    want: &WantGradients,
    control: &mut Progress<'_>,
) -> Result<Gradients> {
    attention_on(Isa::best(), problem, inputs, backward, want, control)
}

/// Runs [`attention`] with the given instruction set.
pub(super) fn attention_on(
    isa: Isa,
    problem: &Problem,
    inputs: &Inputs<'_>,
    backward: &BackwardInputs<'_>,
    want: &WantGradients,
    control: &mut Progress<'_>,
) -> Result<Gradients> {
    problem.check()?;
    inputs.check(problem)?;
    want.check(problem)?;
    backward.check(problem, want)?;
    let d = &problem.dims;
    let columns = problem.relative_bias_columns();
    let mut gradients = zeros(problem, inputs, want);
    if problem.asks_nothing() {
        return control.report(1.0).map(|()| gradients);
    }
    let made = if backward.stats.is_none() { stats_on(isa, problem, inputs)? } else { Vec::new() };
    let items: Vec<Item> = (0..d.batch).map(|batch| Item::new(problem, inputs, batch)).collect();
    let threads = threads(problem, items.iter().map(|item| item.rows * item.keys).sum());
    let (per_head, tasks) = tasks(problem, &items, threads);
    let Gradients { query, key, value, bias, relative_bias, sinks, term_tables } = &mut gradients;
    let (users, partials) = (UserTerm::all(problem, inputs), Shared::new(&mut []));
    let list = TileList::build(problem, &users, isa, &items, threads);
    let job = Job {
        problem,
        inputs,
        isa,
        matrix: MatrixPlan::new(isa, problem),
        items: &items,
        list: list.as_ref(),
        output: None,
        lse: None,
        stats: None,
        scores: None,
        weights: None,
        users,
        partials,
    };
    let owns = problem.bias.map_or([false; 3], |shape| [0, 1, 2].map(|axis| shape.0[axis] != 1));
    let is_owned = want.bias && groups(&job, owns).values().all(|units| units.len() == 1);
    let (own_bias, shared_bias) = if is_owned { (bias.as_mut(), None) } else { (None, bias.as_mut()) };
    let work = Work {
        job,
        output: backward.output,
        stats: backward.stats.unwrap_or(&made),
        d_output: backward.d_output,
        d_lse: backward.d_lse,
        want,
        query: query.as_mut().map(SharedOutput::new),
        bias: own_bias.map(|bias| Shared::new(bias)),
    };

    // In chunks, so that only the sums of a few tasks are in memory at a time.
    let chunk = per_head.max(UNITS_PER_THREAD * threads).next_multiple_of(per_head);
    for (index, some) in tasks.chunks(chunk).enumerate() {
        control.report((index * chunk) as f64 / tasks.len() as f64)?;
        let run = |units: &Vec<Unit>| SCRATCH.with_borrow_mut(|scratch| work.run(units, scratch));
        let sums: Vec<Sums> = if threads == 1 { some.iter().map(run).collect() } else { pool::map(some, run) };
        for (parts, tasks) in sums.chunks(per_head).zip(some.chunks(per_head)) {
            let Some(unit) = tasks.first().and_then(|units| units.first()) else { continue };
            write(&work.job, unit, Operand::Key, parts, |sums| &sums.key, key.as_mut());
            write(&work.job, unit, Operand::Value, parts, |sums| &sums.value, value.as_mut());
            for part in parts {
                let first_head = unit.kv_head * d.group();
                add(relative_bias.as_deref_mut(), first_head * columns, &part.relative_bias);
                add(sinks.as_deref_mut(), first_head, &part.sinks);
            }
        }
    }
    if let Some(bias) = shared_bias {
        let grouped = Grouped { elements: bias.len(), owns };
        *bias = by_pairs(&work, grouped, threads, control, |unit, to, start, scratch| add_bias(&work, unit, (to, start), scratch))?;
    }
    if let Some(tables) = term_tables {
        *tables = term_table_gradients(&work, threads, control)?;
    }
    control.report(1.0).map(|()| gradients)
}

/// The wanted gradients, all 0.
fn zeros(problem: &Problem, inputs: &Inputs<'_>, want: &WantGradients) -> Gradients {
    let zeros = |wanted: bool, operand| wanted.then(|| HostVec::zeros(want.dtype(problem, operand), problem.operand_len(operand)));
    let heads = problem.dims.num_heads;
    Gradients {
        query: zeros(want.query, Operand::Query),
        key: zeros(want.key, Operand::Key),
        value: zeros(want.value, Operand::Value),
        bias: want.bias.then(|| pages::zeros(inputs.bias.len())),
        relative_bias: want.relative_bias.then(|| vec![0.0; heads * problem.relative_bias_columns()]),
        sinks: want.sinks.then(|| vec![0.0; heads]),
        term_tables: want.term_tables.then(|| vec![0.0; problem.d_term_tables_len()]),
    }
}

/// Number of lists of units per head of each item, and the lists. Each adds to one dK and dV, in this order.
fn tasks(problem: &Problem, items: &[Item], threads: usize) -> (usize, Vec<Vec<Unit>>) {
    let d = &problem.dims;
    let heads = items.len() * d.num_kv_heads;
    let longest = items.iter().map(|item| (item.rows * d.group()).div_ceil(UNIT_ROWS)).max().unwrap_or(1).max(1);
    let per_head = if threads == 1 { 1 } else { (UNITS_PER_THREAD * threads).div_ceil(heads.max(1)).min(longest) };
    let mut all = Vec::with_capacity(heads * per_head);
    for index in 0..items.len() {
        for kv_head in 0..d.num_kv_heads {
            let units = units(problem, items, index, kv_head);
            // Every per_head-th unit, so that all parts take equally long under a causal mask.
            all.extend((0..per_head).map(|part| units.iter().skip(part).step_by(per_head).cloned().collect()));
        }
    }
    (per_head, all)
}

/// Units of a head, split between positions. At least one exists, so that keys visible to no row get a gradient of 0.
fn units(problem: &Problem, items: &[Item], index: usize, kv_head: usize) -> Vec<Unit> {
    let (item, group) = (&items[index], problem.dims.group());
    let rows = item.rows * group;
    let step = (UNIT_ROWS / group).max(1) * group;
    let unit = |first_row: usize| {
        let rows = step.min(rows - first_row);
        let keys = item.seen_by_some(problem, first_row / group..(first_row + rows) / group);
        Unit { item: index, kv_head, first_row, rows, work: rows * keys.len(), keys, partial: None }
    };
    (0..rows.max(1)).step_by(step).map(unit).collect()
}

/// Sums the parts of a head's gradient and writes the result.
fn write(job: &Job<'_>, unit: &Unit, operand: Operand, parts: &[Sums], of: impl Fn(&Sums) -> &KeySums, to: Option<&mut HostVec>) {
    let Some(to) = to else { return };
    let to = SharedOutput::new(to);
    let mut row = vec![0.0; job.problem.shape(operand)[3]];
    for key in 0..job.items[unit.item].keys {
        row.fill(0.0);
        for part in parts.iter().map(&of) {
            row.iter_mut().zip(&part.all[key * part.step..]).for_each(|(x, part)| *x += part);
        }
        // SAFETY: `WantGradients::check` rejects operands whose elements share a place; nothing else writes meanwhile.
        unsafe { to.write_row(job.isa, job.place(unit, operand, unit.kv_head, key), &mut row, Some(1.0)) };
    }
}

fn add(to: Option<&mut [f32]>, at: usize, from: &[f32]) {
    if let Some(to) = to {
        to[at..at + from.len()].iter_mut().zip(from).for_each(|(x, from)| *x += from);
    }
}

/// Gradient whose elements units add to.
struct Grouped {
    elements: usize,
    /// For batch, key/value heads and rows: true if others of them add to other elements.
    owns: [bool; 3],
}

/// Computes the gradients of the tables that have an owner, one after the other.
fn term_table_gradients(work: &Work<'_>, threads: usize, control: &mut Progress<'_>) -> Result<Vec<f32>> {
    let mut all = Vec::with_capacity(work.job.problem.d_term_tables_len());
    for owned in term_tables::owned(work.job.problem) {
        let grouped = Grouped { elements: owned.elements, owns: owned.owns };
        let add =
            |unit: &Unit, to: &Shared<'_, f32>, start, scratch: &mut Scratch| term_tables::add(work, &owned, unit, to, start, scratch);
        all.extend(by_pairs(work, grouped, threads, control, add)?);
    }
    Ok(all)
}

/// All units, those that add to the same elements of a gradient together; `owns` as in [`Grouped`].
fn groups(job: &Job<'_>, owns: [bool; 3]) -> BTreeMap<[usize; 3], Vec<Unit>> {
    let mut groups: BTreeMap<[usize; 3], Vec<Unit>> = BTreeMap::new();
    for item in 0..job.items.len() {
        for kv_head in 0..job.problem.dims.num_kv_heads {
            for unit in units(job.problem, job.items, item, kv_head) {
                let own = |axis: usize, index: usize| if owns[axis] { index } else { 0 };
                groups.entry([own(0, item), own(1, kv_head), own(2, unit.first_row)]).or_default().push(unit);
            }
        }
    }
    groups
}

/// Computes a gradient to whose elements `add` adds what a unit contributes, in a pass of its own, because dK and dV are
/// divided into other tasks.
///
/// Units that add to the same elements form one task, in a fixed order. Where that leaves too few tasks, the units are
/// split among tasks that add to copies of the gradient, and the copies are summed in order.
fn by_pairs(
    work: &Work<'_>,
    Grouped { elements, owns }: Grouped,
    threads: usize,
    control: &mut Progress<'_>,
    add: impl Fn(&Unit, &Shared<'_, f32>, usize, &mut Scratch) + Sync,
) -> Result<Vec<f32>> {
    let groups = groups(&work.job, owns);
    let wanted = if threads == 1 { 1 } else { (2 * threads).div_ceil(groups.len().max(1)) };
    let copies = wanted.min(COPIES / elements.max(1)).max(1);
    let mut all = pages::zeros::<f32>(elements * copies);
    let shared = Shared::new(&mut all);
    let tasks: Vec<(usize, &[Unit])> = groups
        .values()
        .flat_map(|group| group.chunks(group.len().div_ceil(copies)).enumerate().map(|(copy, units)| (copy * elements, units)))
        .collect();
    let run = |&(start, units): &(usize, &[Unit])| {
        SCRATCH.with_borrow_mut(|scratch| units.iter().for_each(|unit| add(unit, &shared, start, scratch)));
    };
    for (index, some) in tasks.chunks(4 * threads).enumerate() {
        control.report((index * 4 * threads) as f64 / tasks.len() as f64)?;
        if threads == 1 { some.iter().for_each(run) } else { pool::for_each(some, run) }
    }
    let (sum, others) = all.split_at_mut(elements);
    for copy in others.chunks(elements.max(1)) {
        sum.iter_mut().zip(copy).for_each(|(x, copy)| *x += copy);
    }
    all.truncate(elements);
    Ok(all)
}

/// Adds a unit's contribution to a copy of the gradient of the bias, and where the copy starts.
fn add_bias(work: &Work<'_>, unit: &Unit, copy: (&Shared<'_, f32>, usize), scratch: &mut Scratch) {
    let Scratch { sides, block: buffers, tile, .. } = scratch;
    let sides = work.load(unit, sides, tile, &mut []);
    each_block(&work.job, unit, (Operand::Key, true), buffers, |block| {
        for side in sides.iter_mut() {
            let Some(Cut { keys, .. }) = work.differentiate(unit, side, block, tile, None) else { continue };
            // SAFETY: units that add to the same elements of a copy are in one task.
            unsafe { add_tile(&work.job, unit, &side.panel, keys, tile, copy) };
        }
    });
}
