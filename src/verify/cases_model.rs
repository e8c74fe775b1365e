//! Operations of models: attention with projections around it in `bert_attention` and `mha`, layers in `sdpa_layers`.
//!
//! Projections are plain f64 sums, so that only the attention is under test; `bert_layer` tests an engine's own layer.

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::layer::{Linear, MultiHead};
use crate::numbers::HostVec;
use crate::problem::{AttentionFn, BroadcastShape, Dims, Inputs, Problem, Returns};
use crate::verify::case::Data;
use crate::verify::case_file::{CaseFile, FileData};
use crate::verify::cases::{Given, asked_for};

/// Runs the attention of each layer of a model: q<i>, k<i>, v<i>.
pub(crate) fn sdpa_layers(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let mut given = Vec::new();
    for layer in (0..).take_while(|&layer: &usize| layer < 64).filter(|layer| file.optional(&format!("q{layer}")).is_some()) {
        let name = |tensor: &str| format!("{tensor}{layer}");
        let [batch, heads, seq_len, head_dim] = file.shape(&name("q"))?;
        let mut problem = Problem::new(Dims::self_attention(batch, heads, seq_len, head_dim));
        problem.scale = file.attr("scale")?;
        let mut data = Data::new(file.floats(&name("q"))?, file.floats(&name("k"))?, file.floats(&name("v"))?);
        if let Some(keep) = file.optional("key_keep") {
            let FileData::Bool(keep) = &keep.data else { return Err(file.error("tensor `in.key_keep` is not boolean")) };
            problem.visibility.mask = Some(BroadcastShape([batch, 1, 1, seq_len]));
            data.mask = keep.clone();
        }
        given.extend(with_weights(problem, &data, attend, [&name("context"), &name("lse"), &name("probs")])?);
    }
    Ok(given)
}

/// Runs an attention with lse and weights, and names the three results.
fn with_weights(mut problem: Problem, data: &Data, attend: &AttentionFn<'_>, names: [&str; 3]) -> Result<[Given; 3]> {
    problem.want = Returns { lse: true, weights: true, ..Returns::default() };
    let outputs = attend(&problem, &data.inputs())?;
    let d = problem.dims;
    let scores = d.scores_shape();
    Ok([
        given(names[0], &[d.batch, d.num_heads, d.seq_len_q, d.head_dim_v], outputs.output.into_f32()),
        given(names[1], &scores[..3], asked_for(outputs.lse, "lse")?),
        given(names[2], &scores, asked_for(outputs.weights, "weights")?),
    ])
}

pub(super) fn given(name: &str, shape: &[usize], values: Vec<f32>) -> Given {
    Given { name: name.into(), shape: shape.to_vec(), values }
}

/// Attention block of BERT: projections, attention, output projection, residual and layer norm.
pub(crate) fn bert_attention(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let block = BertBlock::read(file)?;
    let BertBlock { batch, seq_len, width, heads, .. } = block;
    let mut outputs = Vec::new();
    for name in ["q", "k", "v"] {
        let projected = linear(file, &block.hidden, width, &format!("w{name}"), 0..width, Some((&format!("b{name}"), 0)))?;
        outputs.push(given(name, &[batch, heads, seq_len, width / heads], split_heads(&projected, batch, seq_len, heads)));
    }
    let mut problem = Problem::new(Dims::self_attention(batch, heads, seq_len, width / heads));
    problem.scale = file.attr("scale")?;
    let stored = |at: usize| HostVec::F32(outputs[at].values.clone());
    let data = Data::new(stored(0), stored(1), stored(2));
    outputs.extend(with_weights(problem, &data, attend, ["context", "lse", "probs"])?);
    let context = merge_heads(&outputs[3].values, batch, seq_len, heads);
    let projected = linear(file, &context, width, "wo", 0..width, Some(("bo", 0)))?;
    outputs.extend(block.end(file, projected)?);
    Ok(outputs)
}

