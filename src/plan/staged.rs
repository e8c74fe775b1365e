//! The staged algorithm: scores, softmax, weighted values, over as much of the score matrix as fits.

use super::builder::Builder;
use super::fused::{every_row, to_scratch_rows};
use super::key_sums::{self, From};
use super::limits::{check_bytes, grid};
use super::step::{BufferRef, Plan};
use super::{DeviceCaps, loops, software};
use crate::error::{Error, Result};
use crate::problem::{Dims, Operand, Problem, ScoreStage};
use crate::wgsl::{Kernel, Params, Slot, StagedShape, Storage};

/// Bytes of the score matrix that are computed at a time where the whole matrix is not wanted.
const SCRATCH_BYTES: u64 = 64 << 20;

/// Part of the score matrix: a range of rows in each of several (batch, head) pairs.
struct ScorePart {
    first_pair: usize,
    pairs: usize,
    first_row: usize,
    rows: usize,
}

/// Plans the staged algorithm; `why` says why it is.
pub(super) fn plan(mut plan: Builder<'_>, why: &str) -> Result<Plan> {
    let (problem, caps) = (plan.problem, plan.caps);
    let d = &problem.dims;
    for operand in [Operand::Key, Operand::Value] {
        check_bytes(operand.name(), problem.spec(operand).dtype.bytes(problem.operand_len(operand)) as u64, caps)?;
    }
    let base = plan.params();
    let parts = parts(problem, caps)?;
    // Generic kernels compute whole tiles of rows.
    let generic = !caps.specialises(d.flops() / d.seq_len_q.max(1) as f64 * d.seq_len_q.next_multiple_of(StagedShape::TILE) as f64);
    let has_groups = parts.iter().all(|part| part.pairs.is_multiple_of(group(d)));
    let shape = |kernel: fn(StagedShape) -> Kernel, dim| {
        let fits = |shape: &StagedShape| {
            !generic && (has_groups || !matches!(shape, StagedShape::Few(_))) && loops::fits(kernel(*shape), &base, problem, caps)
        };
        software::staged(problem, dim, caps).filter(fits).unwrap_or(StagedShape::Tiles)
    };
    let (of_scores, of_values) = (shape(Kernel::Scores, d.head_dim), shape(Kernel::WeightedValues, d.head_dim_v));
    let (scores, values) = (Kernel::Scores(of_scores), Kernel::WeightedValues(of_values));
    let takes_rows = matches!(of_scores, StagedShape::Rows(_)) && loops::fits(Kernel::Softmax(1), &base, problem, caps);
    let row_threads = if takes_rows { 1 } else { 64 };
    let softmax = Kernel::Softmax(row_threads);
    let workgroup_bytes = plan.key(generic, scores).workgroup_bytes();
    let matrix = if problem.want.weights {
        BufferRef::Weights
    } else {
        let largest = parts.iter().map(|part| 4 * (part.pairs * part.rows * d.seq_len_kv) as u64).max();
        plan.scratch("scores", largest.unwrap_or(0).max(16))?
    };
    // The output of rotated values is rotated back at the end.
    let output_vecs = problem.lse_len() * d.head_dim_v.div_ceil(4);
    let rotated = if problem.value_hadamard { Some(plan.scratch("rotated output", 16 * output_vecs as u64)?) } else { None };
    let stats = key_sums::stats(&mut plan)?;
    let mut push = |kernel, params: Params, workgroups: usize, flops: f64, scores: BufferRef| -> Result<()> {
        let mut params = Params { end_workgroup: grid(workgroups)?, ..params };
        let mut key = plan.key(generic, kernel);
        let output = rotated.filter(|_| kernel == values);
        if output.is_some() {
            (key.output, params) = (Storage::SCRATCH, to_scratch_rows(problem, params));
        }
        plan.push(key, params, flops, |slot| match slot {
            Slot::Scores => Some(scores),
            Slot::Output => output,
            Slot::PartialOutput => rotated,
            Slot::Stats => Some(stats),
            _ => None,
        })
    };
    if let Some(stage) = problem.want.scores {
        let all = ScorePart { first_pair: 0, pairs: d.batch * d.num_heads, first_row: 0, rows: d.seq_len_q };
        let params = part_params(&base, &all, stage);
        push(scores, params, score_tiles(problem, &all, of_scores), flops(problem, &all, d.head_dim), BufferRef::Scores)?;
    }
    for part in &parts {
        let params = part_params(&base, part, ScoreStage::Masked);
        push(scores, params, score_tiles(problem, part, of_scores), flops(problem, part, d.head_dim), matrix)?;
        push(softmax, params, part.pairs * part.rows.div_ceil(64 / row_threads as usize), flops(problem, part, 4), matrix)?;
        push(values, params, value_tiles(problem, part, of_values), flops(problem, part, d.head_dim_v), matrix)?;
    }
    if rotated.is_some() {
        push(Kernel::RotateOutput, every_row(problem, Operand::Query, base), output_vecs.div_ceil(64), (256 * output_vecs) as f64, matrix)?;
    }
    key_sums::push(&mut plan, generic, From { stats, list: None })?;
    let summary = format!(
        "staged {}{scores}, {softmax}, {values} ({why}) in {} part(s), {workgroup_bytes} B workgroup memory, {} B scratch",
        if generic { "generic " } else { "" },
        parts.len(),
        plan.scratch_bytes(),
    );
    Ok(plan.finish(None, summary))
}

