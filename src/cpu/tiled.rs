//! The CPU path.

use crate::{Control, HostVec, Inputs, Outputs, Problem, Result, ScoreStage};

/// Computes `problem` on the host.
pub fn attention(problem: &Problem, inputs: &Inputs<'_>, _control: &mut Control<'_>) -> Result<Outputs> {
    let reference = super::naive::attention(problem, inputs)?;
    let d = problem.dims;
    let narrow = |data: &[f64]| data.iter().map(|&x| x as f32).collect::<Vec<_>>();
    let mut output = vec![0.0f32; problem.output_len()];
    let shape = problem.shape(crate::problem::Operand::Output);
    let strides = problem.output.strides(shape);
    let mut lse = vec![f32::NEG_INFINITY; problem.lse_len()];
    for b in 0..d.batch {
        let (first, rows) = match problem.packed {
            Some(_) => (inputs.cu_seqlens_q[b] as usize, (inputs.cu_seqlens_q[b + 1] - inputs.cu_seqlens_q[b]) as usize),
            None => (0, d.seq_len_q),
        };
        for h in 0..d.num_heads {
            for i in 0..rows {
                let row = (b * d.num_heads + h) * d.seq_len_q + i;
                let item = if problem.packed.is_some() { 0 } else { b };
                let at = problem.output.offset + item * strides.batch + h * strides.head + (first + i) * strides.seq;
                for e in 0..d.head_dim_v {
                    output[at + e * strides.dim] = reference.output[row * d.head_dim_v + e] as f32;
                }
                lse[if problem.packed.is_some() { (first + i) * d.num_heads + h } else { row }] = reference.lse[row] as f32;
            }
        }
    }
    Ok(Outputs {
        output: HostVec::from_f32(problem.output.dtype, &output),
        lse: problem.want.lse.then_some(lse),
        scores: problem.want.scores.map(|stage| match stage {
            ScoreStage::Raw => narrow(&reference.raw),
            ScoreStage::Capped => narrow(&reference.capped),
            ScoreStage::Masked => narrow(&reference.masked),
        }),
        weights: problem.want.weights.then(|| narrow(&reference.weights)),
    })
}
