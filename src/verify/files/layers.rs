//! Operations with projections around the attention: `mha`, PyTorch's nn.MultiheadAttention, and `bert_attention`.

use super::case_file::{CaseFile, FileData, Given, given};
use super::runner::Runner;
use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use crate::layer::{
    Appended, LayerGradients, LayerOutputs, LinearGradients, MultiHead, Naming, TorchMask, average_heads, merge_torch_masks,
};
use crate::numbers::{DType, HostVec};
use crate::problem::{Backend, Inputs, Layout, Problem, TensorSpec, gather};

/// Runs a layer on the runner's engine. Without an engine, the CPU path projects and only the attention is the
/// candidate's. All outputs have their intermediate results.
fn forward(layer: &MultiHead, runner: &Runner<'_>, problem: &Problem, inputs: &Inputs<'_>) -> Result<LayerOutputs> {
    if let Some(engine) = runner.engine {
        return layer.forward_with_steps(engine, problem, inputs);
    }
    let cpu = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
    let mut outputs = layer.forward_with_steps(&cpu, problem, inputs)?;
    if let Some(steps) = &mut outputs.steps {
        let (query, key, value) = ((&steps.query).into(), (&steps.key).into(), (&steps.value).into());
        let attention = (runner.attend)(problem, &Inputs { query, key, value, ..*inputs })?;
        steps.context = attention.output.into_f32();
        outputs.output = layer.output().forward(&steps.context)?;
        (outputs.lse, outputs.weights) = (attention.lse, attention.weights);
    }
    Ok(outputs)
}

/// Attention block of BERT: projections, attention, output projection, residual and layer norm.
pub(super) fn bert_attention(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
    let [batch, seq_len, width] = file.shape("hidden")?;
    let hidden = file.f32s("hidden")?;
    let layer = file.layer(&Naming::Plain { prefix: "in.".into() })?;
    let problem = Problem { scale: file.attr("scale")?, ..layer.problem(batch, seq_len, seq_len).with_lse().with_weights() };
    let got = forward(&layer, runner, &problem, &Inputs::new(&hidden, &hidden, &hidden))?;
    let d = problem.dims;
    let mut all = Vec::new();
    if let Some(steps) = got.steps {
        let (qk, vo) = (d.head_dim, d.head_dim_v);
        for (name, data, dim) in [("q", steps.query, qk), ("k", steps.key, qk), ("v", steps.value, vo), ("context", steps.context, vo)] {
            let shape = [batch, d.num_heads, seq_len, dim];
            all.push(given(name, &shape, heads_first(&data, shape)));
        }
    }
    all.extend(got.lse.map(|lse| given("lse", &d.scores_shape()[..3], lse)));
    all.extend(got.weights.map(|weights| given("probs", &d.scores_shape(), weights)));
    all.push(given("block_out", &[batch, seq_len, width], residual_norm(file, &hidden, &got.output, width)?));
    all.push(given("proj", &[batch, seq_len, width], got.output));
    Ok(all)
}

/// Computes LayerNorm(x + y) over rows of `width` elements.
fn residual_norm(file: &CaseFile, x: &[f32], y: &[f32], width: usize) -> Result<Vec<f32>> {
    let (weight, bias) = (file.f32s("ln_weight")?, file.f32s("ln_bias")?);
    let epsilon: f64 = file.required_attr::<f32>("layer_norm_eps")?.into();
    if weight.len() != width || bias.len() != width {
        return Err(file.error(format!("its layer norm is not of width {width}")));
    }
    let norm = |(x, y): (&[f32], &[f32])| {
        let sum: Vec<f64> = x.iter().zip(y).map(|(&x, &y)| f64::from(x) + f64::from(y)).collect();
        let mean = sum.iter().sum::<f64>() / width as f64;
        let variance = sum.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + epsilon).sqrt();
        let element = |((x, &w), &b): ((&f64, &f32), &f32)| ((x - mean) * scale * f64::from(w) + f64::from(b)) as f32;
        sum.iter().zip(&weight).zip(&bias).map(element).collect::<Vec<_>>()
    };
    Ok(x.chunks(width).zip(y.chunks(width)).flat_map(norm).collect())
}

/// PyTorch's nn.MultiheadAttention, and its gradients if the file has a gradient of the output.
pub(super) fn mha(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
    let layer = file.layer(&Naming::Torch { prefix: "in.".into() })?;
    let appended = Appended { zero: file.flag("add_zero_attn")?, ..layer.appended().clone() };
    if appended.bias_kv.is_some() != file.flag("add_bias_kv")? {
        return Err(file.error("its attribute `add_bias_kv` and its tensors `in.bias_k`, `in.bias_v` contradict each other"));
    }
    let (count, layer) = (appended.count(), layer.with_appended(appended)?);
    // An absent key or value is the query, as in self-attention.
    let sources = ["query", "key", "value"].map(|name| if file.has(name) { name } else { "query" });
    let [(query, batch, seq_len_q), (key, _, tokens), (value, ..)] =
        [batch_first(file, sources[0])?, batch_first(file, sources[1])?, batch_first(file, sources[2])?];
    let mut problem = layer.problem(batch, seq_len_q, tokens);
    problem.want.weights = file.expects("attn_weights");
    let padding = file.optional("key_padding_mask", torch_mask)?;
    let masks = merge_torch_masks(&problem.dims, count, padding, file.optional("attn_mask", torch_mask)?)?;
    let (mask, bias);
    (problem.visibility.mask, mask) = masks.mask.unzip();
    (problem.bias, bias) = masks.bias.unzip();
    let (mask, bias) = (mask.unwrap_or_default(), bias.unwrap_or_default());
    let inputs = Inputs { mask: &mask, bias: &bias, ..Inputs::new(&query, &key, &value) };
    let outputs = forward(&layer, runner, &problem, &inputs)?;

    let (shape, output) = file_order(file, &outputs.output, [batch, seq_len_q, layer.output().out_features()])?;
    let mut all = vec![given("output", &shape, output)];
    if let Some(weights) = &outputs.weights {
        let [batch, heads, rows, keys] = problem.dims.scores_shape();
        let (shape, weights) = match file.flag("average_attn_weights")? {
            true => (vec![batch, rows, keys], average_heads(weights, &problem.dims)?),
            false => (vec![batch, heads, rows, keys], weights.clone()),
        };
        all.push(given("attn_weights", &shape[usize::from(file.flag("unbatched")?)..], weights));
    }
    if let (Some(engine), true) = (runner.engine, file.has("doutput")) {
        let (d_output, ..) = batch_first(file, "doutput")?;
        let got = layer.backward(engine, &problem, &inputs, &outputs, &d_output)?;
        all.extend(gradients(file, got, sources, &problem, [seq_len_q, tokens, tokens])?);
    }
    Ok(all)
}

