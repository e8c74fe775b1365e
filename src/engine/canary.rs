//! Canary: before a kernel first computes on a device, it computes a tiny problem whose answer the CPU knows. An
//! untested compiler or driver is found out before it can silently return wrong answers.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::agreement::{agrees, agrees_at};
use crate::cpu;
use crate::error::{Error, Result};
use crate::gpu::{Asked, Gpu, Trial, Waiting};
use crate::numbers::HostVec;
use crate::plan::{CHAIN, DeviceCaps, Plan, Specialise};
use crate::problem::{
    Algorithm, BackwardInputs, BlockList, BroadcastShape, Dims, Gradients, Inputs, Layout, Operand, Problem, Returns, TensorSpec,
    WantGradients,
};
use crate::progress::Progress;
use crate::terms::TermSet;
use crate::wgsl::{Kernel, KernelKey};

/// Upper bounds on the rows and keys of a tiny problem: they leave tails and give every loop over keys several steps.
const ROWS: usize = 3;
const KEYS: usize = 37;
/// Number of keys that every device splits, so that the merge kernel runs too.
const MERGED_KEYS: usize = CHAIN + KEYS;

/// Kernels already tried, or impossible to try, by adapter and driver.
type Tried = HashMap<String, HashSet<KernelKey>>;

fn tried() -> MutexGuard<'static, Option<Tried>> {
    static TRIED: Mutex<Option<Tried>> = Mutex::new(None);
    TRIED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries the kernels of `problem` that this process has not tried on this device yet. Logs and skips a kernel that no
/// tiny problem uses.
pub(crate) async fn check(gpu: &Gpu, problem: &Problem, algorithm: Algorithm, waiting: Waiting) -> Result<()> {
    if !gpu.wants_canary() {
        return Ok(());
    }
    let plan = gpu.plan(problem, algorithm)?;
    let merges = plan.steps.iter().any(|step| step.key.kernel == Kernel::Merge);
    let tiny = tiny(problem, &plan, ROWS, if merges { MERGED_KEYS } else { KEYS });
    let kernel = Some(plan.kernel()).filter(|_| algorithm != Algorithm::Staged);
    let plan_tiny = |caps: &DeviceCaps| tiny.check().and_then(|()| Plan::of(&tiny, caps, algorithm, kernel));
    let is_right = async |plan, inputs: &Inputs<'_>, _: &HostVec| computes(gpu, &tiny, inputs, plan, waiting).await;
    check_plan(gpu, &plan, &tiny, plan_tiny, is_right).await
}

/// Tries the kernels of the gradients of `problem`, as [`check`] does.
pub(crate) async fn check_backward(gpu: &Gpu, problem: &Problem, want: &WantGradients, waiting: Waiting) -> Result<()> {
    if !gpu.wants_canary() {
        return Ok(());
    }
    let plan = Plan::of_backward(problem, want, gpu.caps())?;
    let tiny = tiny(problem, &plan, KEYS, KEYS);
    // A tiny problem has no terms of the user's, and none of their tables.
    let want = &WantGradients { term_tables: false, ..*want };
    let is_right =
        async |plan, inputs: &Inputs<'_>, d_output: &HostVec| differentiates(gpu, &tiny, (inputs, d_output), want, plan, waiting).await;
    check_plan(gpu, &plan, &tiny, |caps| Plan::backward(&tiny, want, caps), is_right).await
}