/// Attention block of BERT on the engine's own multi-head layer, with the file's weights.
pub(crate) fn bert_layer(file: &CaseFile, engine: &Engine) -> Result<Vec<Given>> {
    let block = BertBlock::read(file)?;
    let BertBlock { batch, seq_len, width, heads, .. } = block;
    let part = |name: &str| Linear::new(file.f32s(&format!("w{name}"))?, Some(file.f32s(&format!("b{name}"))?), width);
    let layer = MultiHead::new(part("q")?, part("k")?, part("v")?, part("o")?, heads, heads)?;
    let mut problem = layer.problem(batch, seq_len, seq_len);
    problem.scale = file.attr("scale")?;
    problem.want = Returns { lse: true, weights: true, ..Returns::default() };
    let inputs = Inputs::new(&block.hidden, &block.hidden, &block.hidden);
    let got = layer.forward_with_steps(engine, &problem, &inputs)?;
    let steps = got.steps.ok_or_else(|| Error::invalid("steps", "were asked for and are not there"))?;
    let rows = [batch, heads, seq_len, width / heads];
    let per_head = |name, data: &[f32]| given(name, &rows, split_heads(data, batch, seq_len, heads));
    let mut outputs = vec![
        per_head("q", &steps.query),
        per_head("k", &steps.key),
        per_head("v", &steps.value),
        per_head("context", &steps.context),
        given("lse", &rows[..3], asked_for(got.lse, "lse")?),
        given("probs", &problem.dims.scores_shape(), asked_for(got.weights, "weights")?),
    ];
    outputs.extend(block.end(file, got.output)?);
    Ok(outputs)
}

/// Sizes and input of a BERT block.
struct BertBlock {
    batch: usize,
    seq_len: usize,
    width: usize,
    heads: usize,
    hidden: Vec<f32>,
}

impl BertBlock {
    fn read(file: &CaseFile) -> Result<Self> {
        let [batch, seq_len, width] = file.shape("hidden")?;
        let heads = heads_of(file, width)?;
        let hidden = file.f32s("hidden")?;
        if hidden.is_empty() {
            return Err(file.error("has an empty tensor `in.hidden`"));
        }
        Ok(Self { batch, seq_len, width, heads, hidden })
    }

    /// Returns `proj`, and `block_out` = LayerNorm(hidden + proj).
    fn end(&self, file: &CaseFile, projected: Vec<f32>) -> Result<[Given; 2]> {
        let (weight, bias) = (file.f32s("ln_weight")?, file.f32s("ln_bias")?);
        let epsilon: f32 = file.required_attr("layer_norm_eps")?;
        if weight.len() != self.width || bias.len() != self.width {
            return Err(file.error(format!("its layer norm is not of width {}", self.width)));
        }
        let mut block_out = Vec::with_capacity(projected.len());
        for (x, y) in self.hidden.chunks(self.width).zip(projected.chunks(self.width)) {
            let sum: Vec<f64> = x.iter().zip(y).map(|(&x, &y)| f64::from(x) + f64::from(y)).collect();
            let mean = sum.iter().sum::<f64>() / self.width as f64;
            let variance = sum.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / self.width as f64;
            let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
            let normed = sum.iter().zip(&weight).zip(&bias).map(|((x, &w), &b)| ((x - mean) * scale * f64::from(w) + f64::from(b)) as f32);
            block_out.extend(normed);
        }
        let shape = [self.batch, self.seq_len, self.width];
        Ok([given("proj", &shape, projected), given("block_out", &shape, block_out)])
    }
}

/// Number of heads, which must divide `width`.
fn heads_of(file: &CaseFile, width: usize) -> Result<usize> {
    let heads: usize = file.required_attr("num_heads")?;
    if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
        return Err(file.error(format!("width {width} does not divide into {heads} heads")));
    }
    Ok(heads)
}

