//! A canary: before a kernel computes for the first time on a device, it computes a tiny problem whose answer the CPU knows. A compiler or driver
//! that nobody has tried is found out before it can be wrong without a word.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::gpu::{Gpu, Trial};
use crate::plan::{DeviceCaps, Plan, Specialise};
use crate::problem::Operand;
use crate::shader::KernelKey;
use crate::tune::agrees;
use crate::{Algorithm, Broadcast, Control, Dims, Error, HostVec, Inputs, Layout, Problem, Result, TensorSpec, Want, cpu};

/// Rows and keys of the tiny problem, at most: with tails, and more than one step of any loop over keys.
const ROWS: usize = 3;
const KEYS: usize = 37;

/// Kernels that were tried, or cannot be, by adapter and driver.
type Tried = HashMap<String, HashSet<KernelKey>>;

fn tried() -> MutexGuard<'static, Option<Tried>> {
    static TRIED: Mutex<Option<Tried>> = Mutex::new(None);
    TRIED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tries the kernels that `problem` takes and that were not tried yet in this process on such a device. A kernel that a tiny problem does not
/// take, as the merge of many keys, is left out, and the log says so.
pub(crate) fn check(gpu: &Gpu, problem: &Problem, algorithm: Algorithm) -> Result<()> {
    if !gpu.wants_canary() || gpu.is_prepared(problem, algorithm) {
        return Ok(());
    }
    let plan = gpu.plan(problem, algorithm)?;
    let device = format!("{}{}", gpu.name(), if gpu.is_checked() { ", checked" } else { "" });
    let new: HashSet<KernelKey> = {
        let mut tried = tried();
        let known = tried.get_or_insert_default().entry(device.clone()).or_default();
        plan.steps.iter().map(|step| &step.key).filter(|key| !known.contains(*key)).cloned().collect()
    };
    if new.is_empty() {
        return Ok(());
    }
    let tiny = tiny(problem);
    // The variant at hand: a problem so small would get another one.
    let general = plan.steps[0].key.general;
    let caps = DeviceCaps { specialise: if general { Specialise::Never } else { Specialise::Always }, ..gpu.caps().clone() };
    let kernel = Some(plan.kernel()).filter(|_| algorithm != Algorithm::Staged);
    if let Ok(plan) = Plan::with_kernel(&tiny, &caps, algorithm, kernel)
        && plan.steps.iter().any(|step| new.contains(&step.key))
    {
        let kernels = plan.summary().to_string();
        if !computes(gpu, &tiny, algorithm, plan)? {
            return Err(Error::Miscomputed { kernel: kernels, device });
        }
    } else {
        log::debug!("{device}: no tiny problem takes `{}`: not tried", plan.summary());
    }
    tried().get_or_insert_default().entry(device).or_default().extend(new);
    Ok(())
}

/// One item and one key/value head of `problem`, a few rows and keys, and what is done to each pair.
fn tiny(problem: &Problem) -> Problem {
    let d = &problem.dims;
    let dims = Dims {
        batch: 1,
        num_heads: d.group(),
        num_kv_heads: 1,
        seq_len_q: d.seq_len_q.min(ROWS),
        seq_len_kv: d.seq_len_kv.min(KEYS),
        ..*d
    };
    let spec = |spec: TensorSpec| match spec.layout {
        Layout::Strided(_) => TensorSpec { layout: Layout::Bshd, offset: 0, ..spec },
        _ => TensorSpec { offset: 0, ..spec },
    };
    let shape = dims.scores_shape();
    let smaller = |Broadcast(of): Broadcast| Broadcast(std::array::from_fn(|axis| if of[axis] == 1 { 1 } else { shape[axis] }));
    let mut visibility = problem.visibility;
    (visibility.kv_lengths, visibility.prefix_lengths, visibility.documents) = (false, false, false);
    visibility.mask = visibility.mask.map(smaller);
    Problem {
        dims,
        query: spec(problem.query),
        key: spec(problem.key),
        value: spec(problem.value),
        output: spec(problem.output),
        visibility,
        bias: problem.bias.map(smaller),
        relative_bias: problem.relative_bias.map(|distance| distance.min(KEYS as u32)),
        want: Want { lse: false, stats: false, ..problem.want },
        dropout: None,
        packed: None,
        paged: None,
        ..*problem
    }
}

