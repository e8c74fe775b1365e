//! Fast gradients on the CPU: scores are recomputed block by block, without a score matrix.
//!
//! The plain algorithm, for a panel of query rows and each block of keys: scores and products dp of dO with V; from
//! them p = exp(score - m) / l and dscore = p * (dp - delta); then dQ += dscore K, dK += dscoreᵀ Q and dV += pᵀ dO.
//!
//! For speed, besides what `tiled.rs` lists: each pair is visited once for dQ, dK and dV, by five products of one
//! register-blocked kernel. Sums are free of races and deterministic, because a task owns its dK and dV: one key/value
//! head of an item. Where heads are few, each task takes some query rows, and the parts are summed in order.

use std::cell::RefCell;

use rayon::prelude::*;

use super::backward_unit::{Forward, Scratch, Sums, Work};
use super::pack::SharedOutput;
use super::shared::Shared;
use super::simd::Isa;
use super::tiled::{SMALL, UNITS_PER_THREAD, seen_by_some, stats_on};
use super::unit::{Job, Unit};
use super::visible::Item;
use crate::error::Result;
use crate::numbers::HostVec;
use crate::problem::{BackwardInputs, Gradients, Inputs, Operand, Problem, WantGradients};
use crate::progress::Progress;

/// Query rows of a unit, whose panels share the conversion of a block of keys.
const UNIT_ROWS: usize = 256;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Units of one key/value head of one item, which add to one dK and dV in this order.
struct Task {
    units: Vec<Unit>,
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
    backward.check(problem)?;
    let made = (backward.stats.is_none() && !problem.asks_nothing())
        .then(|| stats_on(isa, problem, inputs, &mut Progress::default()))
        .transpose()?;
    let stats = made.as_deref().or(backward.stats).unwrap_or_default();
    let forward = &Forward { output: backward.output, stats, d_output: backward.d_output };
    let d = &problem.dims;
    let zeros = |wanted: bool, operand| wanted.then(|| HostVec::zeros(want.dtype(problem, operand), problem.operand_len(operand)));
    let (mut query, mut key, mut value) =
        (zeros(want.query, Operand::Query), zeros(want.key, Operand::Key), zeros(want.value, Operand::Value));
    let columns = problem.relative_bias_columns();
    let mut relative_bias = want.relative_bias.then(|| vec![0.0; d.num_heads * columns]);
    let mut sinks = want.sinks.then(|| vec![0.0; d.num_heads]);

    if problem.asks_nothing() {
        let bias = want.bias.then(|| vec![0.0; inputs.bias.len()]);
        control.report(1.0)?;
        return Ok(Gradients { query, key, value, bias, relative_bias, sinks });
    }
    let items: Vec<Item> = (0..d.batch).map(|batch| Item::new(problem, inputs, batch)).collect();
    let pairs: usize = items.iter().map(|item| item.rows * item.keys).sum();
    let is_small = pairs.saturating_mul(d.num_heads * (d.head_dim + d.head_dim_v)) < SMALL;
    let threads = if is_small { 1 } else { rayon::current_num_threads() };
    let tasks = tasks(problem, &items, threads);
    let job = Job {
        problem,
        inputs,
        isa,
        items: &items,
        output: None,
        lse: None,
        stats: None,
        scores: None,
        weights: None,
        partials: Shared::new(&mut []),
    };
    let work = Work { job: &job, forward, want, query: query.as_mut().map(SharedOutput::new) };

