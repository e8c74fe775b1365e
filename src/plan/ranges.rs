//! Keys and values that are more than one binding can have: bound and computed in parts.
//!
//! A part is a range of (item, key/value head) pairs and a range of keys. Parts of different pairs write different rows; parts of different
//! keys are partial results, merged by their lse as splits of the keys are. A kernel counts items, heads and keys as ever: a part's
//! workgroups are those of its pairs, its keys are cut down to its range, and its offset in the buffer is counted from its binding.

use std::ops::Range;

use super::{DeviceCaps, Plan, Step, check_bytes};
use crate::problem::Operand;
use crate::shader::{Kernel, Params, Slot};
use crate::{Problem, Result};

/// What a binding has of key or value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bound {
    /// Bytes of the buffer.
    pub(crate) bytes: Range<u64>,
    /// Elements in front of them.
    first: usize,
}

#[derive(Clone, Debug)]
struct Part {
    pairs: Range<usize>,
    keys: Range<usize>,
    bound: [Bound; 2],
}

/// How many ranges the keys go into; an error where no part would fit.
pub(super) fn key_ranges(problem: &Problem, caps: &DeviceCaps) -> Result<usize> {
    Ok(parts(problem, caps)?.map_or(1, |(ranges, _)| ranges))
}

/// Makes a fused plan of one that binds keys and values whole. Where the keys go into several ranges, the plan has splits.
pub(super) fn cut_to_bindings(problem: &Problem, caps: &DeviceCaps, mut plan: Plan) -> Result<Plan> {
    let Some((ranges, parts)) = parts(problem, caps)? else { return Ok(plan) };
    let splits = plan.steps.first().map_or(1, |step| step.params.splits);
    if ranges > 1 {
        plan.scratch.iter_mut().for_each(|bytes| *bytes *= ranges as u64);
        plan.scratch.iter().try_for_each(|&bytes| check_bytes("partial outputs", bytes, caps))?;
    }
    let steps = std::mem::take(&mut plan.steps);
    for step in steps {
        if step.key.kernel == Kernel::Merge {
            plan.steps.push(Step { params: Params { splits: splits * ranges as u32, ..step.params }, ..step });
            continue;
        }
        let workgroups = step.params.end_workgroup / (problem.dims.batch * problem.dims.num_kv_heads) as u32;
        let longest = parts.iter().map(|part| part.keys.len()).max().unwrap_or(1);
        for part in &parts {
            let mut params = step.params;
            params.first_workgroup = part.pairs.start as u32 * workgroups;
            params.end_workgroup = part.pairs.end as u32 * workgroups;
            (params.key_start, params.key_end) = (part.keys.start as u32, part.keys.end as u32);
            params.first_part = (part.keys.start / longest) as u32 * splits;
            for (offset, bound) in params.offsets[1..].iter_mut().zip(&part.bound) {
                *offset = offset.wrapping_sub(bound.first as u32);
            }
            let share = (part.pairs.len() * part.keys.len()) as f64;
            let all = (problem.dims.batch * problem.dims.num_kv_heads * problem.dims.seq_len_kv) as f64;
            plan.steps.push(Step { params, bound: Some(part.bound.clone()), flops: step.flops * share / all, ..step.clone() });
        }
    }
    plan.summary = format!("{}, {} bindings of keys in {ranges} ranges", plan.summary, parts.len());
    Ok(plan)
}

/// The parts, as few as can be, and how many ranges the keys go into; `None` where keys and values fit whole.
fn parts(problem: &Problem, caps: &DeviceCaps) -> Result<Option<(usize, Vec<Part>)>> {
    let bytes = |operand| problem.spec(operand).dtype.bytes(problem.operand_len(operand)) as u64;
    let sizes = [Operand::Key, Operand::Value].map(bytes);
    if sizes.iter().all(|&bytes| bytes <= caps.binding_bytes) {
        return Ok(None);
    }
    let too_large = || check_bytes("key", sizes[0], caps).and(check_bytes("value", sizes[1], caps)).map(|()| None);
    if problem.paged.is_some() || problem.packed.is_some() {
        return too_large();
    }
    let (pairs, keys) = (problem.dims.batch * problem.dims.num_kv_heads, problem.dims.seq_len_kv);
    let halves = |whole: usize| (0..usize::BITS).map(move |n| whole.div_ceil(1 << n)).take_while(|&part| part > 1).chain([1]);
    // Of equally many, the parts that need the least merging.
    let mut best: Option<((usize, usize), Vec<Part>)> = None;
    for per_pairs in halves(pairs) {
        for per_keys in halves(keys) {
            let ranges = keys.div_ceil(per_keys);
            let cost = (pairs.div_ceil(per_pairs) * ranges, ranges);
            if best.as_ref().is_none_or(|(least, _)| cost < *least)
                && let Some(parts) = all_parts(problem, caps, per_pairs, per_keys)
            {
                best = Some((cost, parts));
            }
        }
    }
    best.map_or_else(too_large, |((_, ranges), parts)| Ok(Some((ranges, parts))))
}

/// Parts of so many pairs and keys, if they fit.
fn all_parts(problem: &Problem, caps: &DeviceCaps, per_pairs: usize, per_keys: usize) -> Option<Vec<Part>> {
    let (pairs, keys) = (problem.dims.batch * problem.dims.num_kv_heads, problem.dims.seq_len_kv);
    let mut parts = Vec::new();
    for first_key in (0..keys).step_by(per_keys) {
        for first_pair in (0..pairs).step_by(per_pairs) {
            let (pairs, keys) = (first_pair..pairs.min(first_pair + per_pairs), first_key..keys.min(first_key + per_keys));
            let [Some(key), Some(value)] = [Operand::Key, Operand::Value].map(|operand| bind(problem, caps, operand, &pairs, &keys)) else {
                return None;
            };
            parts.push(Part { pairs, keys, bound: [key, value] });
        }
    }
    Some(parts)
}

/// The binding with these pairs and keys, if it is small enough.
fn bind(problem: &Problem, caps: &DeviceCaps, operand: Operand, pairs: &Range<usize>, keys: &Range<usize>) -> Option<Bound> {
    let spec = problem.spec(operand);
    let shape = problem.shape(operand);
    let strides = spec.strides(shape);
    let start = |pair: usize| spec.offset + pair / shape[1] * strides.batch + pair % shape[1] * strides.head;
    let first = pairs.clone().map(start).min()? + keys.start * strides.seq;
    let last = pairs.clone().map(start).max()? + (keys.end - 1) * strides.seq + (shape[3] - 1) * strides.dim;
    // Whole vec4s, whole blocks, and what a binding must begin at: 64 blocks are a multiple of 256 bytes, as 256 numbers are.
    let unit = if spec.dtype.is_blocks() { 64 * crate::blocks::BLOCK } else { caps.storage_alignment.max(256) as usize };
    let first = first / unit * unit;
    let bytes = spec.dtype.bytes(first) as u64..spec.dtype.bytes((last + 1).next_multiple_of(4)) as u64;
    (bytes.end - bytes.start <= caps.binding_bytes).then_some(Bound { bytes, first })
}

/// Which of a step's bindings a slot has.
pub(crate) fn of_slot(bound: Option<&[Bound; 2]>, slot: Slot) -> Option<&Bound> {
    match slot {
        Slot::Key => bound.map(|bound| &bound[0]),
        Slot::Value => bound.map(|bound| &bound[1]),
        _ => None,
    }
}
