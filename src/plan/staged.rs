//! The staged algorithm: scores, softmax, weighted values, over as much of the score matrix as fits.

use super::DeviceCaps;
use super::builder::Builder;
use super::limits::{check_bytes, grid};
use super::step::{BufferRef, Plan};
use crate::error::{Error, Result};
use crate::problem::{Operand, Problem, ScoreStage};
use crate::wgsl::{Kernel, Params, Slot};

/// Rows and keys, and vec4 columns, of a workgroup's tile in shaders/staged.
const TILE: usize = 32;
const COLUMNS: usize = 8;
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
    let generic = !caps.specialises(d.flops());
    let workgroup_bytes = plan.key(generic, Kernel::Scores).workgroup_bytes();
    let matrix = if problem.want.weights {
        BufferRef::Weights
    } else {
        let largest = parts.iter().map(|part| 4 * (part.pairs * part.rows * d.seq_len_kv) as u64).max();
        plan.scratch("scores", largest.unwrap_or(0).max(16))?
    };
    let mut push = |kernel, params: Params, workgroups: usize, flops: f64, scores: BufferRef| -> Result<()> {
        let params = Params { end_workgroup: grid(workgroups)?, ..params };
        plan.push(plan.key(generic, kernel), params, flops, |slot| (slot == Slot::Scores).then_some(scores))
    };
    if let Some(stage) = problem.want.scores {
        let all = ScorePart { first_pair: 0, pairs: d.batch * d.num_heads, first_row: 0, rows: d.seq_len_q };
        let params = part_params(&base, &all, stage);
        push(Kernel::Scores, params, score_tiles(problem, &all), flops(problem, &all, d.head_dim), BufferRef::Scores)?;
    }
    for part in &parts {
        let params = part_params(&base, part, ScoreStage::Masked);
        let columns = d.head_dim_v.div_ceil(4).div_ceil(COLUMNS);
        push(Kernel::Scores, params, score_tiles(problem, part), flops(problem, part, d.head_dim), matrix)?;
        push(Kernel::Softmax, params, part.pairs * part.rows, flops(problem, part, 4), matrix)?;
        let tiles = part.pairs * part.rows.div_ceil(TILE) * columns;
        push(Kernel::WeightedValues, params, tiles, flops(problem, part, d.head_dim_v), matrix)?;
    }
    let summary = format!(
        "staged {}scores, softmax, weighted values ({why}) in {} part(s), tiles {TILE}x{TILE}, {workgroup_bytes} B workgroup memory, {} B \
         scratch",
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

fn score_tiles(problem: &Problem, part: &ScorePart) -> usize {
    part.pairs * part.rows.div_ceil(TILE) * problem.dims.seq_len_kv.div_ceil(TILE)
}

fn flops(problem: &Problem, part: &ScorePart, width: usize) -> f64 {
    2.0 * (part.pairs * part.rows) as f64 * problem.dims.seq_len_kv as f64 * width as f64
}

/// Splits the score matrix: whole heads where one fits, else rows of one head at a time.
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
        let step = rows_that_fit / d.seq_len_q.max(1);
        for first_pair in (0..pairs).step_by(step.max(1)) {
            parts.push(ScorePart { first_pair, pairs: step.min(pairs - first_pair), first_row: 0, rows: d.seq_len_q });
        }
    } else {
        let step = if rows_that_fit > TILE { rows_that_fit / TILE * TILE } else { rows_that_fit };
        for first_pair in 0..pairs {
            for first_row in (0..d.seq_len_q).step_by(step) {
                parts.push(ScorePart { first_pair, pairs: 1, first_row, rows: step.min(d.seq_len_q - first_row) });
            }
        }
    }
    Ok(parts)
}
