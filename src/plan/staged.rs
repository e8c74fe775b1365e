//! The staged algorithm: scores, softmax, weighted values, over as much of the score matrix as fits.

use super::fused::{places, variant};
use super::{BufferRef, DeviceCaps, Plan, Step, TableLayout, check_bytes, grid};
use crate::error::{Error, Result};
use crate::problem::{Operand, Problem, ScoreStage};
use crate::wgsl::{Kernel, Params};

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

pub(super) fn plan(problem: &Problem, caps: &DeviceCaps, why: &str) -> Result<Plan> {
    let d = &problem.dims;
    let (layout, table_words) = TableLayout::new(problem).unwrap_or_default(); // checked before
    for operand in [Operand::Key, Operand::Value] {
        check_bytes(operand.name(), problem.spec(operand).dtype.bytes(problem.operand_len(operand)) as u64, caps)?;
    }
    let base = Params::new(problem, layout);
    let parts = parts(problem, caps)?;
    let matrix = if problem.want.weights { BufferRef::Weights } else { BufferRef::Scratch(0) };
    let generic = !caps.specialises(d.flops());
    let mut steps = Vec::new();
    let mut push = |kernel, params: Params, workgroups: usize, flops: f64, scores: Option<BufferRef>| -> Result<()> {
        let key = variant(generic, kernel, problem);
        let places = places(&key, |slot| BufferRef::of(slot).unwrap_or(scores.unwrap_or(matrix)));
        steps.push(Step { key, params: Params { end_workgroup: grid(workgroups)?, ..params }, places, bound: None, flops });
        Ok(())
    };
    if let Some(stage) = problem.want.scores {
        let all = ScorePart { first_pair: 0, pairs: d.batch * d.num_heads, first_row: 0, rows: d.seq_len_q };
        let params = part_params(&base, &all, stage);
        push(Kernel::Scores, params, score_tiles(problem, &all), flops(problem, &all, d.head_dim), Some(BufferRef::Scores))?;
    }
    for part in &parts {
        let params = part_params(&base, part, ScoreStage::Masked);
        let columns = d.head_dim_v.div_ceil(4).div_ceil(COLUMNS);
        push(Kernel::Scores, params, score_tiles(problem, part), flops(problem, part, d.head_dim), None)?;
        push(Kernel::Softmax, params, part.pairs * part.rows, flops(problem, part, 4), None)?;
        push(Kernel::WeightedValues, params, part.pairs * part.rows.div_ceil(TILE) * columns, flops(problem, part, d.head_dim_v), None)?;
    }
    let scratch: Vec<u64> = if problem.want.weights {
        Vec::new()
    } else {
        vec![parts.iter().map(|part| 4 * (part.pairs * part.rows * d.seq_len_kv) as u64).max().unwrap_or(0).max(16)]
    };
    let summary = format!(
        "staged {}scores, softmax, weighted values ({why}) in {} part(s), tiles {TILE}x{TILE}, {} B workgroup memory, {} B scratch",
        if generic { "generic " } else { "" },
        parts.len(),
        variant(generic, Kernel::Scores, problem).workgroup_bytes(),
        scratch.iter().sum::<u64>(),
    );
    Ok(Plan { steps, scratch, table_words, summary })
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
    let room = SCRATCH_BYTES.min(caps.binding_bytes).min(caps.buffer_bytes);
    let row_bytes = 4 * d.seq_len_kv.max(1) as u64;
    if row_bytes > room {
        return Err(Error::Limit {
            limit: "max_storage_buffer_binding_size",
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
