//! Fast attention on the CPU: one pass over the keys with a running max and running sum, without a score matrix.
//!
//! The plain algorithm, for a block of query rows and each block of keys in turn: compute scores, their max, weights
//! `exp(score - max)` and their sum, and add the weighted values to the output. Where the running max grows, sum and
//! output are first scaled by `exp(old - new)`. At the end the output is divided by the sum.
//!
//! Changed for speed:
//! - query rows are the lanes of the vectors (`kernel.rs`): neither keys nor values need packing, no reduction crosses
//!   lanes, and both products are one register-blocked kernel;
//! - where the processor has matrix instructions, both products are theirs (`matrix.rs`), of packed operands;
//! - scale is multiplied into the queries, or into the scores where that keeps the queries exact;
//! - all heads of a group are rows of one unit, so that keys and values are read once for the group;
//! - keys outside all intervals of a panel are skipped; a block inside all of them needs no mask;
//! - threads take units one by one, the longest first; where units are too few, keys are split and the parts merged.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::job::{Job, KEY_BLOCK, Unit};
use super::kernel::Isa;
use super::key_sums;
use super::matrix_pack::MatrixPlan;
use super::pack::SharedOutput;
use super::pool;
use super::shared::{Buffer, Shared};
use super::tile_list::TileList;
use super::unit::{self, Scratch};
use super::user_term::UserTerm;
use super::user_terms;
use super::visible::Item;
use crate::error::{Error, Result};
use crate::numbers::HostVec;
use crate::problem::{Inputs, Outputs, Problem};
use crate::progress::Progress;

/// Multiply-adds below which a call stays on its own thread: 10 to 20 microseconds of work.
const SMALL: usize = 1 << 21;
/// Panels of 64 rows in a unit, which share the conversion of a key block. GFLOP/s in f16: 1 panel 105, 2 120, 4 130.
const UNIT_PANELS: usize = 4;
/// Panels of a unit where the conversion packs a block for matrix products. 1x8x2048x64 in bf16: 8 panels 9.5 ms, 16 9.2.
const MATRIX_UNIT_PANELS: usize = 16;
/// Number of rows below which reading the keys dominates the time.
const FEW_ROWS: usize = 8;
/// Target number of units per thread, so that all threads end at about the same time.
pub(super) const UNITS_PER_THREAD: usize = 4;
/// Statistics of a row without visible keys and without a sink.
const NOTHING_SEEN: [f32; 2] = [f32::MIN, 0.0];
/// Fewest keys worth a part of their own.
const SPLIT_KEYS: usize = 2 * KEY_BLOCK;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static CALL: RefCell<Call> = RefCell::default();
}

/// Scratch memory of a call, kept by its thread for the next call.
#[derive(Default)]
struct Call {
    items: Vec<Item>,
    units: Vec<Unit>,
    pieces: Vec<Unit>,
    partials: Buffer,
    row: Buffer,
    stats: Vec<[f32; 2]>,
}

/// Computes `problem` on the host with the machine's best instruction set, on all threads of the current rayon pool.
///
/// Memory besides the outputs grows with seq_len; outputs grow with its square if scores or weights are asked for.
/// A watched `control` is called after every few units, and can stop the work with [`Error::Cancelled`].
pub fn attention(problem: &Problem, inputs: &Inputs<'_>, control: &mut Progress<'_>) -> Result<Outputs> {
    let mut outputs = Outputs::default();
    attention_into(problem, inputs, &mut outputs, control)?;
    Ok(outputs)
}

/// Runs [`attention`] into existing `outputs`. Buffers of the right size and type are reused without allocation, and
/// gaps between strided elements keep their contents. After an error the contents are unspecified.
pub fn attention_into(problem: &Problem, inputs: &Inputs<'_>, outputs: &mut Outputs, control: &mut Progress<'_>) -> Result<()> {
    attention_on(Isa::best(), problem, inputs, outputs, control)
}