/// True if the device gives the CPU's answer.
fn computes(gpu: &Gpu, problem: &Problem, algorithm: Algorithm, plan: Plan) -> Result<bool> {
    problem.check()?;
    let mut state = 1u32;
    let mut numbers = |len: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    };
    let mut operand = |operand| HostVec::from_f32(problem.spec(operand).dtype, &numbers(problem.operand_len(operand)));
    let [query, key, value] = [operand(Operand::Query), operand(Operand::Key), operand(Operand::Value)];
    let elements = |shape: Option<Broadcast>| shape.and_then(Broadcast::elements).unwrap_or(0);
    let heads = |there: bool| if there { problem.dims.num_heads } else { 0 };
    let bias = numbers(elements(problem.bias));
    let (slopes, sinks) = (numbers(heads(problem.alibi.is_some())), numbers(heads(problem.sinks)));
    let relative_bias = numbers(problem.relative_bias_len());
    let mask: Vec<bool> = (0..elements(problem.visibility.mask)).map(|at| at % 3 != 1).collect();
    let inputs = Inputs {
        bias: &bias,
        mask: &mask,
        alibi_slopes: &slopes,
        sinks: &sinks,
        relative_bias: &relative_bias,
        ..Inputs::new(query.as_slice(), key.as_slice(), value.as_slice())
    };
    inputs.check(problem)?;
    let got = Trial::of_plan(gpu, problem, &inputs, algorithm, plan)?.answer()?;
    let plain = Problem { want: Want::default(), ..*problem };
    let expected = cpu::tiled::attention(&plain, &inputs, &mut Control::default())?;
    Ok(agrees(&got.output, &expected.output))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{ShaderOptions, choose_every};
    use crate::{Alignment, DType};

    fn gpus(options: ShaderOptions) -> Vec<Gpu> {
        let chosen = pollster::block_on(choose_every());
        chosen.iter().map(|chosen| pollster::block_on(Gpu::open(chosen, options)).expect("it opens")).collect()
    }

    #[test]
    fn right_kernels_are_let_through() {
        for gpu in gpus(ShaderOptions::default()) {
            let plain = Problem::new(Dims { head_dim_v: 20, ..Dims::square(1, 2, 40, 44) });
            let decode = Problem { dims: Dims { seq_len_q: 1, seq_len_kv: 3000, ..plain.dims }, ..plain };
            let biased = Problem { bias: Some(Broadcast([1, 2, 40, 40])), softcap: Some(5.0), sinks: true, ..plain };
            for problem in [plain, decode, biased, plain.stored(DType::F16, Layout::Bshd), plain.stored(DType::BF16, Layout::Bhsd)] {
                for algorithm in [Algorithm::Fused, Algorithm::Staged] {
                    check(&gpu, &problem, algorithm).unwrap_or_else(|error| panic!("{problem:?}: {error}"));
                }
            }
        }
    }

    #[test]
    fn a_wrong_kernel_is_caught() {
        // A kernel that no other test has: what was tried is known to the whole process.
        let special = ShaderOptions { specialise: Specialise::Always, ..ShaderOptions::default() };
        let problem = Problem::new(Dims::square(2, 4, 50, 52)).causal(Alignment::TopLeft);
        for gpu in gpus(special) {
            let key = gpu.plan(&problem, Algorithm::Fused).expect("planned").steps[0].key.clone();
            // A compiler that gets the output a tenth wrong.
            let tenth_more = "var words = bitcast<vec4<u32>>(1.1 * bitcast<vec4<f32>>(bits));";
            let broken = |text: String| text.replace("var words = bits;", tenth_more);
            gpu.compile_changed(key, broken).expect("valid");
            match check(&gpu, &problem, Algorithm::Fused) {
                Err(Error::Miscomputed { device, .. }) => assert!(device.starts_with(gpu.name())),
                other => panic!("{}: {other:?}", gpu.name()),
            }
            let quiet = ShaderOptions { skip_canary: true, ..special };
            let quiet = Gpu::from_device_with(gpu.device().clone(), gpu.queue().clone(), quiet);
            assert_eq!(check(&quiet, &problem, Algorithm::Fused), Ok(()), "nobody asked");
        }
    }
}