/// PyTorch's nn.MultiheadAttention.
pub(crate) fn mha(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let width: usize = file.required_attr("embed_dim")?;
    let heads = heads_of(file, width)?;
    let (query, batch, seq_len_q, _) = batch_first(file, "query")?;
    let own = |name: &'static str| if file.optional(name).is_some() { name } else { "query" };
    let (key, _, tokens, key_width) = batch_first(file, own("key"))?;
    let (value, .., value_width) = batch_first(file, own("value"))?;

    if batch == 0 || seq_len_q == 0 || tokens == 0 {
        return Err(file.error("has an empty query or key"));
    }

    let mut projected = Vec::new();
    for (at, (x, x_width, name)) in [(&query, width, "q"), (&key, key_width, "k"), (&value, value_width, "v")].into_iter().enumerate() {
        let rows = at * width..(at + 1) * width;
        let bias = file.optional("in_proj_bias").map(|_| ("in_proj_bias", rows.start));
        projected.push(match file.optional("in_proj_weight") {
            Some(_) => linear(file, x, x_width, "in_proj_weight", rows, bias)?,
            None => linear(file, x, x_width, &format!("{name}_proj_weight"), 0..width, bias)?,
        });
    }
    // Number of keys and values appended to those of every item; no mask covers them.
    let appended = usize::from(file.flag("add_bias_kv")?) + usize::from(file.flag("add_zero_attn")?);
    for (name, tensor) in [("bias_k", 1), ("bias_v", 2)] {
        let mut extra = if file.flag("add_bias_kv")? { file.f32s(name)? } else { vec![] };
        extra.resize(appended * width, 0.0);
        let items = projected[tensor].chunks(tokens * width);
        projected[tensor] = items.flat_map(|item| item.iter().chain(&extra).copied().collect::<Vec<f32>>()).collect();
    }
    let seq_len_kv = tokens + appended;
    let dims = Dims { seq_len_q, seq_len_kv, ..Dims::self_attention(batch, heads, 0, width / heads) };
    let mut problem = Problem::new(dims);
    let stored = |at: usize, seq_len| HostVec::F32(split_heads(&projected[at], batch, seq_len, heads));
    let mut data = Data::new(stored(0, seq_len_q), stored(1, seq_len_kv), stored(2, seq_len_kv));
    merge_masks(file, &mut problem, &mut data, tokens)?;
    problem.want.weights = file.expected("attn_weights").is_some();
    let outputs = attend(&problem, &data.inputs())?;

    let context = merge_heads(&outputs.output.into_f32(), batch, seq_len_q, heads);
    let bias = file.optional("out_proj.bias").map(|_| ("out_proj.bias", 0));
    let output = linear(file, &context, width, "out_proj.weight", 0..width, bias)?;
    let unbatched = file.flag("unbatched")?;
    let (shape, output) = match (unbatched, file.flag("batch_first")?) {
        (true, _) => (vec![seq_len_q, width], output),
        (false, true) => (vec![batch, seq_len_q, width], output),
        (false, false) => (vec![seq_len_q, batch, width], swap_first_two(&output, batch, seq_len_q, width)),
    };
    let mut all = vec![given("output", &shape, output)];
    if let Some(weights) = outputs.weights {
        let pairs = seq_len_q * seq_len_kv;
        let (mut shape, mut values) = (vec![batch, heads, seq_len_q, seq_len_kv], weights);
        if file.flag("average_attn_weights")? {
            shape.remove(1);
            let mean = |item: &[f32], at: usize| item.chunks(pairs).map(|head| head[at]).sum::<f32>() / heads as f32;
            values = values.chunks(heads * pairs).flat_map(|item| (0..pairs).map(move |at| mean(item, at))).collect();
        }
        if unbatched {
            shape.remove(0);
        }
        all.push(given("attn_weights", &shape, values));
    }
    Ok(all)
}

/// Merges key_padding_mask [batch, keys] and attn_mask [rows, keys] or [batch * heads, rows, keys], where true is
/// masked, into one mask, where true is visible, and one bias over all heads and rows.
fn merge_masks(file: &CaseFile, problem: &mut Problem, data: &mut Data, tokens: usize) -> Result<()> {
    let shape = problem.dims.scores_shape();
    let pairs = shape.iter().product();
    for name in ["key_padding_mask", "attn_mask"] {
        let Some(tensor) = file.optional(name) else { continue };
        let place = mask_place(file, name, shape, tokens)?;
        if let FileData::Bool(hide) = &tensor.data {
            data.mask.resize(pairs, true);
            problem.visibility.mask = Some(BroadcastShape(shape));
            (0..pairs).for_each(|at| data.mask[at] &= place(at).is_none_or(|from| !hide[from]));
        } else {
            let add = file.f32s(name)?;
            data.bias.resize(pairs, 0.0);
            problem.bias = Some(BroadcastShape(shape));
            (0..pairs).for_each(|at| data.bias[at] += place(at).map_or(0.0, |from| add[from]));
        }
    }
    Ok(())
}

