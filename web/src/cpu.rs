//! The CPU path, and what needs no device.

use js_sys::{Float32Array, Function, Object, Uint8Array};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wgpu_attention::{BroadcastShape, DType, Dims, Hadamard, HostVec, Inputs, Problem, Progress, Returns, ScoreStage, TensorSpec, cpu};

use crate::errors::{Answer, Thrown, invalid, to_js};
use crate::object::{count, elements, set, to_array};
use crate::progress::progress;
use crate::request::{OutputGradients, Request, Tensors, wanted};
use crate::stored::Stored;

/// Attention of a request: `{ output, lse, weights, keySums }`.
#[wasm_bindgen]
pub fn attention(request: &JsValue, watch: Option<Function>) -> Result<Object, Thrown> {
    let (data, request) = (request, Request::read(request)?);
    let tensors = Tensors::read(data, &request.problem)?;
    let mut watch = progress(watch);
    let outputs = cpu::tiled::attention(&request.problem, &tensors.inputs(&request), &mut Progress::new(&mut watch)).map_err(to_js)?;
    let answer = Object::new();
    set(&answer, "output", &to_array(outputs.output));
    for (name, numbers) in [("lse", outputs.lse), ("weights", outputs.weights), ("keySums", outputs.key_sums)] {
        numbers.into_iter().for_each(|numbers| set(&answer, name, &Float32Array::from(&numbers[..])));
    }
    Ok(answer)
}

/// Attention of a request whose keys and values are f32, rotated and rounded to `stored`, as a cache stores them: `{ output }`.
#[wasm_bindgen]
pub fn decode(request: &JsValue, stored: JsValue) -> Result<Object, Thrown> {
    let (data, request) = (request, Request::read(request)?);
    let stored = Stored::read(Some(stored))?;
    let mut problem = request.problem.clone().hadamard(stored.hadamard, stored.hadamard);
    (problem.key.dtype, problem.value.dtype) = (stored.key, stored.value);
    problem.check().map_err(to_js)?;
    let rotation = Hadamard::of(problem.dims.head_dim).filter(|_| stored.hadamard);
    let rounded = |name, dtype| {
        let mut rows = elements(data, name, DType::F32)?.into_f32();
        rotation.into_iter().for_each(|rotation| rotation.rotate(&mut rows));
        Ok::<_, Thrown>(HostVec::from_f32(dtype, &rows))
    };
    let (query, key, value) = (elements(data, "query", DType::F32)?, rounded("key", stored.key)?, rounded("value", stored.value)?);
    let inputs = Inputs { query: query.as_slice(), key: key.as_slice(), value: value.as_slice(), ..request.vectors() };
    let outputs = cpu::tiled::attention(&problem, &inputs, &mut Progress::default()).map_err(to_js)?;
    let answer = Object::new();
    set(&answer, "output", &to_array(outputs.output));
    Ok(answer)
}

/// Gradients of a request: `{ query, key, value, bias, sinks }`.
#[wasm_bindgen]
pub fn backward(request: &JsValue, watch: Option<Function>) -> Result<Object, Thrown> {
    let (data, request) = (request, Request::read(request)?);
    let (tensors, want, gradients) =
        (Tensors::read(data, &request.problem)?, wanted(data)?, OutputGradients::read(data, &request.problem)?);
    let problem = Problem { want: Returns { stats: true, ..Returns::default() }, ..request.problem.clone() };
    let inputs = &tensors.inputs(&request);
    let forward = cpu::tiled::attention(&problem, inputs, &mut Progress::default()).map_err(to_js)?;
    let stats = forward.stats.unwrap_or_default();
    let mut watch = progress(watch);
    let backward = gradients.inputs(&forward.output, &stats);
    let gradients = cpu::backward::attention(&problem, inputs, &backward, &want, &mut Progress::new(&mut watch)).map_err(to_js)?;
    let answer = Object::new();
    for (name, elements) in [("query", gradients.query), ("key", gradients.key), ("value", gradients.value)] {
        elements.into_iter().for_each(|elements| set(&answer, name, &to_array(elements)));
    }
    for (name, numbers) in [("bias", gradients.bias), ("sinks", gradients.sinks)] {
        numbers.into_iter().for_each(|numbers| set(&answer, name, &Float32Array::from(&numbers[..])));
    }
    Ok(answer)
}

