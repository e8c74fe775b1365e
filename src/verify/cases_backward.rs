//! Gradients that a case file expects: of an attention from `in.dout`, of a multi-head layer from `in.doutput`.

use std::cell::RefCell;

use crate::engine::Engine;
use crate::error::Result;
use crate::layer::{Appended, LayerGradients, Linear, LinearGradients, MultiHead};
use crate::numbers::{DType, HostVec};
use crate::problem::{AttentionFn, BackwardInputs, Inputs, Problem, Returns, WantGradients};
use crate::verify::case_file::CaseFile;
use crate::verify::cases::Given;
use crate::verify::cases_model::{batch_first, given, mask_place, swap_first_two};

/// Runs `op` on `attend`, and the gradients of its last attention on `engine`.
pub(crate) fn with_gradients(
    file: &CaseFile,
    engine: &Engine,
    attend: &AttentionFn<'_>,
    op: impl Fn(&CaseFile, &AttentionFn<'_>) -> Result<Vec<Given>>,
) -> Result<Vec<Given>> {
    let gradients = RefCell::new(Vec::new());
    let observed = |problem: &Problem, inputs: &Inputs<'_>| {
        let outputs = attend(problem, inputs)?;
        *gradients.borrow_mut() =
            if file.op() == "mha" { layer(file, engine, problem, inputs)? } else { attention(file, engine, problem, inputs)? };
        Ok(outputs)
    };
    let mut all = op(file, &observed)?;
    all.extend(gradients.take());
    Ok(all)
}