/// Mask in which true is masked, or that is added.
fn torch_mask<'a>(file: &'a CaseFile, name: &str) -> Result<TorchMask<'a>> {
    match &file.input(name)?.data {
        FileData::Bool(mask) => Ok(TorchMask::Bool(mask)),
        FileData::Float(HostVec::F32(bias)) => Ok(TorchMask::Float(bias)),
        _ => Err(file.error(format!("tensor `in.{name}` is neither boolean nor f32"))),
    }
}

/// Names the gradients and returns them in the shapes of the file. `rows` are those of query, key and value.
fn gradients(file: &CaseFile, got: LayerGradients, sources: [&str; 3], problem: &Problem, rows: [usize; 3]) -> Result<Vec<Given>> {
    let mut found: Vec<(&str, Vec<f32>)> = Vec::new();
    let batch = problem.dims.batch;
    for ((name, rows), gradient) in sources.into_iter().zip(rows).zip([got.query, got.key, got.value]) {
        let width = gradient.len() / (batch * rows).max(1);
        let (_, gradient) = file_order(file, &gradient, [batch, rows, width])?;
        // An input that is read more than once gets the sum.
        match found.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => sum.iter_mut().zip(&gradient).for_each(|(x, more)| *x += more),
            None => found.push((name, gradient)),
        }
    }
    let bias = |linear: &LinearGradients| linear.bias.clone().unwrap_or_default();
    let (bias_k, bias_v) = got.bias_kv.unwrap_or_default();
    found.extend([
        ("in_proj_bias", [bias(&got.w_q), bias(&got.w_k), bias(&got.w_v)].concat()),
        ("in_proj_weight", [&got.w_q.weight[..], &got.w_k.weight, &got.w_v.weight].concat()),
        ("q_proj_weight", got.w_q.weight),
        ("k_proj_weight", got.w_k.weight),
        ("v_proj_weight", got.w_v.weight),
        ("out_proj.bias", bias(&got.w_o)),
        ("out_proj.weight", got.w_o.weight),
        ("bias_k", bias_k),
        ("bias_v", bias_v),
    ]);
    if let (Some(d_bias), Some(name)) = (got.bias, ["key_padding_mask", "attn_mask"].into_iter().find(|name| file.floats(name).is_ok())) {
        // The bias is this mask, but for the appended keys, which no mask covers.
        found.push((name, d_bias.chunks(problem.dims.seq_len_kv).flat_map(|row| &row[..rows[1]]).copied().collect()));
    }
    let like = |(name, values): (&str, Vec<f32>)| Some(given(&format!("d{name}"), &file.input(name).ok()?.shape, values));
    Ok(found.into_iter().filter_map(like).collect())
}

/// Reads a tensor as [batch, seq, width], with the first two sizes.
fn batch_first(file: &CaseFile, name: &str) -> Result<(Vec<f32>, usize, usize)> {
    let data = file.f32s(name)?;
    Ok(match (file.flag("unbatched")?, file.flag("batch_first")?) {
        (true, _) => (data, 1, file.shape::<2>(name)?[0]),
        (false, true) => (data, file.shape::<3>(name)?[0], file.shape::<3>(name)?[1]),
        (false, false) => {
            let [seq, batch, width] = file.shape(name)?;
            (heads_first(&data, [1, batch, seq, width]), batch, seq)
        }
    })
}

/// Returns [batch, seq, width] data in the order of the file's inputs, with its shape.
fn file_order(file: &CaseFile, data: &[f32], [batch, seq, width]: [usize; 3]) -> Result<(Vec<usize>, Vec<f32>)> {
    Ok(match (file.flag("unbatched")?, file.flag("batch_first")?) {
        (true, _) => (vec![seq, width], data.to_vec()),
        (false, true) => (vec![batch, seq, width], data.to_vec()),
        (false, false) => (vec![seq, batch, width], heads_first(data, [1, seq, batch, width])),
    })
}

/// Transposes [batch, seq, heads, dim] to `shape`, [batch, heads, seq, dim].
fn heads_first(data: &[f32], shape: [usize; 4]) -> Vec<f32> {
    gather(data.into(), &TensorSpec::new(DType::F32, Layout::Bshd), shape)
}