fn part_params(base: &Params, part: &ScorePart, stage: ScoreStage) -> Params {
    Params {
        first_pair: part.first_pair as u32,
        first_row: part.first_row as u32,
        row_count: part.rows as u32,
        score_stage: match stage {
            ScoreStage::Raw => 0,
            ScoreStage::Capped => 1,
            ScoreStage::Masked => 2,
        },
        ..*base
    }
}

/// Query heads of a key/value head, at least 1.
fn group(d: &Dims) -> usize {
    d.group().max(1)
}

/// Workgroups of the scores of a part.
fn score_tiles(problem: &Problem, part: &ScorePart, shape: StagedShape) -> usize {
    let d = &problem.dims;
    match shape {
        StagedShape::Tiles => part.pairs * part.rows.div_ceil(StagedShape::TILE) * d.seq_len_kv.div_ceil(StagedShape::TILE),
        StagedShape::Rows(shape) => {
            part.pairs * part.rows.div_ceil(shape.block_rows() as usize) * d.seq_len_kv.div_ceil(shape.keys as usize)
        }
        StagedShape::Few(_) => part.pairs / group(d) * d.seq_len_kv.div_ceil(StagedShape::FEW_KEYS),
    }
}

/// Workgroups of the weighted values of a part.
fn value_tiles(problem: &Problem, part: &ScorePart, shape: StagedShape) -> usize {
    let (group, columns) = (group(&problem.dims), problem.dims.head_dim_v.div_ceil(4));
    match shape {
        StagedShape::Tiles => part.pairs * part.rows.div_ceil(StagedShape::TILE) * columns.div_ceil(StagedShape::COLUMNS),
        StagedShape::Rows(shape) => part.pairs * part.rows.div_ceil(shape.block_rows() as usize),
        StagedShape::Few(shape) => {
            part.pairs / group * (group * part.rows).div_ceil(shape.rows as usize) * columns.div_ceil(shape.lanes as usize)
        }
    }
}

fn flops(problem: &Problem, part: &ScorePart, width: usize) -> f64 {
    2.0 * (part.pairs * part.rows) as f64 * problem.dims.seq_len_kv as f64 * width as f64
}

/// Splits the score matrix: whole heads where one fits, groups of them where they do, else rows of one head at a time.
fn parts(problem: &Problem, caps: &DeviceCaps) -> Result<Vec<ScorePart>> {
    let d = &problem.dims;
    let pairs = d.batch * d.num_heads;
    if problem.want.weights {
        check_bytes("weights", 4 * problem.scores_len() as u64, caps)?;
        return Ok(vec![ScorePart { first_pair: 0, pairs, first_row: 0, rows: d.seq_len_q }]);
    }
    let room = SCRATCH_BYTES.min(caps.scratch_budget).min(caps.binding_bytes).min(caps.buffer_bytes);
    let row_bytes = 4 * d.seq_len_kv.max(1) as u64;
    if row_bytes > room {
        let limit = if room == caps.scratch_budget { "scratch_budget" } else { "max_storage_buffer_binding_size" };
        return Err(Error::Limit {
            limit,
            needed: row_bytes,
            available: room,
            remedy: "one row of scores does not fit: use Algorithm::Fused".into(),
        });
    }
    let rows_that_fit = (room / row_bytes) as usize;
    let mut parts = Vec::new();
    if rows_that_fit >= d.seq_len_q {
        let step = (rows_that_fit / d.seq_len_q.max(1)).max(1);
        let step = if step > group(d) { step / group(d) * group(d) } else { step };
        for first_pair in (0..pairs).step_by(step) {
            parts.push(ScorePart { first_pair, pairs: step.min(pairs - first_pair), first_row: 0, rows: d.seq_len_q });
        }
    } else {
        const TILE: usize = StagedShape::TILE;
        let step = if rows_that_fit > TILE { rows_that_fit / TILE * TILE } else { rows_that_fit };
        for first_pair in 0..pairs {
            for first_row in (0..d.seq_len_q).step_by(step) {
                parts.push(ScorePart { first_pair, pairs: 1, first_row, rows: step.min(d.seq_len_q - first_row) });
            }
        }
    }
    Ok(parts)
}