/// Description of a request's problem, of one head: `{ summary, visible, density, flops }`.
#[wasm_bindgen]
pub fn explain(request: &JsValue) -> Result<Object, Thrown> {
    let (data, request) = (request, Request::read(request)?);
    let problem = &request.problem;
    let [item, head] = place(data, problem)?;
    let visible = visible(&Tensors::options(data)?.inputs(&request), problem, item, head)?;
    let shown = visible.iter().filter(|&&byte| byte != 0).count();
    let density = if visible.is_empty() { 0.0 } else { shown as f64 / visible.len() as f64 };
    let answer = Object::new();
    set(&answer, "summary", &cpu::tiled::summary(problem).into());
    set(&answer, "visible", &Uint8Array::from(&visible[..]));
    set(&answer, "density", &density.into());
    set(&answer, "flops", &(density * problem.dims.flops()).into());
    Ok(answer)
}

/// Item and head that a request names by `item` and `head`.
fn place(request: &JsValue, problem: &Problem) -> Answer<[usize; 2]> {
    let below = |name, end: usize| match count(request, name)?.unwrap_or(0) {
        at if at < end.max(1) => Ok(at),
        at => Err(invalid(name, &format!("is {at} of {end}"), "count from 0")),
    };
    Ok([below("item", problem.dims.batch)?, below("head", problem.dims.num_heads)?])
}

/// Visible pairs of one head, a byte each: those with a score in the CPU path, of queries and keys that are 0.
fn visible(inputs: &Inputs<'_>, problem: &Problem, item: usize, head: usize) -> Answer<Vec<u8>> {
    // Users' terms know their head, so that all have to be there.
    let all = !problem.user_terms.is_empty() && [item, head] != [0, 0];
    let [batch, num_heads, num_kv_heads] =
        if all { [problem.dims.batch, problem.dims.num_heads, problem.dims.num_kv_heads] } else { [1; 3] };
    let dims = Dims { batch, num_heads, num_kv_heads, head_dim: 1, head_dim_v: 1, ..problem.dims };
    let shown = |shape: BroadcastShape| if all { shape } else { BroadcastShape([1, 1, shape.0[2], shape.0[3]]) };
    let mut one = Problem { dims, bias: problem.bias.map(shown), sinks: false, ..problem.clone() };
    one.visibility.mask = problem.visibility.mask.map(shown);
    let plain = TensorSpec::default();
    (one.query, one.key, one.value, one.output) = (plain, plain, plain, plain);
    one.want = Returns { scores: Some(ScoreStage::Masked), ..Returns::default() };
    let zeros = |len: usize| HostVec::F32(vec![0.0; len]);
    let (query, key) = (zeros(batch * num_heads * dims.seq_len_q), zeros(batch * num_kv_heads * dims.seq_len_kv));
    // Elements of a broadcast tensor that the problem reads.
    let elements = |shape: Option<BroadcastShape>| match shape {
        None => 0..0,
        Some(shape) if all => 0..shape.elements().unwrap_or(0),
        Some(BroadcastShape([items, heads, rows, keys])) => {
            let first = (item.min(items - 1) * heads + head.min(heads - 1)) * rows * keys;
            first..first + rows * keys
        }
    };
    let small = |len: usize, at: usize| if all || len == 0 { 0..len } else { at..at + 1 };
    let inputs = Inputs {
        query: query.as_slice(),
        key: key.as_slice(),
        value: key.as_slice(),
        mask: &inputs.mask[elements(problem.visibility.mask)],
        bias: &inputs.bias[elements(problem.bias)],
        alibi_slopes: &inputs.alibi_slopes[small(inputs.alibi_slopes.len(), head)],
        sinks: &[],
        kv_lengths: &inputs.kv_lengths[small(inputs.kv_lengths.len(), item)],
        ..*inputs
    };
    let outputs = cpu::tiled::attention(&one, &inputs, &mut Progress::default()).map_err(to_js)?;
    let pairs = dims.seq_len_q * dims.seq_len_kv;
    let first = if all { (item * num_heads + head) * pairs } else { 0 };
    Ok(outputs.scores.unwrap_or_default().into_iter().skip(first).take(pairs).map(|score| u8::from(score != f32::NEG_INFINITY)).collect())
}