/// Returns a map from the index of a pair in `shape` to its index in the mask `name`; `None` for appended keys.
pub(super) fn mask_place(file: &CaseFile, name: &str, shape: [usize; 4], tokens: usize) -> Result<impl Fn(usize) -> Option<usize>> {
    let [batch, heads, rows, keys] = shape;
    let tensor = file.input(name)?;
    let whole = match (name, tensor.shape.len()) {
        ("attn_mask", 3) => [batch, heads, rows, tokens],
        ("attn_mask", _) => [1, 1, rows, tokens],
        _ => [batch, 1, 1, tokens],
    };
    if tensor.shape.iter().product::<usize>() != whole.iter().product::<usize>() {
        return Err(file.error(format!("tensor `in.{name}` has shape {:?}, not {whole:?}", tensor.shape)));
    }
    let strides = BroadcastShape(whole).strides();
    Ok(move |at: usize| {
        let (b, h, i, j) = (at / (heads * rows * keys), at / (rows * keys) % heads, at / keys % rows, at % keys);
        (j < tokens).then(|| b * strides[0] + h * strides[1] + i * strides[2] + j * strides[3])
    })
}

/// Reads a tensor as [batch, seq, width], with its sizes.
pub(super) fn batch_first(file: &CaseFile, name: &str) -> Result<(Vec<f32>, usize, usize, usize)> {
    let data = file.f32s(name)?;
    if file.flag("unbatched")? {
        let [seq, width] = file.shape(name)?;
        return Ok((data, 1, seq, width));
    }
    let [first, second, width] = file.shape(name)?;
    if file.flag("batch_first")? {
        return Ok((data, first, second, width));
    }
    Ok((swap_first_two(&data, first, second, width), second, first, width))
}

/// Transposes [first, second, width] to [second, first, width].
pub(super) fn swap_first_two(data: &[f32], first: usize, second: usize, width: usize) -> Vec<f32> {
    (0..second).flat_map(|s| (0..first).flat_map(move |f| data[(f * second + s) * width..][..width].iter().copied())).collect()
}

/// Transposes [batch, seq, heads * dim] to [batch, heads, seq, dim].
fn split_heads(data: &[f32], batch: usize, seq: usize, heads: usize) -> Vec<f32> {
    let item = data.len() / batch;
    data.chunks(item.max(1)).flat_map(|item| swap_first_two(item, seq, heads, item.len() / (seq * heads))).collect()
}

/// Transposes [batch, heads, seq, dim] to [batch, seq, heads * dim].
fn merge_heads(data: &[f32], batch: usize, seq: usize, heads: usize) -> Vec<f32> {
    split_heads(data, batch, heads, seq)
}

/// `x W^T + b`, with rows `rows` of the weight tensor [.., in] and as many elements of the bias from an index on.
fn linear(
    file: &CaseFile,
    x: &[f32],
    x_width: usize,
    weight: &str,
    rows: std::ops::Range<usize>,
    bias: Option<(&str, usize)>,
) -> Result<Vec<f32>> {
    let matrix = file.f32s(weight)?;
    let (offsets, first) = match bias {
        Some((name, first)) => (file.f32s(name)?, first),
        None => (vec![0.0; rows.len()], 0),
    };
    if matrix.len() < rows.end * x_width || offsets.len() < first + rows.len() || x_width == 0 {
        return Err(file.error(format!("tensor `in.{weight}` or its bias does not fit an input of width {x_width}")));
    }
    let project = |x: &[f32], row: usize| {
        let weights = &matrix[(rows.start + row) * x_width..][..x_width];
        let sum: f64 = x.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
        (sum + f64::from(offsets[first + row])) as f32
    };
    Ok(x.chunks(x_width).flat_map(|x| (0..rows.len()).map(|row| project(x, row)).collect::<Vec<_>>()).collect())
}
