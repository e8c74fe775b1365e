//! Operations that consist of one attention: `sdpa`, `flex`.

use crate::error::Result;
use crate::numbers::DType;
use crate::problem::{Alibi, Alignment, AttentionFn, Dims, Layout, Problem, ScoreOrder};
use crate::verify::case::Data;
use crate::verify::case_file::{CaseFile, FileData};
use crate::verify::cases::{Given, asked_for, broadcast_shape, output_dtype};

/// Reads [batch, heads, seq, dim] tensors q, k, v and the scale; nothing is masked.
fn dense(file: &CaseFile) -> Result<(Problem, Data)> {
    let [batch, num_heads, seq_len_q, head_dim] = file.shape("q")?;
    let [_, num_kv_heads, seq_len_kv, _] = file.shape("k")?;
    let [.., head_dim_v] = file.shape::<4>("v")?;
    let mut problem = Problem::new(Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v });
    let data = Data::new(file.floats("q")?, file.floats("k")?, file.floats("v")?);
    store(&mut problem, &data, output_dtype(file, "o")?, Layout::Bhsd);
    problem.scale = file.attr("scale")?;
    problem.want.lse = file.expected("lse").is_some();
    Ok((problem, data))
}

/// Sets the layout, and the storage types to those of the data.
pub(super) fn store(problem: &mut Problem, data: &Data, output: DType, layout: Layout) {
    let inputs = data.inputs();
    *problem = problem.stored(output, layout);
    problem.query.dtype = inputs.query.dtype();
    problem.key.dtype = inputs.key.dtype();
    problem.value.dtype = inputs.value.dtype();
}

pub(super) fn run(file: &CaseFile, problem: &Problem, data: &Data, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let outputs = attend(problem, &data.inputs())?;
    let d = &problem.dims;
    let (shape, lse_shape) = match problem.varlen {
        None => (vec![d.batch, d.num_heads, d.seq_len_q, d.head_dim_v], vec![d.batch, d.num_heads, d.seq_len_q]),
        Some(varlen) => (vec![varlen.tokens_q, d.num_heads, d.head_dim_v], vec![varlen.tokens_q, d.num_heads]),
    };
    let mut given = vec![Given { name: "o".into(), shape, values: outputs.output.into_f32() }];
    if file.expected("lse").is_some() {
        given.push(Given { name: "lse".into(), shape: lse_shape, values: asked_for(outputs.lse, "lse")? });
    }
    Ok(given)
}

/// PyTorch's scaled_dot_product_attention.
pub(crate) fn sdpa(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let (mut problem, mut data) = dense(file)?;
    match file.required_attr::<String>("causal")?.as_str() {
        "none" => {}
        "top_left" => problem = problem.aligned(Alignment::TopLeft).causal(),
        "bottom_right" => problem = problem.aligned(Alignment::BottomRight).causal(),
        other => return Err(file.error(format!("causal = `{other}` is unknown"))),
    }
    if let Some(mask) = file.optional("mask") {
        let shape = Some(broadcast_shape(file, "mask", &mask.shape)?);
        if let FileData::Bool(mask) = &mask.data {
            (problem.visibility.mask, data.mask) = (shape, mask.clone());
        } else {
            (problem.bias, data.bias) = (shape, file.f32s("mask")?);
        }
    }
    run(file, &problem, &data, attend)
}

/// PyTorch's flex_attention with the score and mask functions that the file names.
pub(crate) fn flex(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let (mut problem, mut data) = dense(file)?;
    let alignment = Alignment::Offset(file.attr("q_offset")?.unwrap_or(0));
    let score_mod: String = file.required_attr("score_mod")?;
    let mut biased = false;
    for part in score_mod.split('+').filter(|&part| part != "none") {
        match part {
            "softcap" => {
                problem.softcap = Some(file.required_attr("softcap")?);
                problem.score_order = if biased { ScoreOrder::BiasThenSoftcap } else { ScoreOrder::SoftcapThenBias };
                continue;
            }
            "alibi" => (problem.alibi, data.alibi_slopes) = (Some(Alibi::Signed), file.f32s("alibi_slopes")?),
            "rel_bias" => {
                (problem.relative_bias_max_distance, data.relative_bias) =
                    (Some(file.required_attr("max_distance")?), file.f32s("rel_bias")?)
            }
            "head_bias" => {
                let shape = &file.input("head_bias")?.shape;
                (problem.bias, data.bias) = (Some(broadcast_shape(file, "head_bias", shape)?), file.f32s("head_bias")?);
            }
            other => return Err(file.error(format!("score_mod `{other}` is unknown"))),
        }
        biased = true;
    }
    let mask_mod: String = file.required_attr("mask_mod")?;
    let v = &mut problem.visibility;
    for part in mask_mod.split('&').filter(|&part| part != "none") {
        match part {
            "causal" => v.causal = true,
            "window" => (v.window_left, v.window_right) = (file.size("window_left")?, file.size("window_right")?),
            "prefix" => {
                (v.causal, v.prefix_lengths) = (true, true);
                data.prefix_lengths = file.ints("prefix_len")?;
            }
            "document" => {
                v.segments = true;
                (data.segment_ids_q, data.segment_ids_kv) = (file.ints("doc_id_q")?, file.ints("doc_id_k")?);
            }
            "length" => (v.kv_lengths, data.kv_lengths) = (true, file.ints("kv_len")?),
            other => return Err(file.error(format!("mask_mod `{other}` is unknown"))),
        }
    }
    problem.visibility.alignment = problem.uses_position().then_some(alignment);
    run(file, &problem, &data, attend)
}
