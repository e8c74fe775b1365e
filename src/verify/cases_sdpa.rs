//! Operations that are one attention each: `sdpa`, `flex`, `varlen`.

use crate::verify::case::Data;
use crate::verify::case_file::{CaseFile, FileData};
use crate::verify::cases::{Given, asked_for, broadcast_shape, output_dtype};
use crate::{Alibi, Alignment, Attend, DType, Dims, Layout, Packed, Problem, Result, ScoreOrder};

/// [batch, heads, seq, dim] tensors q, k, v with their scale, and nothing hidden.
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

/// Takes the storage types from the data.
fn store(problem: &mut Problem, data: &Data, output: DType, layout: Layout) {
    let inputs = data.inputs();
    *problem = problem.stored(output, layout);
    problem.query.dtype = inputs.query.dtype();
    problem.key.dtype = inputs.key.dtype();
    problem.value.dtype = inputs.value.dtype();
}

fn run(file: &CaseFile, problem: &Problem, data: &Data, attend: &Attend<'_>) -> Result<Vec<Given>> {
    let outputs = attend(problem, &data.inputs())?;
    let d = &problem.dims;
    let (shape, lse_shape) = match problem.packed {
        None => (vec![d.batch, d.num_heads, d.seq_len_q, d.head_dim_v], vec![d.batch, d.num_heads, d.seq_len_q]),
        Some(packed) => (vec![packed.tokens_q, d.num_heads, d.head_dim_v], vec![packed.tokens_q, d.num_heads]),
    };
    let mut given = vec![Given { name: "o".into(), shape, values: outputs.output.into_f32() }];
    if file.expected("lse").is_some() {
        given.push(Given { name: "lse".into(), shape: lse_shape, values: asked_for(outputs.lse, "lse")? });
    }
    Ok(given)
}

/// PyTorch's scaled_dot_product_attention.
pub(crate) fn sdpa(file: &CaseFile, attend: &Attend<'_>) -> Result<Vec<Given>> {
    let (mut problem, mut data) = dense(file)?;
    match file.required_attr::<String>("causal")?.as_str() {
        "none" => {}
        "top_left" => problem = problem.causal(Alignment::TopLeft),
        "bottom_right" => problem = problem.causal(Alignment::BottomRight),
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
pub(crate) fn flex(file: &CaseFile, attend: &Attend<'_>) -> Result<Vec<Given>> {
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
            "rel_bias" => (problem.relative_bias, data.relative_bias) = (Some(file.required_attr("max_distance")?), file.f32s("rel_bias")?),
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
                v.documents = true;
                (data.documents_q, data.documents_kv) = (file.ints("doc_id_q")?, file.ints("doc_id_k")?);
            }
            "length" => (v.kv_lengths, data.kv_lengths) = (true, file.ints("kv_len")?),
            other => return Err(file.error(format!("mask_mod `{other}` is unknown"))),
        }
    }
    problem.visibility.alignment = problem.uses_position().then_some(alignment);
    run(file, &problem, &data, attend)
}

/// Packed sequences, as FlashAttention's varlen entry takes them.
pub(crate) fn varlen(file: &CaseFile, attend: &Attend<'_>) -> Result<Vec<Given>> {
    let [tokens_q, num_heads, head_dim] = file.shape("q")?;
    let [tokens_kv, num_kv_heads, _] = file.shape("k")?;
    let [.., head_dim_v] = file.shape::<3>("v")?;
    let mut data = Data::new(file.floats("q")?, file.floats("k")?, file.floats("v")?);
    data.cu_seqlens_q = file.ints("cu_seqlens_q")?;
    data.cu_seqlens_kv = file.ints("cu_seqlens_k")?;
    let longest = |borders: &[u32]| borders.windows(2).map(|pair| pair[1].saturating_sub(pair[0]) as usize).max().unwrap_or(0);
    let dims = Dims {
        batch: data.cu_seqlens_q.len().saturating_sub(1),
        num_heads,
        num_kv_heads,
        seq_len_q: longest(&data.cu_seqlens_q),
        seq_len_kv: longest(&data.cu_seqlens_kv),
        head_dim,
        head_dim_v,
    };
    let mut problem = Problem { packed: Some(Packed { tokens_q, tokens_kv }), ..Problem::new(dims) };
    store(&mut problem, &data, output_dtype(file, "o")?, Layout::Bshd);
    problem.scale = file.attr("scale")?;
    problem.softcap = file.attr("softcap")?.filter(|&softcap: &f32| softcap != 0.0);
    problem.want.lse = file.expected("lse").is_some();
    problem.visibility.window_left = file.size("window_left")?;
    problem.visibility.window_right = file.size("window_right")?;
    match file.required_attr::<String>("causal")?.as_str() {
        "none" => {}
        "bottom_right" => problem.visibility.causal = true,
        other => return Err(file.error(format!("causal = `{other}` is unknown here"))),
    }
    if file.optional("alibi_slopes").is_some() {
        (problem.alibi, data.alibi_slopes) = (Some(Alibi::Symmetric), file.f32s("alibi_slopes")?);
    }
    problem.visibility.alignment = problem.uses_position().then_some(Alignment::BottomRight);
    let mut given = Vec::new();
    if file.optional("sinks").is_some() {
        if file.expected("lse_without_sink").is_some() {
            let mut without = run(file, &problem, &data, attend)?;
            given.extend(without.pop().map(|lse| Given { name: "lse_without_sink".into(), ..lse }));
        }
        (problem.sinks, data.sinks) = (true, file.f32s("sinks")?);
    }
    given.extend(run(file, &problem, &data, attend)?);
    Ok(given)
}