    // In chunks, so that only the sums of a few tasks are in memory at a time.
    let chunk = tasks.per_head.max(UNITS_PER_THREAD * threads).next_multiple_of(tasks.per_head);
    let total = tasks.all.len().max(1) as f64;
    for (index, some) in tasks.all.chunks(chunk).enumerate() {
        control.report((index * chunk) as f64 / total)?;
        let run = |task: &Task| SCRATCH.with_borrow_mut(|scratch| work.run(&task.units, scratch));
        let sums: Vec<Sums> =
            if threads == 1 { some.iter().map(run).collect() } else { some.par_iter().with_max_len(1).map(run).collect() };
        for (parts, tasks) in sums.chunks(tasks.per_head).zip(some.chunks(tasks.per_head)) {
            let Some(unit) = tasks.first().and_then(|task| task.units.first()) else { continue };
            write(&job, unit, Operand::Key, parts, |sums| &sums.key, key.as_mut());
            write(&job, unit, Operand::Value, parts, |sums| &sums.value, value.as_mut());
            for part in parts {
                let first_head = unit.kv_head * d.group();
                add(relative_bias.as_deref_mut(), first_head * columns, &part.relative_bias);
                add(sinks.as_deref_mut(), first_head, &part.sinks);
            }
        }
    }
    let bias = if want.bias { Some(super::backward_bias::gradient(&job, forward, threads, control)?) } else { None };
    control.report(1.0)?;
    Ok(Gradients { query, key, value, bias, relative_bias, sinks })
}

/// Tasks of a problem: `per_head` for each key/value head of each item.
struct Tasks {
    per_head: usize,
    all: Vec<Task>,
}

fn tasks(problem: &Problem, items: &[Item], threads: usize) -> Tasks {
    let d = &problem.dims;
    let heads = items.len() * d.num_kv_heads;
    let longest = items.iter().map(|item| (item.rows * d.group()).div_ceil(UNIT_ROWS)).max().unwrap_or(1).max(1);
    let per_head = if threads == 1 { 1 } else { (UNITS_PER_THREAD * threads).div_ceil(heads.max(1)).min(longest) };
    let mut all = Vec::with_capacity(heads * per_head);
    for index in 0..items.len() {
        for kv_head in 0..d.num_kv_heads {
            let units = units(problem, items, index, kv_head);
            // Every per_head-th unit, so that all parts take equally long under a causal mask.
            let part = |part: usize| Task { units: units.iter().skip(part).step_by(per_head).cloned().collect() };
            all.extend((0..per_head).map(part));
        }
    }
    Tasks { per_head, all }
}

/// Units of a head, split between positions. At least one exists, so that keys visible to no row get a gradient of 0.
pub(super) fn units(problem: &Problem, items: &[Item], index: usize, kv_head: usize) -> Vec<Unit> {
    let group = problem.dims.group();
    let item = &items[index];
    let rows = item.rows * group;
    let step = (UNIT_ROWS / group).max(1) * group;
    (0..rows.max(1))
        .step_by(step)
        .map(|first_row| {
            let rows = step.min(rows - first_row);
            let positions = first_row / group..(first_row + rows) / group;
            Unit { item: index, kv_head, first_row, rows, keys: seen_by_some(problem, item, positions), partial: None }
        })
        .collect()
}

/// Sums the parts of a head's gradient and writes the result.
fn write(job: &Job<'_>, unit: &Unit, operand: Operand, parts: &[Sums], of: impl Fn(&Sums) -> &[f32], to: Option<&mut HostVec>) {
    let Some(to) = to else { return };
    let width = job.problem.shape(operand)[3];
    let to = SharedOutput::new(to);
    let mut row = vec![0.0; width];
    for key in 0..job.items[unit.item].keys {
        row.fill(0.0);
        for part in parts {
            let step = of(part).len() / job.items[unit.item].keys;
            row.iter_mut().zip(&of(part)[key * step..]).for_each(|(x, part)| *x += part);
        }
        let place = job.place(unit, operand, unit.kv_head, key);
        // SAFETY: `WantGradients::check` rejects operands whose elements share a place; nothing else writes meanwhile.
        unsafe { to.write_row(place.start, place.step, &row) };
    }
}

fn add(to: Option<&mut [f32]>, at: usize, from: &[f32]) {
    if let Some(to) = to {
        to[at..at + from.len()].iter_mut().zip(from).for_each(|(x, from)| *x += from);
    }
}