/// Tries the new kernels of `plan`: `plan_tiny` plans a `tiny` problem that uses them, `is_right` computes and checks it.
async fn check_plan(
    gpu: &Gpu,
    plan: &Plan,
    tiny: &Problem,
    plan_tiny: impl FnOnce(&DeviceCaps) -> Result<Plan>,
    is_right: impl AsyncFnOnce(Plan, &Inputs<'_>, &HostVec) -> Result<bool>,
) -> Result<()> {
    let device = format!("{}{}", gpu.name(), if gpu.is_checked() { ", checked" } else { "" });
    let new: HashSet<KernelKey> = {
        let mut tried = tried();
        let known = tried.get_or_insert_default().entry(device.clone()).or_default();
        plan.steps.iter().map(|step| step.key.without_user_terms()).filter(|key| !known.contains(key)).collect()
    };
    if new.is_empty() {
        return Ok(());
    }
    // Force the variant of `plan`, because a problem this small would get the other one.
    let specialise = if plan.key().generic { Specialise::Never } else { Specialise::Always };
    match plan_tiny(&DeviceCaps { specialise, ..gpu.caps().clone() }) {
        Ok(tried) if tried.steps.iter().any(|step| new.contains(&step.key)) => {
            let kernel = tried.summary().to_string();
            let data = TinyData::new(tiny)?;
            if !is_right(tried, &data.inputs(), &data.d_output).await? {
                return Err(Error::Miscomputed { kernel, device });
            }
        }
        _ => log::debug!("{device}: no tiny problem takes `{}`: not tried", plan.summary()),
    }
    tried().get_or_insert_default().entry(device).or_default().extend(new);
    Ok(())
}

/// Reduces `problem` to one item, one key/value head, few rows and few keys. The options of each score stay; where a kernel
/// of `plan` has switches for some that are gone, a mask keeps it.
fn tiny(problem: &Problem, plan: &Plan, rows: usize, keys: usize) -> Problem {
    let d = &problem.dims;
    let dims = Dims {
        batch: 1,
        num_heads: d.group(),
        num_kv_heads: 1,
        seq_len_q: d.seq_len_q.min(rows),
        seq_len_kv: d.seq_len_kv.min(keys),
        ..*d
    };
    let spec = |spec: TensorSpec| match spec.layout {
        Layout::Strided(_) => TensorSpec { layout: Layout::Bshd, offset: 0, ..spec },
        _ => TensorSpec { offset: 0, ..spec },
    };
    let shape = dims.scores_shape();
    let smaller =
        |BroadcastShape(of): BroadcastShape| BroadcastShape(std::array::from_fn(|axis| if of[axis] == 1 { 1 } else { shape[axis] }));
    let mut visibility = problem.visibility;
    (visibility.kv_lengths, visibility.prefix_lengths, visibility.segments) = (false, false, false);
    visibility.mask = visibility.mask.map(smaller);
    visibility.block_list = visibility.block_list.map(|_| BlockList::new(2, 4));
    let mut tiny = Problem {
        user_terms: Vec::new(),
        dims,
        query: spec(problem.query),
        key: spec(problem.key),
        value: spec(problem.value),
        output: spec(problem.output),
        visibility,
        bias: problem.bias.map(smaller),
        relative_bias_max_distance: problem.relative_bias_max_distance.map(|distance| distance.min(keys as u32)),
        want: Returns { lse: false, stats: false, ..problem.want },
        dropout: None,
        allow_bf16_weights: false,
        varlen: None,
        paged: None,
        ..problem.clone()
    };
    let pair_terms = |of: TermSet| of.and(TermSet::pairs()) != TermSet::default();
    if !pair_terms(TermSet::of(&tiny)) && plan.steps.iter().any(|step| step.key.is_switched() && pair_terms(step.key.terms)) {
        tiny.visibility.mask = Some(BroadcastShape(shape));
    }
    tiny
}

/// True if the device's answer agrees with the CPU's.
async fn computes(gpu: &Gpu, problem: &Problem, inputs: &Inputs<'_>, plan: Plan, waiting: Waiting) -> Result<bool> {
    let got = Trial::new(gpu, problem, inputs, plan)?.answer(waiting).await?;
    let plain = Problem { want: Returns::default(), ..problem.clone() };
    let expected = cpu::tiled::attention(&plain, inputs, &mut Progress::default())?;
    Ok(agrees(&got.output, &expected.output))
}

/// True if the device's gradients agree with the CPU's.
async fn differentiates(
    gpu: &Gpu,
    problem: &Problem,
    (inputs, d_output): (&Inputs<'_>, &HostVec),
    want: &WantGradients,
    plan: Plan,
    waiting: Waiting,
) -> Result<bool> {
    let forward = Problem { want: Returns { stats: true, ..Returns::default() }, ..problem.clone() };
    let forward = cpu::tiled::attention(&forward, inputs, &mut Progress::default())?;
    let d_lse = want.through_lse.then(|| vec![0.5; problem.lse_len()]);
    let backward =
        BackwardInputs { stats: forward.stats.as_deref(), d_lse: d_lse.as_deref(), ..BackwardInputs::new(&forward.output, d_output) };
    let expected = cpu::backward::attention(problem, inputs, &backward, want, &mut Progress::default())?;
    let got = Trial::backward(gpu, Asked { problem, inputs, backward: &backward, want }, plan)?.gradients(waiting).await?;
    // Terms are up to 1 times the scale, and cancel where one key is visible to a row: compare at their size.
    let least = problem.effective_scale().abs().max(1.0);
    let all = |of: Gradients| {
        let vectors = [of.bias, of.relative_bias, of.sinks].map(|vector| vector.map(HostVec::F32));
        [of.query, of.key, of.value].into_iter().chain(vectors)
    };
    Ok(all(got).zip(all(expected)).all(|pair| match pair {
        (Some(got), Some(expected)) => agrees_at(least, &got, &expected),
        (got, expected) => got.is_none() && expected.is_none(),
    }))
}

/// Data of a tiny problem, and a gradient of its output.
struct TinyData {
    operands: [HostVec; 3],
    d_output: HostVec,
    bias: Vec<f32>,
    mask: Vec<bool>,
    block_list: Vec<u32>,
    alibi_slopes: Vec<f32>,
    sinks: Vec<f32>,
    relative_bias: Vec<f32>,
}

impl TinyData {
    fn new(problem: &Problem) -> Result<Self> {
        let mut state = 1u32;
        let mut numbers = |len: usize| -> Vec<f32> {
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            (0..len).map(|_| next()).collect()
        };
        let mut operand = |operand| HostVec::from_f32(problem.spec(operand).dtype, &numbers(problem.operand_len(operand)));
        let [query, key, value, d_output] = Operand::ALL.map(&mut operand);
        let elements = |shape: Option<BroadcastShape>| shape.and_then(BroadcastShape::elements).unwrap_or(0);
        let heads = |there: bool| if there { problem.dims.num_heads } else { 0 };
        let data = Self {
            operands: [query, key, value],
            d_output,
            bias: numbers(elements(problem.bias)),
            mask: (0..elements(problem.visibility.mask)).map(|at| at % 3 != 1).collect(),
            block_list: vec![0b10_1101_1011; problem.visibility.block_list.map_or(0, |list| list.shape(&problem.dims).iter().product())],
            alibi_slopes: numbers(heads(problem.alibi.is_some())),
            sinks: numbers(heads(problem.sinks)),
            relative_bias: numbers(problem.relative_bias_len()),
        };
        data.inputs().check(problem)?;
        Ok(data)
    }

    fn inputs(&self) -> Inputs<'_> {
        let [query, key, value] = &self.operands;
        Inputs {
            bias: &self.bias,
            mask: &self.mask,
            block_list: &self.block_list,
            alibi_slopes: &self.alibi_slopes,
            sinks: &self.sinks,
            relative_bias: &self.relative_bias,
            ..Inputs::new(query, key, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, EngineOptions};
    use crate::gpu::{ShaderOptions, choose_every};
    use crate::layer::{Linear, MultiHead};
    use crate::numbers::DType;
    use crate::problem::{Alignment, Backend};

    fn gpus(options: ShaderOptions) -> Vec<Gpu> {
        let chosen = pollster::block_on(choose_every());
        chosen.iter().map(|chosen| pollster::block_on(Gpu::open(chosen, options)).expect("it opens")).collect()
    }

    #[test]
    fn right_kernels_are_let_through() {
        for gpu in gpus(ShaderOptions::default()) {
            let plain = Problem::new(Dims { head_dim_v: 20, ..Dims::self_attention(1, 2, 40, 44) });
            let decode = Problem { dims: Dims { seq_len_q: 1, seq_len_kv: 3000, ..plain.dims }, ..plain.clone() };
            let biased = Problem {
                bias: Some(BroadcastShape([1, 2, 40, 40])),
                softcap: Some(5.0),
                sinks: true,
                relative_bias_max_distance: Some(9),
                ..plain.clone().aligned(Alignment::TopLeft).causal()
            };
            let stored = [biased.clone().stored(DType::F16, Layout::Bshd), plain.clone().stored(DType::BF16, Layout::Bhsd)];
            for problem in [plain, decode, biased].into_iter().chain(stored) {
                for algorithm in [Algorithm::Fused, Algorithm::Staged] {
                    let checked = check(&gpu, &problem, algorithm, Waiting::Blocking);
                    pollster::block_on(checked).unwrap_or_else(|error| panic!("{problem:?}: {error}"));
                }
                let want = WantGradients::all(&problem);
                let checked = check_backward(&gpu, &problem, &want, Waiting::Blocking);
                pollster::block_on(checked).unwrap_or_else(|error| panic!("{problem:?}: {error}"));
            }
        }
    }

    /// Breaks a kernel as a compiler would that stores a tenth more than was computed.
    fn a_tenth_more(text: String) -> String {
        text.replace("var words = bits;", "var words = bitcast<vec4<u32>>(1.1 * bitcast<vec4<f32>>(bits));")
    }

    #[test]
    fn a_wrong_kernel_is_caught() {
        // No other test uses this kernel, because tried kernels are known to the whole process.
        let specialised = ShaderOptions { specialise: Specialise::Always, ..ShaderOptions::default() };
        let problem = Problem::new(Dims::self_attention(2, 4, 50, 52)).aligned(Alignment::TopLeft).causal();
        for gpu in gpus(specialised) {
            let key = gpu.plan(&problem, Algorithm::Fused).expect("planned").steps[0].key.clone();
            // Simulates a compiler that makes the output 10 % too large.
            gpu.compile_changed(key, a_tenth_more).expect("valid");
            match pollster::block_on(check(&gpu, &problem, Algorithm::Fused, Waiting::Blocking)) {
                Err(Error::Miscomputed { device, .. }) => assert!(device.starts_with(gpu.name())),
                other => panic!("{}: {other:?}", gpu.name()),
            }
            let quiet = ShaderOptions { skip_canary: true, ..specialised };
            let quiet = Gpu::from_device_with(gpu.device().clone(), gpu.queue().clone(), quiet);
            let checked = check(&quiet, &problem, Algorithm::Fused, Waiting::Blocking);
            assert_eq!(pollster::block_on(checked), Ok(()), "nobody asked");
        }
    }

    #[test]
    fn a_wrong_gradient_is_caught_and_the_cpu_stands_in_where_it_may() {
        // No other test uses this kernel either.
        let specialised = ShaderOptions { specialise: Specialise::Always, ..ShaderOptions::default() };
        let problem = Problem::new(Dims::self_attention(2, 4, 50, 60)).aligned(Alignment::TopLeft).causal();
        let want = WantGradients::all(&problem);
        for gpu in gpus(specialised) {
            let plan = Plan::backward(&problem, &want, gpu.caps()).expect("planned");
            let key = plan.steps.iter().map(|step| &step.key).find(|key| matches!(key.kernel, Kernel::QueryGradient(_)));
            gpu.compile_changed(key.expect("one").clone(), a_tenth_more).expect("valid");
            let checked = pollster::block_on(check_backward(&gpu, &problem, &want, Waiting::Blocking));
            assert!(matches!(checked, Err(Error::Miscomputed { .. })), "{}", gpu.name());

            let data = TinyData::new(&problem).expect("valid");
            let inputs = &data.inputs();
            let output = cpu::tiled::attention(&problem, inputs, &mut Progress::default()).expect("computed").output;
            let backward = BackwardInputs::new(&output, &data.d_output);
            let strict = Engine::on_gpu(gpu.clone());
            assert!(matches!(strict.backward(&problem, inputs, &backward, &want), Err(Error::Miscomputed { .. })));
            let got = Engine::on_gpu(gpu).falling_back().backward(&problem, inputs, &backward, &want);
            assert_eq!(got, cpu::backward::attention(&problem, inputs, &backward, &want, &mut Progress::default()));
        }
    }

    #[test]
    fn the_cpu_stands_in_for_a_layer_too() {
        // As above, kernels that no other test has.
        let specialised = ShaderOptions { specialise: Specialise::Always, ..ShaderOptions::default() };
        let identity =
            |n: usize| Linear::new((0..n * n).map(|i| f32::from(u8::from(i % (n + 1) == 0))).collect(), None, n).expect("square");
        let [w_q, w_k, w_v, w_o] = [72; 4].map(identity);
        let layer = MultiHead::new(w_q, w_k, w_v, w_o, 2, 2).expect("a layer");
        let problem = layer.problem(1, 30, 30).aligned(Alignment::TopLeft).causal().with_lse();
        let x: Vec<f32> = (0..30 * 72).map(|i| (i as f32 * 0.37).sin()).collect();
        let inputs = Inputs::new(&x, &x, &x);
        for gpu in gpus(specialised) {
            let forward = gpu.plan(&problem, Algorithm::Fused).expect("planned").steps[0].key.clone();
            let backward = Plan::backward(&problem, &WantGradients::all(&problem), gpu.caps()).expect("planned");
            let gradient = backward.steps.iter().map(|step| &step.key).find(|key| matches!(key.kernel, Kernel::QueryGradient(_)));
            for key in [forward, gradient.expect("one").clone()] {
                gpu.compile_changed(key, a_tenth_more).expect("valid");
            }
            let strict = Engine::on_gpu(gpu.clone());
            assert!(matches!(layer.forward(&strict, &problem, &inputs), Err(Error::Miscomputed { .. })), "{}", gpu.name());
            let lenient = Engine::on_gpu(gpu).falling_back();
            let cpu = Engine::new(EngineOptions { backend: Backend::Cpu, ..EngineOptions::default() }).expect("always there");
            let got = layer.forward_with_steps(&lenient, &problem, &inputs).expect("the CPU's");
            assert_eq!(got, layer.forward_with_steps(&cpu, &problem, &inputs).expect("computed"));
            assert!(matches!(layer.backward(&strict, &problem, &inputs, &got, &x), Err(Error::Miscomputed { .. })));
            let gradients = layer.backward(&lenient, &problem, &inputs, &got, &x).expect("the CPU's");
            assert_eq!(gradients, layer.backward(&cpu, &problem, &inputs, &got, &x).expect("computed"));
        }
    }
}
