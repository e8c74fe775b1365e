//! Tiny problems, by which kernels are tried before they first compute on a device. Pure: whoever has the device runs them.

use std::collections::HashSet;

use super::agreement::{agrees, agrees_at};
use crate::error::Result;
use crate::numbers::HostVec;
use crate::oracle;
use crate::plan::{CHAIN, DeviceCaps, Plan, Specialise};
use crate::problem::{
    Algorithm, BackwardInputs, BlockList, BroadcastShape, Dims, Gradients, Inputs, Layout, Operand, Outputs, Problem, Returns, TensorSpec,
    WantGradients,
};
use crate::terms::TermSet;
use crate::wgsl::{Kernel, KernelKey};

/// Upper bounds on the rows and keys of a tiny problem: they leave tails and give every loop over keys several steps.
const ROWS: usize = 3;
const KEYS: usize = 37;
/// Upper bound on the rows where kernels besides the first are chosen by their number.
const MORE_ROWS: usize = 17;
/// Number of keys that every device splits, so that the merge kernel runs too.
const MERGED_KEYS: usize = CHAIN + KEYS;

/// Kernels that were tried on a device, or are impossible to try.
#[derive(Clone, Debug, Default)]
pub struct TriedKernels(HashSet<KernelKey>);

/// Tiny problem that has kernels of a plan which were not tried yet.
#[derive(Debug)]
pub struct Canary {
    pub(super) problem: Problem,
    pub(super) plan: Plan,
    pub(super) data: TinyData,
    pub(super) pass: Pass,
    new: HashSet<KernelKey>,
}

/// Pass that a canary tries.
#[derive(Debug)]
pub(super) enum Pass {
    Attention,
    /// Gradients, from the oracle's results of the forward pass.
    Gradients {
        want: WantGradients,
        forward: Outputs,
        d_lse: Option<Vec<f32>>,
    },
}

impl TriedKernels {
    /// Returns a tiny problem with the new kernels of `plan`, which is of attention. `None`, and they count as tried, if
    /// there are none or no tiny problem has them. The arguments have been checked.
    pub fn of_attention(&mut self, plan: &Plan, problem: &Problem, caps: &DeviceCaps, algorithm: Algorithm) -> Result<Option<Canary>> {
        let has = |is_wanted: fn(Kernel) -> bool| plan.steps.iter().any(|step| is_wanted(step.key.kernel));
        let rows = if has(|kernel| matches!(kernel, Kernel::Scores(_) | Kernel::KeySums(_))) { MORE_ROWS } else { ROWS };
        let tiny = tiny(problem, plan, rows, if has(|kernel| kernel == Kernel::Merge) { MERGED_KEYS } else { KEYS });
        // A kernel that is asked for by name is specialised; devices have few generic ones, and all problems take the first.
        let kernel = Some(plan.kernel()).filter(|_| algorithm != Algorithm::Staged && !plan.key().generic);
        let plan_tiny = |caps: &DeviceCaps| tiny.check().and_then(|()| Plan::of(&tiny, caps, algorithm, kernel));
        let Some((new, tried)) = self.plan(plan, caps, plan_tiny) else { return Ok(None) };
        let data = TinyData::new(&tiny)?;
        Ok(Some(Canary { problem: tiny, plan: tried, data, pass: Pass::Attention, new }))
    }

    /// [`Self::of_attention`] for a plan of gradients.
    pub fn of_gradients(&mut self, plan: &Plan, problem: &Problem, want: &WantGradients, caps: &DeviceCaps) -> Result<Option<Canary>> {
        let tiny = tiny(problem, plan, KEYS, KEYS);
        // A tiny problem has no terms of the user's, and none of their tables.
        let want = WantGradients { term_tables: false, ..*want };
        let Some((new, tried)) = self.plan(plan, caps, |caps| Plan::backward(&tiny, &want, caps)) else { return Ok(None) };
        let data = TinyData::new(&tiny)?;
        let problem = Problem { want: Returns { stats: true, ..Returns::default() }, ..tiny.clone() };
        let inputs = data.inputs();
        let forward = oracle::attention(&problem, &inputs)?.into_outputs(&problem, &inputs);
        let d_lse = want.through_lse.then(|| vec![0.5; tiny.lse_len()]);
        Ok(Some(Canary { problem: tiny, plan: tried, data, pass: Pass::Gradients { want, forward, d_lse }, new }))
    }

    /// Adds the kernels of a canary whose answer was right.
    pub fn add(&mut self, canary: Canary) {
        self.0.extend(canary.new);
    }