/// Computes dq, dk and dv, and the gradients of a float mask, a bias per head, relative biases and sinks.
fn attention(file: &CaseFile, engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<Vec<Given>> {
    let problem = &Problem { want: Returns::default(), ..*problem };
    let forward = engine.attention(problem, inputs)?;
    let d_output = HostVec::from_f32(problem.output.dtype, &file.f32s("dout")?);
    let backward = BackwardInputs { output: forward.output.as_slice(), stats: None, d_output: d_output.as_slice() };
    let got = engine.backward(problem, inputs, &backward, &WantGradients { dtype: Some(DType::F32), ..WantGradients::all(problem) })?;
    let wide = |gradient: Option<HostVec>| gradient.map(HostVec::into_f32);
    let tensors = [
        ("q", wide(got.query)),
        ("k", wide(got.key)),
        ("v", wide(got.value)),
        ("mask", got.bias.clone()),
        ("head_bias", got.bias),
        ("rel_bias", got.relative_bias),
        ("sinks", got.sinks),
    ];
    let like = |(name, gradient): (&str, Option<Vec<f32>>)| {
        let (values, input) = (gradient?, file.optional(name)?);
        Some(Given { name: format!("d{name}"), shape: input.shape.clone(), values })
    };
    Ok(tensors.into_iter().filter_map(like).collect())
}

/// Computes the gradients of nn.MultiheadAttention with the engine's own layer, masks and biases as in `attention`.
fn layer(file: &CaseFile, engine: &Engine, attention: &Problem, inputs: &Inputs<'_>) -> Result<Vec<Given>> {
    let width: usize = file.required_attr("embed_dim")?;
    // An absent key or value is the query, as in self-attention.
    let sources = ["query", "key", "value"].map(|name| if file.optional(name).is_some() { name } else { "query" });
    let (query, batch, seq_len_q, width_q) = batch_first(file, sources[0])?;
    let (key, _, tokens, width_k) = batch_first(file, sources[1])?;
    let (value, _, _, width_v) = batch_first(file, sources[2])?;
    let (d_output, ..) = batch_first(file, "doutput")?;

    let optional = |name: &str| file.optional(name).map(|_| file.f32s(name)).transpose();
    let (packed, biases) = (optional("in_proj_weight")?, optional("in_proj_bias")?);
    let projection = |at: usize, name: &str, width_in: usize| {
        let third = |all: &[f32], len: usize| all.get(at * len..(at + 1) * len).map(<[f32]>::to_vec).unwrap_or_default();
        let weight = match &packed {
            Some(all) => third(all, width * width_in),
            None => file.f32s(&format!("{name}_proj_weight"))?,
        };
        Linear::new(weight, biases.as_ref().map(|all| third(all, width)), width_in)
    };
    let output = Linear::new(file.f32s("out_proj.weight")?, optional("out_proj.bias")?, width)?;
    let heads = attention.dims.num_heads;
    let layer =
        MultiHead::new(projection(0, "q", width_q)?, projection(1, "k", width_k)?, projection(2, "v", width_v)?, output, heads, heads)?;
    let bias_kv = if file.flag("add_bias_kv")? { Some((file.f32s("bias_k")?, file.f32s("bias_v")?)) } else { None };
    let layer = layer.with_appended(Appended { bias_kv, zero: file.flag("add_zero_attn")? })?;

    let mut problem = layer.problem(batch, seq_len_q, tokens);
    (problem.visibility, problem.bias) = (attention.visibility, attention.bias);
    let inputs = Inputs { mask: inputs.mask, bias: inputs.bias, ..Inputs::new(&query, &key, &value) };
    let forward = layer.forward_with_steps(engine, &problem, &inputs)?;
    let got = layer.backward(engine, &problem, &inputs, &forward, &d_output)?;
    layer_gradients(file, got, sources, &problem, tokens)
}

/// Converts gradients to the names and shapes of the file.
fn layer_gradients(file: &CaseFile, got: LayerGradients, sources: [&str; 3], problem: &Problem, tokens: usize) -> Result<Vec<Given>> {
    let (batch, rows) = (problem.dims.batch, [problem.dims.seq_len_q, tokens, tokens]);
    let mut found: Vec<(&str, Vec<f32>)> = Vec::new();
    let is_first = file.flag("batch_first")? || file.flag("unbatched")?;
    for (at, gradient) in [got.query, got.key, got.value].into_iter().enumerate() {
        let width = gradient.len() / (batch * rows[at]).max(1);
        let gradient = if is_first { gradient } else { swap_first_two(&gradient, batch, rows[at], width) };
        // An input that is read more than once gets the sum.
        match found.iter_mut().find(|(name, _)| *name == sources[at]) {
            Some((_, sum)) => sum.iter_mut().zip(&gradient).for_each(|(x, more)| *x += more),
            None => found.push((sources[at], gradient)),
        }
    }
    let bias = |linear: &LinearGradients| linear.bias.clone().unwrap_or_default();
    found.push(("in_proj_bias", [bias(&got.w_q), bias(&got.w_k), bias(&got.w_v)].concat()));
    found.push(("out_proj.bias", bias(&got.w_o)));
    found.push(("in_proj_weight", [&got.w_q.weight[..], &got.w_k.weight, &got.w_v.weight].concat()));
    found.extend([("q_proj_weight", got.w_q.weight), ("k_proj_weight", got.w_k.weight), ("v_proj_weight", got.w_v.weight)]);
    found.push(("out_proj.weight", got.w_o.weight));
    let (bias_k, bias_v) = got.bias_kv.unwrap_or_default();
    found.extend([("bias_k", bias_k), ("bias_v", bias_v)]);
    if let Some(d_bias) = got.bias {
        for name in ["key_padding_mask", "attn_mask"] {
            let Some(mask) = file.optional(name) else { continue };
            let place = mask_place(file, name, problem.dims.scores_shape(), tokens)?;
            let mut sum = vec![0.0; mask.shape.iter().product()];
            d_bias.iter().enumerate().filter_map(|(at, x)| Some((place(at)?, x))).for_each(|(at, x)| sum[at] += x);
            found.push((name, sum));
        }
    }
    let given = |(name, values): (&str, Vec<f32>)| Some(given(&format!("d{name}"), &file.optional(name)?.shape, values));
    Ok(found.into_iter().filter_map(given).collect())
}
