//! Fused kernels in steps over parts of the keys, where a binding or an invocation cannot take all of them.
//!
//! A part is a range of (item, key/value head) pairs and a range of keys. Parts of different pairs write different
//! rows; parts of the same pairs run in order, each merged into the (m, l, output / l) of those before. Kernels do not
//! change: a part runs the workgroups of its pairs, clamps keys to its range, and rebases `offsets` to its binding.

use std::ops::Range;

use super::DeviceCaps;
use super::limits::check_bytes;
use crate::error::Result;
use crate::problem::{Operand, Problem};
use crate::wgsl::{Flags, Params, Slot};

/// Range of key or value that is bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BindingRange {
    /// Range of bytes in the buffer.
    pub(crate) bytes: Range<u64>,
    /// Elements in front of the range.
    first: usize,
}

/// Range of pairs and range of keys that one step computes.
#[derive(Clone, Debug)]
pub(super) struct KeyRange {
    pairs: Range<usize>,
    keys: Range<usize>,
    /// Ranges of key and value that are bound; `None` binds both whole.
    pub(super) bound: Option<[BindingRange; 2]>,
    /// Number of earlier parts of the same pairs.
    pub(super) turn: usize,
}

/// Splits `problem` into parts of at most `most_keys` keys, in order; an error where not even one key can be bound.
pub(super) fn parts(problem: &Problem, caps: &DeviceCaps, most_keys: usize) -> Result<Vec<KeyRange>> {
    let keys = problem.dims.seq_len_kv;
    let all = KeyRange { pairs: 0..problem.dims.batch * problem.dims.num_kv_heads, keys: 0..keys, bound: None, turn: 0 };
    let whole = bindings(problem, caps)?.unwrap_or_else(|| vec![all]);
    let ranges_before = |part: &KeyRange| {
        whole
            .iter()
            .filter(|other| other.pairs == part.pairs && other.keys.end <= part.keys.start)
            .map(|other| other.keys.len().div_ceil(most_keys.max(1)))
            .sum::<usize>()
    };
    let mut parts = Vec::new();
    for part in &whole {
        let first_turn = ranges_before(part);
        let starts = part.keys.clone().step_by(most_keys.max(1));
        parts.extend(starts.enumerate().map(|(turn, start)| KeyRange {
            keys: start..part.keys.end.min(start + most_keys),
            turn: first_turn + turn,
            ..part.clone()
        }));
    }
    if parts.is_empty() { Ok(whole) } else { Ok(parts) }
}

/// Returns params, share of the work and bindings of each part. (m, l) of the `rows` rows alternate between two places,
/// so that no part reads what it writes.
pub(super) fn of_parts(
    problem: &Problem,
    params: Params,
    parts: &[KeyRange],
    rows: usize,
) -> Vec<(Params, f64, Option<[BindingRange; 2]>)> {
    if let [_] = parts {
        return vec![(params, 1.0, None)];
    }
    let pairs = problem.dims.batch * problem.dims.num_kv_heads;
    // Varlen sequences are never bound in parts.
    let workgroups = if problem.varlen.is_some() { 0 } else { params.end_workgroup / pairs as u32 };
    let all = (pairs * problem.dims.seq_len_kv) as f64;
    let place = |turn: usize| if turn.is_multiple_of(2) { 0 } else { rows as u32 };
    let of_part = |part: &KeyRange| {
        let mut params = params;
        if part.pairs.len() < pairs {
            params.first_workgroup = part.pairs.start as u32 * workgroups;
            params.end_workgroup = part.pairs.end as u32 * workgroups;
        }
        (params.range_start, params.range_end) = (part.keys.start as u32, part.keys.end as u32);
        (params.stats_to, params.stats_from) = (place(part.turn), place(part.turn + 1));
        params.flags |= if part.turn > 0 { Flags::ADDS } else { 0 };
        for (offset, bound) in params.offsets[1..].iter_mut().zip(part.bound.iter().flatten()) {
            *offset = offset.wrapping_sub(bound.first as u32);
        }
        (params, (part.pairs.len() * part.keys.len()) as f64 / all, part.bound.clone())
    };
    parts.iter().map(of_part).collect()
}

