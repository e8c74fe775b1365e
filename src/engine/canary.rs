//! Canary: before a kernel first computes on a device, it computes a tiny problem whose answer the CPU knows. An
//! untested compiler or driver is found out before it can silently return wrong answers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::tiny::{Canary, TriedKernels};
use crate::error::{Error, Result};
use crate::gpu::{Asked, Gpu, Phase, Trial, Waiting};
use crate::problem::{Algorithm, Problem, WantGradients};

/// Kernels tried, by adapter and driver.
type Tried = HashMap<String, TriedKernels>;

fn tried() -> MutexGuard<'static, Option<Tried>> {
    static TRIED: Mutex<Option<Tried>> = Mutex::new(None);
    TRIED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `call` on the kernels that were tried on this device.
fn with_tried<T>(device: &str, call: impl FnOnce(&mut TriedKernels) -> T) -> T {
    call(tried().get_or_insert_default().entry(device.into()).or_default())
}

/// Tries the kernels of `problem` that this process has not tried on this device yet. Logs and skips a kernel that no
/// tiny problem uses.
pub(crate) async fn check(gpu: &Gpu, problem: &Problem, algorithm: Algorithm, waiting: Waiting) -> Result<()> {
    if !gpu.wants_canary() {
        return Ok(());
    }
    let (device, plan) = (device(gpu), gpu.plan(problem, algorithm)?);
    let caps = gpu.caps();
    let canary = gpu.timed(Phase::Trial, || with_tried(&device, |tried| tried.of_attention(&plan, problem, caps, algorithm)))?;
    let Some(canary) = canary else { return Ok(()) };
    let got = Trial::new(gpu, &canary.problem, &canary.inputs(), canary.plan.clone())?.answer(waiting).await?;
    let is_right = gpu.timed(Phase::Trial, || canary.agrees(&got))?;
    conclude(device, canary, is_right)
}

/// Tries the kernels of the gradients of `problem`, as [`check`] does.
pub(crate) async fn check_backward(gpu: &Gpu, problem: &Problem, want: &WantGradients, waiting: Waiting) -> Result<()> {
    if !gpu.wants_canary() {
        return Ok(());
    }
    let (device, plan) = (device(gpu), gpu.plan_backward(problem, want)?);
    let caps = gpu.caps();
    let canary = gpu.timed(Phase::Trial, || with_tried(&device, |tried| tried.of_gradients(&plan, problem, want, caps)))?;
    let Some(canary) = canary else { return Ok(()) };
    let Some((want, backward)) = &canary.gradients() else { return Ok(()) };
    let asked = Asked { problem: &canary.problem, inputs: &canary.inputs(), backward, want };
    let got = Trial::backward(gpu, asked, canary.plan.clone())?.gradients(waiting).await?;
    let is_right = gpu.timed(Phase::Trial, || canary.gradients_agree(got))?;
    conclude(device, canary, is_right)
}

/// Name of a device and of the way in which its kernels are compiled.
fn device(gpu: &Gpu) -> String {
    format!("{}{}", gpu.name(), if gpu.is_checked() { ", checked" } else { "" })
}

/// Remembers that kernels are right, or returns the error.
fn conclude(device: String, canary: Canary, is_right: bool) -> Result<()> {
    if !is_right {
        return Err(Error::Miscomputed { kernel: canary.plan.summary().into(), device });
    }
    with_tried(&device, |tried| tried.add(canary));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tiny::TinyData;
    use super::*;
    use crate::cpu;
    use crate::engine::{Engine, EngineOptions};
    use crate::gpu::{ShaderOptions, choose_every};
    use crate::layer::{Linear, MultiHead};
    use crate::numbers::DType;
    use crate::plan::{Plan, Specialise};
    use crate::problem::{Alignment, Backend, BackwardInputs, BroadcastShape, Dims, Inputs, Layout, SummedRows};
    use crate::progress::Progress;
    use crate::wgsl::Kernel;

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
            let sums = [plain.clone().with_key_sums(SummedRows::All), decode.clone().with_key_sums(SummedRows::Last(1))];
            for problem in [plain, decode, biased].into_iter().chain(stored).chain(sums) {
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
    fn wrong_key_sums_are_caught() {
        let specialised = ShaderOptions { specialise: Specialise::Always, ..ShaderOptions::default() };
        let problem = Problem::new(Dims::self_attention(2, 4, 50, 76)).with_key_sums(SummedRows::All);
        for gpu in gpus(specialised) {
            let plan = gpu.plan(&problem, Algorithm::Fused).expect("planned");
            let key = plan.steps.iter().map(|step| &step.key).find(|key| matches!(key.kernel, Kernel::KeySums(_)));
            let changed = |text: String| text.replace("sums[at] = total;", "sums[at] = 1.1 * total;");
            gpu.compile_changed(key.expect("one").clone(), changed).expect("valid");
            let checked = pollster::block_on(check(&gpu, &problem, Algorithm::Fused, Waiting::Blocking));
            assert!(matches!(checked, Err(Error::Miscomputed { .. })), "{}", gpu.name());
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