    /// New kernels of `plan`, and a plan by `plan_tiny` that has some of them.
    fn plan(
        &mut self,
        plan: &Plan,
        caps: &DeviceCaps,
        plan_tiny: impl FnOnce(&DeviceCaps) -> Result<Plan>,
    ) -> Option<(HashSet<KernelKey>, Plan)> {
        let new = plan.steps.iter().map(|step| step.key.without_user_terms()).filter(|key| !self.0.contains(key));
        let new: HashSet<KernelKey> = new.collect();
        if new.is_empty() {
            return None;
        }
        // Force the variant of `plan`, because a problem this small would get the other one.
        let specialise = if plan.key().generic { Specialise::Never } else { Specialise::Always };
        match plan_tiny(&DeviceCaps { specialise, ..caps.clone() }) {
            Ok(tried) if tried.steps.iter().any(|step| new.contains(&step.key)) => Some((new, tried)),
            _ => {
                log::debug!("no tiny problem takes `{}`: not tried", plan.summary());
                self.0.extend(new);
                None
            }
        }
    }
}

impl Canary {
    /// Problem.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Plan of it.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Data of it.
    pub fn inputs(&self) -> Inputs<'_> {
        self.data.inputs()
    }

    /// Gradients that the plan computes, and what from; `None` if it computes attention.
    pub fn gradients(&self) -> Option<(&WantGradients, BackwardInputs<'_>)> {
        let Pass::Gradients { want, forward, d_lse } = &self.pass else { return None };
        let backward = BackwardInputs::new(&forward.output, &self.data.d_output);
        Some((want, BackwardInputs { stats: forward.stats.as_deref(), d_lse: d_lse.as_deref(), ..backward }))
    }

    /// True if outputs of the plan agree with the oracle's.
    pub fn agrees(&self, got: &Outputs) -> Result<bool> {
        let want = Returns { key_sums: self.problem.want.key_sums, ..Returns::default() };
        let plain = Problem { want, ..self.problem.clone() };
        let expected = oracle::attention(&plain, &self.data.inputs())?.into_outputs(&plain, &self.data.inputs());
        let sums = |of: &Outputs| HostVec::F32(of.key_sums.clone().unwrap_or_default());
        Ok(agrees(&got.output, &expected.output) && agrees(&sums(got), &sums(&expected)))
    }

    /// True if gradients of the plan agree with the oracle's.
    pub fn gradients_agree(&self, got: Gradients) -> Result<bool> {
        let Some((want, backward)) = self.gradients() else { return Ok(false) };
        let expected = oracle::gradients(&self.problem, &self.data.inputs(), backward.d_output, backward.d_lse)?;
        let expected = expected.into_gradients(&self.problem, want);
        // Terms are up to 1 times the scale, and cancel where one key is visible to a row: compare at their size. They are
        // computed from the output as it is stored.
        let from = self.problem.output.dtype;
        let least = self.problem.effective_scale().abs().max(1.0);
        let all = |of: Gradients| {
            let vectors = [of.bias, of.relative_bias, of.sinks].map(|vector| vector.map(HostVec::F32));
            [of.query, of.key, of.value].into_iter().chain(vectors)
        };
        Ok(all(got).zip(all(expected)).all(|pair| match pair {
            (Some(got), Some(expected)) => agrees_at(least, from, &got, &expected),
            (got, expected) => got.is_none() && expected.is_none(),
        }))
    }
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

/// Data of a tiny problem, and a gradient of its output.
#[derive(Debug)]
pub(super) struct TinyData {
    operands: [HostVec; 3],
    pub(super) d_output: HostVec,
    bias: Vec<f32>,
    mask: Vec<bool>,
    block_list: Vec<u32>,
    alibi_slopes: Vec<f32>,
    sinks: Vec<f32>,
    relative_bias: Vec<f32>,
}

impl TinyData {
    pub(super) fn new(problem: &Problem) -> Result<Self> {
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

    pub(super) fn inputs(&self) -> Inputs<'_> {
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
    use crate::plan::DeviceClass;

    #[test]
    fn every_variant_has_a_tiny_problem_until_it_is_tried() {
        let problem = Problem::new(Dims::self_attention(1, 2, 40, 32));
        let software = DeviceCaps { class: DeviceClass::Software, ..DeviceCaps::webgpu_defaults() };
        let lanes = DeviceCaps { subgroup_size: 4, subgroup_max: 4, ..software.clone() };
        let slow_barriers = DeviceCaps { slow_barriers: true, ..software.clone() };
        for caps in [DeviceCaps::webgpu_defaults(), software, lanes, slow_barriers] {
            for specialise in [Specialise::Never, Specialise::Always] {
                for algorithm in [Algorithm::Fused, Algorithm::Staged] {
                    let caps = DeviceCaps { specialise, ..caps.clone() };
                    let plan = Plan::new(&problem, &caps, algorithm).expect("planned");
                    let mut tried = TriedKernels::default();
                    let canary = tried.of_attention(&plan, &problem, &caps, algorithm).expect("planned");
                    tried.add(canary.unwrap_or_else(|| panic!("`{}` is not tried", plan.summary())));
                    assert!(tried.of_attention(&plan, &problem, &caps, algorithm).expect("planned").is_none());
                }
                let want = WantGradients::all(&problem);
                let plan = Plan::backward(&problem, &want, &caps).expect("planned");
                let canary = TriedKernels::default().of_gradients(&plan, &problem, &want, &caps).expect("planned");
                assert!(canary.is_some(), "`{}` is not tried", plan.summary());
            }
        }
    }
}
