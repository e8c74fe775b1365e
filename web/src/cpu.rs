//! The CPU path, and what needs no device.

use std::ops::ControlFlow;

use js_sys::{Float32Array, Function, Object, Uint8Array};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wgpu_attention::plan::Plan;
use wgpu_attention::{Algorithm, BroadcastShape, DType, Dims, HostVec, Inputs, Problem, Progress, Returns, ScoreStage, TensorSpec, cpu};

use crate::device::caps;
use crate::errors::{Answer, Thrown, to_js};
use crate::object::{elements, set, to_array};
use crate::request::{OutputGradients, Request, Tensors, wanted};

/// Calls `watch`, a function of the completed share, if there is one.
pub(crate) fn progress(watch: Option<Function>) -> impl FnMut(f64) -> ControlFlow<()> {
    move |done| {
        if let Some(watch) = &watch {
            // Nobody awaits what it throws.
            let _ = watch.call1(&JsValue::UNDEFINED, &done.into());
        }
        ControlFlow::Continue(())
    }
}

/// Attention of a request: `{ output, lse, weights }`.
#[wasm_bindgen]
pub fn attention(request: &JsValue, watch: Option<Function>) -> Result<Object, Thrown> {
    let (data, request) = (request, Request::read(request)?);
    let tensors = Tensors::read(data, &request.problem)?;
    let mut watch = progress(watch);
    let outputs = cpu::tiled::attention(&request.problem, &tensors.inputs(&request), &mut Progress::new(&mut watch)).map_err(to_js)?;
    let answer = Object::new();
    set(&answer, "output", &to_array(outputs.output));
    for (name, numbers) in [("lse", outputs.lse), ("weights", outputs.weights)] {
        numbers.into_iter().for_each(|numbers| set(&answer, name, &Float32Array::from(&numbers[..])));
    }
    Ok(answer)
}

/// Attention of a request whose keys and values are f32 and rounded to `stored`, as a cache stores them: `{ output }`.
#[wasm_bindgen]
pub fn decode(request: &JsValue, stored: &str) -> Result<Object, Thrown> {
    let (data, request) = (request, Request::read(request)?);
    let stored: DType = stored.parse().map_err(to_js)?;
    let rounded = |name| Ok::<_, Thrown>(HostVec::from_f32(stored, &elements(data, name, DType::F32)?.into_f32()));
    let (query, key, value) = (elements(data, "query", DType::F32)?, rounded("key")?, rounded("value")?);
    let mut problem = request.problem.clone();
    (problem.key.dtype, problem.value.dtype) = (stored, stored);
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

/// Description of a request's problem, on a device if one is described: `{ summary, visible, density, flops }`.
#[wasm_bindgen]
pub fn explain(request: &JsValue, described: &JsValue) -> Result<Object, Thrown> {
    let (data, request) = (request, Request::read(request)?);
    let problem = &request.problem;
    let summary = if described.is_undefined() {
        cpu::tiled::summary(problem)
    } else {
        Plan::new(problem, &caps(described)?, Algorithm::Auto).map_err(to_js)?.summary().to_string()
    };
    let visible = visible(&Tensors::options(data)?.inputs(&request), problem)?;
    let count = visible.iter().filter(|&&byte| byte != 0).count();
    let density = if visible.is_empty() { 0.0 } else { count as f64 / visible.len() as f64 };
    let answer = Object::new();
    set(&answer, "summary", &summary.into());
    set(&answer, "visible", &Uint8Array::from(&visible[..]));
    set(&answer, "density", &density.into());
    set(&answer, "flops", &(density * problem.dims.flops()).into());
    Ok(answer)
}

/// Visible pairs of head 0 of item 0, a byte each: those with a score in the CPU path, of queries and keys that are 0.
fn visible(inputs: &Inputs<'_>, problem: &Problem) -> Answer<Vec<u8>> {
    let dims = Dims { batch: 1, num_heads: 1, num_kv_heads: 1, head_dim: 1, head_dim_v: 1, ..problem.dims };
    let first = |shape: BroadcastShape| BroadcastShape([1, 1, shape.0[2], shape.0[3]]);
    let mut one = Problem { dims, bias: problem.bias.map(first), sinks: false, ..problem.clone() };
    one.visibility.mask = problem.visibility.mask.map(first);
    let plain = TensorSpec::default();
    (one.query, one.key, one.value, one.output) = (plain, plain, plain, plain);
    one.want = Returns { scores: Some(ScoreStage::Masked), ..Returns::default() };
    let zeros = |len: usize| HostVec::F32(vec![0.0; len]);
    let (query, key) = (zeros(dims.seq_len_q), zeros(dims.seq_len_kv));
    let elements = |shape: Option<BroadcastShape>| shape.and_then(BroadcastShape::elements).unwrap_or(0);
    let inputs = Inputs {
        query: query.as_slice(),
        key: key.as_slice(),
        value: key.as_slice(),
        mask: &inputs.mask[..elements(one.visibility.mask)],
        bias: &inputs.bias[..elements(one.bias)],
        alibi_slopes: &inputs.alibi_slopes[..inputs.alibi_slopes.len().min(1)],
        sinks: &[],
        kv_lengths: &inputs.kv_lengths[..inputs.kv_lengths.len().min(1)],
        ..*inputs
    };
    let outputs = cpu::tiled::attention(&one, &inputs, &mut Progress::default()).map_err(to_js)?;
    Ok(outputs.scores.unwrap_or_default().into_iter().map(|score| u8::from(score != f32::NEG_INFINITY)).collect())
}