/// Describes how [`attention`] computes a problem: the instruction set, and the bf16 numbers that add up to each operand of
/// a matrix product. Rows of few queries, as in decoding, and blocks with elements that are not finite or outside
/// 2^-60..2^60 take products in f32.
pub fn summary(problem: &Problem) -> String {
    let isa = Isa::best();
    let products = match MatrixPlan::new(isa, problem) {
        None => "products in f32".into(),
        Some(MatrixPlan { query, key, value, weights, .. }) => {
            format!("products in bf16: query {query} x key {key}, weights {weights} x value {value}")
        }
    };
    format!("cpu path: {}, {products}", isa.name())
}

/// Runs [`attention_into`] with the given instruction set.
pub(super) fn attention_on(
    isa: Isa,
    problem: &Problem,
    inputs: &Inputs<'_>,
    outputs: &mut Outputs,
    control: &mut Progress<'_>,
) -> Result<()> {
    problem.check()?;
    inputs.check(problem)?;
    fit(problem, outputs)?;
    if problem.asks_nothing() {
        return control.report(1.0);
    }
    run(isa, problem, inputs, outputs, control)
}

/// Computes only the softmax statistics, without products with values. The caller has checked all arguments.
pub(super) fn stats_on(isa: Isa, problem: &Problem, inputs: &Inputs<'_>) -> Result<Vec<[f32; 2]>> {
    let problem = &problem.for_stats();
    let mut outputs = Outputs { stats: Some(vec![NOTHING_SEEN; problem.lse_len()]), ..Outputs::default() };
    run(isa, problem, inputs, &mut outputs, &mut Progress::default())?;
    Ok(outputs.stats.unwrap_or_default())
}

/// Fits the buffers of `outputs` to what `problem` wants.
fn fit(problem: &Problem, outputs: &mut Outputs) -> Result<()> {
    let output = outputs.output.as_slice();
    if (output.dtype(), output.len()) != (problem.output.dtype, problem.output_len()) {
        outputs.output = HostVec::zeros(problem.output.dtype, problem.output_len());
    }
    // Pairs and rows that are never visited, as in a varlen batch, keep these values.
    fill(&mut outputs.lse, problem.want.lse, problem.lse_len(), f32::NEG_INFINITY)?;
    fill(&mut outputs.stats, problem.want.stats, problem.lse_len(), NOTHING_SEEN)?;
    fill(&mut outputs.scores, problem.want.scores.is_some(), problem.scores_len(), f32::NEG_INFINITY)?;
    fill(&mut outputs.weights, problem.want.weights, problem.scores_len(), 0.0)?;
    fill(&mut outputs.key_sums, problem.want.key_sums.is_some(), problem.key_sums_len(), 0.0)
}

/// Fills a wanted buffer with `len` elements, or returns an error if memory has no room for them.
fn fill<T: Clone>(buffer: &mut Option<Vec<T>>, wanted: bool, len: usize, x: T) -> Result<()> {
    *buffer = wanted.then(|| buffer.take().unwrap_or_default());
    let Some(data) = buffer else { return Ok(()) };
    data.clear();
    data.try_reserve_exact(len).map_err(|_| Error::Limit {
        limit: "memory",
        needed: (len * size_of::<T>()) as u64,
        available: 0,
        remedy: "do not ask for scores or weights, or ask for fewer rows at a time".into(),
    })?;
    data.resize(len, x);
    Ok(())
}