/// Returns the fewest parts that can be bound; `None` where key and value can be bound whole.
fn bindings(problem: &Problem, caps: &DeviceCaps) -> Result<Option<Vec<KeyRange>>> {
    let bytes = |operand| problem.spec(operand).dtype.bytes(problem.operand_len(operand)) as u64;
    let sizes = [Operand::Key, Operand::Value].map(bytes);
    if sizes.iter().all(|&bytes| bytes <= caps.binding_bytes) {
        return Ok(None);
    }
    let too_large = || check_bytes("key", sizes[0], caps).and(check_bytes("value", sizes[1], caps)).map(|()| None);
    if problem.paged.is_some() || problem.varlen.is_some() {
        return too_large();
    }
    let (pairs, keys) = (problem.dims.batch * problem.dims.num_kv_heads, problem.dims.seq_len_kv);
    let halves = |whole: usize| (0..usize::BITS).map(move |n| whole.div_ceil(1 << n)).take_while(|&part| part > 1).chain([1]);
    // Among equally many parts, those with the fewest ranges of keys need the least merging.
    let mut best: Option<((usize, usize), Vec<KeyRange>)> = None;
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
    best.map_or_else(too_large, |(_, parts)| Ok(Some(parts)))
}

/// Returns parts of at most `per_pairs` pairs and `per_keys` keys; `None` where one of them cannot be bound.
fn all_parts(problem: &Problem, caps: &DeviceCaps, per_pairs: usize, per_keys: usize) -> Option<Vec<KeyRange>> {
    let (pairs, keys) = (problem.dims.batch * problem.dims.num_kv_heads, problem.dims.seq_len_kv);
    let mut parts = Vec::new();
    for first_key in (0..keys).step_by(per_keys) {
        for first_pair in (0..pairs).step_by(per_pairs) {
            let (pairs, keys) = (first_pair..pairs.min(first_pair + per_pairs), first_key..keys.min(first_key + per_keys));
            let [Some(key), Some(value)] = [Operand::Key, Operand::Value].map(|operand| bind(problem, caps, operand, &pairs, &keys)) else {
                return None;
            };
            parts.push(KeyRange { pairs, keys, bound: Some([key, value]), turn: 0 });
        }
    }
    Some(parts)
}

/// Returns the range of `operand` that holds `pairs` and `keys`; `None` where it is too large to be bound.
fn bind(problem: &Problem, caps: &DeviceCaps, operand: Operand, pairs: &Range<usize>, keys: &Range<usize>) -> Option<BindingRange> {
    let spec = problem.spec(operand);
    let shape = problem.shape(operand);
    let strides = spec.strides(shape);
    let start = |pair: usize| spec.offset + pair / shape[1] * strides.batch + pair % shape[1] * strides.head;
    let first = pairs.clone().map(start).min()? + keys.start * strides.seq;
    let last = pairs.clone().map(start).max()? + (keys.end - 1) * strides.seq + (shape[3] - 1) * strides.dim;
    // Starts at whole vec4s, whole blocks and the alignment of bindings: 64 blocks or 256 elements are whole 256 bytes.
    let unit = if spec.dtype.is_quantised() { 64 * crate::numbers::BLOCK } else { caps.storage_alignment.max(256) as usize };
    let first = first / unit * unit;
    let bytes = spec.dtype.bytes(first) as u64..spec.dtype.bytes((last + 1).next_multiple_of(4)) as u64;
    (bytes.end - bytes.start <= caps.binding_bytes).then_some(BindingRange { bytes, first })
}

/// Returns the range that a step binds to `slot`; `None` where it binds the whole buffer.
pub(crate) fn of_slot(bound: Option<&[BindingRange; 2]>, slot: Slot) -> Option<&BindingRange> {
    match slot {
        Slot::Key => bound.map(|bound| &bound[0]),
        Slot::Value => bound.map(|bound| &bound[1]),
        _ => None,
    }
}
