//! Fast gradients on the CPU: scores are recomputed block by block, without a score matrix.
//!
//! The plain algorithm, for a panel of query rows and each block of keys: scores and products dp of dO with V; from
//! them p = exp(score - m) / l and dscore = p * (dp - delta); then dQ += dscore K, dK += dscoreᵀ Q and dV += pᵀ dO.
//!
//! For speed, besides what `tiled.rs` lists: each pair is visited once for dQ, dK and dV, by five products of one
//! register-blocked kernel. Sums are free of races and deterministic, because a task owns its dK and dV: one key/value
//! head of an item. Where heads are few, each task takes some query rows, and the parts are summed in order.

use rayon::prelude::*;

use super::backward_bias;
use super::backward_unit::{KeySums, SCRATCH, Sums, UNIT_ROWS, Work, units};
use super::job::{Job, Unit};
use super::kernel::Isa;
use super::pack::SharedOutput;
use super::shared::Shared;
use super::tiled::{UNITS_PER_THREAD, stats_on, threads};
use super::visible::Item;
use crate::problem::Operand;
use crate::{BackwardInputs, Gradients, HostVec, Inputs, Problem, Progress, Result, WantGradients};

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
    let d = &problem.dims;
    let zeros = |wanted: bool, operand| wanted.then(|| HostVec::zeros(want.dtype(problem, operand), problem.operand_len(operand)));
    let columns = problem.relative_bias_columns();
    let mut gradients = Gradients {
        query: zeros(want.query, Operand::Query),
        key: zeros(want.key, Operand::Key),
        value: zeros(want.value, Operand::Value),
        bias: want.bias.then(|| vec![0.0; inputs.bias.len()]),
        relative_bias: want.relative_bias.then(|| vec![0.0; d.num_heads * columns]),
        sinks: want.sinks.then(|| vec![0.0; d.num_heads]),
    };
    if problem.asks_nothing() {
        control.report(1.0)?;
        return Ok(gradients);
    }
    let made = if backward.stats.is_none() { stats_on(isa, problem, inputs)? } else { Vec::new() };
    let items: Vec<Item> = (0..d.batch).map(|batch| Item::new(problem, inputs, batch)).collect();
    let threads = threads(problem, items.iter().map(|item| item.rows * item.keys).sum());
    let (per_head, tasks) = tasks(problem, &items, threads);
    let Gradients { query, key, value, bias, relative_bias, sinks } = &mut gradients;
    let partials = Shared::new(&mut []);
    let work = Work {
        job: Job { problem, inputs, isa, items: &items, output: None, lse: None, stats: None, scores: None, weights: None, partials },
        output: backward.output,
        stats: backward.stats.unwrap_or(&made),
        d_output: backward.d_output,
        want,
        query: query.as_mut().map(SharedOutput::new),
    };

    // In chunks, so that only the sums of a few tasks are in memory at a time.
    let chunk = per_head.max(UNITS_PER_THREAD * threads).next_multiple_of(per_head);
    for (index, some) in tasks.chunks(chunk).enumerate() {
        control.report((index * chunk) as f64 / tasks.len() as f64)?;
        let run = |units: &Vec<Unit>| SCRATCH.with_borrow_mut(|scratch| work.run(units, scratch));
        let sums: Vec<Sums> =
            if threads == 1 { some.iter().map(run).collect() } else { some.par_iter().with_max_len(1).map(run).collect() };
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
    if let Some(bias) = bias {
        *bias = backward_bias::gradient(&work, threads, control)?;
    }
    control.report(1.0)?;
    Ok(gradients)
}

/// Lists of units, each of which adds to one dK and dV in this order: as many as returned for each head of each item.
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
        unsafe { to.write_row(job.place(unit, operand, unit.kv_head, key), &row) };
    }
}

fn add(to: Option<&mut [f32]>, at: usize, from: &[f32]) {
    if let Some(to) = to {
        to[at..at + from.len()].iter_mut().zip(from).for_each(|(x, from)| *x += from);
    }
}