/// Computes a checked problem, except for the output if `outputs` has no room for it.
fn run(isa: Isa, problem: &Problem, inputs: &Inputs<'_>, outputs: &mut Outputs, control: &mut Progress<'_>) -> Result<()> {
    let d = &problem.dims;
    let mut call = CALL.take();
    let Call { items, units, pieces, partials, row, stats: own_stats } = &mut call;
    items.clear();
    items.extend((0..d.batch).map(|batch| Item::new(problem, inputs, batch)));
    let pairs: usize = items.iter().map(|item| item.seen_by_some(problem, 0..item.rows).len() * item.rows.max(FEW_ROWS)).sum();
    let threads = threads(problem, pairs);
    let users = UserTerm::all(problem, inputs);
    plan(problem, items, &users, isa, threads, units);
    let parts = if problem.want.scores.is_some() || problem.want.weights { 1 } else { parts(units, threads) };
    let record = d.head_dim_v + 2;
    split(units, parts, record, pieces);

    let partials_len = if parts > 1 { units.iter().map(|unit| unit.rows * record * parts).sum() } else { 0 };
    let Outputs { output, lse, stats, scores, weights, key_sums } = outputs;
    let mut stats = stats.as_mut();
    if stats.is_none() && problem.want.needs_stats() {
        own_stats.clear();
        own_stats.resize(problem.lse_len(), NOTHING_SEEN);
        stats = Some(own_stats);
    }
    let list = TileList::build(problem, &users, isa, items, threads);
    let mut job = Job {
        problem,
        inputs,
        isa,
        matrix: MatrixPlan::new(isa, problem),
        items,
        list: list.as_ref(),
        output: (!output.as_slice().is_empty()).then(|| SharedOutput::new(output)),
        lse: lse.as_mut().map(|lse| Shared::new(lse)),
        stats: stats.map(|stats| Shared::new(stats)),
        scores: problem.want.scores.zip(scores.as_mut()).map(|(stage, scores)| (stage, Shared::new(scores))),
        weights: weights.as_mut().map(|weights| Shared::new(weights)),
        users,
        partials: Shared::new(partials.take(partials_len)),
    };
    let end = if key_sums.is_some() { 0.5 } else { 1.0 };
    let mut done =
        for_each(pieces, threads, (control, 0.0..end), |piece| SCRATCH.with_borrow_mut(|scratch| unit::run(&job, piece, scratch)));
    if parts > 1 && done.is_ok() {
        units.iter().zip(pieces.chunks_exact(parts)).for_each(|(unit, pieces)| merge(&job, unit, pieces, row.take(record - 2)));
    }
    if let (Some(rows), Some(sums), true) = (problem.want.key_sums, key_sums, done.is_ok()) {
        (job.output, job.scores, job.weights) = (None, None, None);
        let wanted = if threads == 1 { 1 } else { UNITS_PER_THREAD * threads };
        let (units, sums) = (key_sums::units(&job, rows, wanted), Shared::new(sums));
        done = for_each(&units, threads, (control, end..1.0), |unit| {
            SCRATCH.with_borrow_mut(|scratch| key_sums::run(&job, unit, &sums, scratch));
        });
    }
    CALL.set(call);
    done
}

/// Number of threads for a problem with this many (row, key) pairs per head.
pub(super) fn threads(problem: &Problem, pairs: usize) -> usize {
    let d = &problem.dims;
    let is_small = pairs.saturating_mul(d.num_heads * (d.head_dim + d.head_dim_v)) < SMALL;
    if is_small { 1 } else { pool::threads() }
}

