//! The gradients that a case file expects: of an attention by `in.dout`, of a multi-head layer by `in.doutput`.

use std::cell::RefCell;

use crate::layer::{LayerGradients, Linear, MultiHead};
use crate::verify::case_file::CaseFile;
use crate::verify::cases::Given;
use crate::verify::cases_model::{batch_first, given, swap_first_two};
use crate::{Attend, BackwardInputs, DType, Engine, HostVec, Inputs, Problem, Result, Want, WantGradients};

/// Runs `op` on `attend`, and the gradients of the attention that it asks for last on `engine`.
pub(crate) fn with_gradients(
    file: &CaseFile,
    engine: &Engine,
    attend: &Attend<'_>,
    op: impl Fn(&CaseFile, &Attend<'_>) -> Result<Vec<Given>>,
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

/// dq, dk, dv, and those of a float mask, a bias of every head, a table of relative biases and sinks.
fn attention(file: &CaseFile, engine: &Engine, problem: &Problem, inputs: &Inputs<'_>) -> Result<Vec<Given>> {
    let problem = &Problem { want: Want::default(), ..*problem };
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

/// The gradients of nn.MultiheadAttention, by the engine's own multi-head layer. Masks and biases are those of the file's attention.
fn layer(file: &CaseFile, engine: &Engine, attention: &Problem, inputs: &Inputs<'_>) -> Result<Vec<Given>> {
    let width: usize = file.required_attr("embed_dim")?;
    let self_attention = file.optional("key").is_none();
    let own = |name: &'static str| if self_attention { "query" } else { name };
    let (query, batch, seq_len_q, _) = batch_first(file, "query")?;
    let (key, _, tokens, _) = batch_first(file, own("key"))?;
    let (value, ..) = batch_first(file, own("value"))?;
    let (d_output, ..) = batch_first(file, "doutput")?;
    let (weights, biases) = (file.f32s("in_proj_weight")?, file.f32s("in_proj_bias")?);
    if weights.len() != 3 * width * width || biases.len() != 3 * width {
        return Err(file.error("its in_proj_weight is not of three square projections"));
    }
    let part = |at: usize| {
        let bias = biases[at * width..][..width].to_vec();
        Linear::new(weights[at * width * width..][..width * width].to_vec(), Some(bias), width)
    };
    let output = Linear::new(file.f32s("out_proj.weight")?, Some(file.f32s("out_proj.bias")?), width)?;
    let heads = attention.dims.num_heads;
    let layer = MultiHead::new(part(0)?, part(1)?, part(2)?, output, heads, heads)?;
    let mut problem = layer.problem(batch, seq_len_q, tokens);
    (problem.visibility, problem.bias) = (attention.visibility, attention.bias);
    let inputs = Inputs { mask: inputs.mask, bias: inputs.bias, ..Inputs::new(&query, &key, &value) };
    let forward = layer.forward_with_steps(engine, &problem, &inputs)?;
    let got = layer.backward(engine, &problem, &inputs, &forward, &d_output)?;
    Ok(layer_gradients(got, self_attention, width, [batch, seq_len_q, tokens]))
}

/// In the names and shapes of the file: [seq, batch, width].
fn layer_gradients(got: LayerGradients, self_attention: bool, width: usize, [batch, seq_len_q, tokens]: [usize; 3]) -> Vec<Given> {
    let LayerGradients { mut query, key, value, w_q, w_k, w_v, w_o, .. } = got;
    let seq_first = |name: &str, data: &[f32], seq| given(name, &[seq, batch, width], swap_first_two(data, batch, seq, width));
    if self_attention {
        query.iter_mut().zip(&key).zip(&value).for_each(|((x, key), value)| *x += key + value);
    }
    let mut all = vec![seq_first("dquery", &query, seq_len_q)];
    if !self_attention {
        all.push(seq_first("dkey", &key, tokens));
        all.push(seq_first("dvalue", &value, tokens));
    }
    let bias = |bias: Option<Vec<f32>>| bias.unwrap_or_default();
    all.push(given("din_proj_weight", &[3 * width, width], [w_q.weight, w_k.weight, w_v.weight].concat()));
    all.push(given("din_proj_bias", &[3 * width], [bias(w_q.bias), bias(w_k.bias), bias(w_v.bias)].concat()));
    all.push(given("dout_proj.weight", &[width, width], w_o.weight));
    all.push(given("dout_proj.bias", &[width], bias(w_o.bias)));
    all
}
