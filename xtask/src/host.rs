//! Attention and gradients on anything that runs exported plans: bytes of tensors by name in, bytes by name out.

use std::collections::HashMap;

use wgpu_attention::gpu::Tables;
use wgpu_attention::plan::{DeviceCaps, Plan, PlanExport};
use wgpu_attention::{
    Algorithm, BackwardInputs, DType, Gradients, HostVec, Inputs, Outputs, Problem, Result, Returns, WantGradients, bf16, f16,
};

/// Contents of tensors, by name.
pub(crate) type Tensors = HashMap<&'static str, Vec<u8>>;

/// Host that runs a plan: the tensors that are read in, those that are written out.
pub(crate) type RunPlan<'a> = dyn Fn(&PlanExport, &Tensors) -> Result<Tensors> + 'a;

/// Computes attention by `run`, planned for a device with `caps`.
pub(crate) fn attention(
    run: &RunPlan<'_>,
    caps: &DeviceCaps,
    problem: &Problem,
    inputs: &Inputs<'_>,
    algorithm: Algorithm,
) -> Result<Outputs> {
    let plan = Plan::new(problem, caps, algorithm)?.export()?;
    let mut results = run(&plan, &read(&plan, problem, inputs, HashMap::new())?)?;
    let mut outputs = Outputs::default();
    outputs.output = stored(problem.output.dtype, &results.remove("output").unwrap_or_default(), problem.output_len());
    outputs.lse = results.get("lse").map(|bytes| f32s_of(bytes));
    outputs.stats = results.get("stats").map(|bytes| f32s_of(bytes).chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect());
    outputs.scores = results.get("scores").map(|bytes| f32s_of(bytes));
    outputs.weights = results.get("weights").map(|bytes| f32s_of(bytes));
    outputs.key_sums = results.get("key_sums").map(|bytes| f32s_of(bytes));
    Ok(outputs)
}

/// Computes gradients by `run`, planned for a device with `caps`.
pub(crate) fn backward(
    run: &RunPlan<'_>,
    caps: &DeviceCaps,
    problem: &Problem,
    inputs: &Inputs<'_>,
    backward: &BackwardInputs<'_>,
    want: &WantGradients,
) -> Result<Gradients> {
    let plan = Plan::backward(problem, want, caps)?.export()?;
    // Like the engine: without statistics of a forward pass, they are computed first.
    let forward = Problem { want: Returns { stats: true, ..Returns::default() }, dropout: None, ..problem.clone() };
    let made = if backward.stats.is_some() { None } else { attention(run, caps, &forward, inputs, Algorithm::Auto)?.stats };
    let stats = backward.stats.or(made.as_deref()).unwrap_or_default();
    let others = HashMap::from([
        ("output", backward.output.bytes().to_vec()),
        ("d_output", backward.d_output.bytes().to_vec()),
        ("d_lse", bytes_of(backward.d_lse.unwrap_or_default())),
        ("stats", bytes_of(stats.as_flattened())),
    ]);
    let results = run(&plan, &read(&plan, problem, inputs, others)?)?;
    let f32s = |name: &str| results.get(name).map(|bytes| f32s_of(bytes));
    let operand = |name: &str, dtype: DType, len: usize| results.get(name).map(|bytes| stored(want.dtype.unwrap_or(dtype), bytes, len));
    let mut gradients = Gradients::default();
    gradients.query = operand("d_query", problem.query.dtype, problem.query_len());
    gradients.key = operand("d_key", problem.key.dtype, problem.key_len());
    gradients.value = operand("d_value", problem.value.dtype, problem.value_len());
    (gradients.bias, gradients.relative_bias) = (f32s("d_bias"), f32s("d_relative_bias"));
    (gradients.sinks, gradients.term_tables) = (f32s("d_sinks"), f32s("d_term_tables"));
    Ok(gradients)
}

/// Contents of the tensors that a plan reads: those of `others`, the rest from `inputs`.
fn read(plan: &PlanExport, problem: &Problem, inputs: &Inputs<'_>, mut others: Tensors) -> Result<Tensors> {
    let mut tensors = Tensors::new();
    for tensor in plan.tensors.iter().filter(|tensor| !tensor.written) {
        let mut bytes = match tensor.name {
            "query" => inputs.query.bytes().to_vec(),
            "key" => inputs.key.bytes().to_vec(),
            "value" => inputs.value.bytes().to_vec(),
            "tables" => Tables::of_inputs(problem, inputs).bytes()?,
            "bias" => bytes_of(inputs.bias),
            "mask" => inputs.mask.iter().map(|&visible| visible.into()).collect(),
            other => others.remove(other).unwrap_or_default(),
        };
        // Data may be longer than what is used of it.
        bytes.truncate(tensor.bytes as usize);
        tensors.insert(tensor.name, bytes);
    }
    Ok(tensors)
}

pub(crate) fn bytes_of(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// 32-bit words of a buffer's bytes.
pub(crate) fn words_of(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

pub(crate) fn f32s_of(bytes: &[u8]) -> Vec<f32> {
    words_of(bytes).map(f32::from_bits).collect()
}

/// First `len` elements stored in a buffer's bytes.
pub(crate) fn stored(dtype: DType, bytes: &[u8], len: usize) -> HostVec {
    let halves = bytes.chunks_exact(2).map(|half| u16::from_le_bytes([half[0], half[1]])).take(len);
    match dtype {
        DType::F32 => HostVec::F32(f32s_of(bytes)),
        DType::F16 => HostVec::F16(halves.map(f16::from_bits).collect()),
        DType::BF16 => HostVec::BF16(halves.map(bf16::from_bits).collect()),
        DType::Q8 => HostVec::Q8(words_of(bytes).collect()),
        DType::Q4 => HostVec::Q4(words_of(bytes).collect()),
    }
}