/// Divides a problem into units, the longest first.
fn plan(problem: &Problem, items: &[Item], users: &[UserTerm<'_>], isa: Isa, threads: usize, units: &mut Vec<Unit>) {
    let d = &problem.dims;
    let group = d.group();
    let panel = isa.panel();
    let in_panels = |panels: usize| items.iter().map(|item| (item.rows * group).div_ceil(panels * panel)).sum::<usize>() * d.num_kv_heads;
    let most = if isa.engine().is_some() { MATRIX_UNIT_PANELS } else { UNIT_PANELS } * 64usize.div_ceil(panel);
    let panels = (1..=most).rev().find(|&panels| in_panels(panels) >= UNITS_PER_THREAD * threads).unwrap_or(1);
    units.clear();
    for (index, item) in items.iter().enumerate() {
        let rows = item.rows * group;
        for kv_head in 0..d.num_kv_heads {
            for first_row in (0..rows).step_by(panels * panel) {
                let rows = (panels * panel).min(rows - first_row);
                let positions = first_row / group..(first_row + rows).div_ceil(group);
                let keys = item.seen_by_some(problem, positions);
                let mut unit = Unit { item: index, kv_head, first_row, rows, work: rows * keys.len(), keys, partial: None };
                if !users.is_empty() {
                    unit.work = user_terms::work(users, problem, item, &unit);
                }
                units.push(unit);
            }
        }
    }
    // An unstable sort allocates nothing; ties are sorted in memory order.
    units.sort_unstable_by_key(|unit| (std::cmp::Reverse(unit.work), unit.item, unit.kv_head, unit.first_row));
}

/// Number of parts that the keys of every unit are split into.
fn parts(units: &[Unit], threads: usize) -> usize {
    let longest = units.first().map_or(0, |unit| unit.keys.len());
    if threads == 1 || units.is_empty() || units.len() >= UNITS_PER_THREAD * threads {
        return 1;
    }
    (UNITS_PER_THREAD * threads).div_ceil(units.len()).min(longest / SPLIT_KEYS).max(1)
}

/// Splits each unit into `parts` units, each with a share of its keys.
fn split(units: &[Unit], parts: usize, record: usize, pieces: &mut Vec<Unit>) {
    pieces.clear();
    if parts == 1 {
        return pieces.extend_from_slice(units);
    }
    let mut partial = 0;
    for unit in units {
        let share = unit.keys.len().div_ceil(parts).next_multiple_of(KEY_BLOCK);
        for part in 0..parts {
            let cut = |part: usize| unit.keys.end.min(unit.keys.start + part * share);
            let (keys, work) = (cut(part)..cut(part + 1), unit.work / parts);
            pieces.push(Unit { keys, work, partial: Some(partial), ..unit.clone() });
            partial += unit.rows * record;
        }
    }
}

/// Merges the parts of a unit, each weighted with its share of the common sum, so that finite results stay finite.
fn merge(job: &Job<'_>, unit: &Unit, pieces: &[Unit], row: &mut [f32]) {
    let record = row.len() + 2;
    for r in 0..unit.rows {
        let parts = || {
            pieces.iter().filter_map(|piece| piece.partial).map(|partial| {
                let at = partial + r * record;
                // SAFETY: all units are done; a row is merged once, and its records are visited one at a time.
                &*unsafe { job.partials.slice(at..at + record) }
            })
        };
        let max = parts().map(|part| part[record - 2]).fold(f32::MIN, f32::max);
        let seen = || parts().filter(|part| part[record - 1] != 0.0);
        let size = |part: &[f32]| (part[record - 2] - max).exp() * part[record - 1];
        let sum = seen().map(size).sum();
        row.fill(0.0);
        for part in seen() {
            let share = size(part) / sum;
            row.iter_mut().zip(part).for_each(|(x, part)| *x += share * part);
        }
        job.finish_row(unit, r, (row, max, sum), sum);
    }
}

/// Runs all units, on this thread or on the pool, whose threads each take the next unit as soon as they are free. They are
/// the part `share` of the call's work.
fn for_each(units: &[Unit], threads: usize, (control, share): (&mut Progress<'_>, Range<f64>), run: impl Fn(&Unit) + Sync) -> Result<()> {
    let all_of = |units: &[Unit]| {
        let threads = threads.min(units.len());
        if threads <= 1 {
            return units.iter().for_each(&run);
        }
        let next = AtomicUsize::new(0);
        pool::for_each(0..threads, |_| {
            while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                run(unit);
            }
        });
    };
    if !control.is_watched() {
        all_of(units);
        return Ok(());
    }
    let cost = |units: &[Unit]| units.iter().map(|unit| unit.work.max(1)).sum::<usize>() as f64;
    let (total, mut done) = (cost(units), 0.0);
    for chunk in units.chunks(UNITS_PER_THREAD * threads) {
        control.report(share.start + (share.end - share.start) * done / total)?;
        all_of(chunk);
        done += cost(chunk);
    }
    control.report(share.end)
}
