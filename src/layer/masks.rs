//! The two masks of PyTorch merged into the mask and the bias of a problem, and the mean over heads.

use crate::error::{Error, Result};
use crate::problem::{BroadcastShape, Dims};

/// Mask of `nn.MultiheadAttention`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TorchMask<'a> {
    /// Boolean mask: true = **masked**, the opposite of [`crate::Visibility::mask`].
    Bool(&'a [bool]),
    /// Additive mask; -inf masks a key.
    Float(&'a [f32]),
}

impl TorchMask<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Bool(mask) => mask.len(),
            Self::Float(bias) => bias.len(),
        }
    }
}

/// Mask and bias of a problem, with their data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MergedMasks {
    /// Mask, for [`crate::Visibility::mask`] and [`crate::Inputs::mask`].
    pub mask: Option<(BroadcastShape, Vec<bool>)>,
    /// Bias, for [`crate::Problem::bias`] and [`crate::Inputs::bias`].
    pub bias: Option<(BroadcastShape, Vec<f32>)>,
}

/// Merges `key_padding_mask` [batch, S] with `attn_mask` [seq_len_q, S] or [batch * num_heads, seq_len_q, S]. S is
/// `dims.seq_len_kv` less the `appended` keys at the end, which the masks do not cover: they stay visible, unbiased.
pub fn merge_torch_masks(
    dims: &Dims,
    appended: usize,
    key_padding_mask: Option<TorchMask<'_>>,
    attn_mask: Option<TorchMask<'_>>,
) -> Result<MergedMasks> {
    let [batch, heads, rows, keys] = dims.scores_shape();
    let Some(own_keys) = keys.checked_sub(appended) else {
        return Err(Error::invalid("appended", format!("{appended} keys appended, but seq_len_kv is {keys}")));
    };
    let mut parts = Vec::new();
    if let Some(mask) = key_padding_mask {
        parts.push(("key_padding_mask", mask, [batch, 1, 1, own_keys]));
    }
    if let Some(mask) = attn_mask {
        let full = [batch, heads, rows, own_keys];
        parts.push(("attn_mask", mask, if elements(full) == Some(mask.len()) { full } else { [1, 1, rows, own_keys] }));
    }
    let (mut masked, mut added) = (Vec::new(), Vec::new());
    for (argument, mask, shape) in parts {
        if elements(shape) != Some(mask.len()) {
            return Err(Error::invalid(argument, format!("has {} elements, must have {shape:?} (or one per head)", mask.len())));
        }
        match mask {
            TorchMask::Bool(mask) => masked.push((mask, shape)),
            TorchMask::Float(bias) => added.push((bias, shape)),
        }
    }
    let mask = || fold_broadcast(&masked, keys, true, |visible, masked| visible && !masked);
    let bias = || fold_broadcast(&added, keys, 0.0, |sum, bias| sum + bias);
    Ok(MergedMasks { mask: (!masked.is_empty()).then(mask).transpose()?, bias: (!added.is_empty()).then(bias).transpose()? })
}

fn elements(shape: [usize; 4]) -> Option<usize> {
    BroadcastShape(shape).elements()
}

/// Folds tensors of broadcasting shapes into one over `keys` keys. Keys that a tensor lacks keep `start`.
pub(crate) fn fold_broadcast<T: Copy>(
    parts: &[(&[T], [usize; 4])],
    keys: usize,
    start: T,
    fold: impl Fn(T, T) -> T,
) -> Result<(BroadcastShape, Vec<T>)> {
    let mut shape = [1, 1, 1, keys];
    for (_, part) in parts {
        for axis in 0..3 {
            shape[axis] = shape[axis].max(part[axis]);
        }
    }
    let Some(len) = elements(shape) else { return Err(Error::invalid("mask", format!("shape {shape:?} overflows"))) };
    let mut merged = vec![start; len];
    for &(part, part_shape) in parts {
        if part.is_empty() {
            continue;
        }
        let own_keys = part_shape[3];
        for (row, merged) in merged.chunks_exact_mut(keys).enumerate() {
            let index = [row / (shape[1] * shape[2]), row / shape[2] % shape[1], row % shape[2]];
            let part_row = (0..3).fold(0, |at, axis| at * part_shape[axis] + if part_shape[axis] == 1 { 0 } else { index[axis] });
            for (merged, &part) in merged.iter_mut().zip(&part[part_row * own_keys..][..own_keys]) {
                *merged = fold(*merged, part);
            }
        }
    }
    Ok((BroadcastShape(shape), merged))
}

/// Mean over heads of weights [batch, num_heads, seq_len_q, seq_len_kv]. Returns [batch, seq_len_q, seq_len_kv], as
/// PyTorch's `average_attn_weights` does.
pub fn average_heads(weights: &[f32], dims: &Dims) -> Result<Vec<f32>> {
    let [batch, heads, rows, keys] = dims.scores_shape();
    if elements([batch, heads, rows, keys]) != Some(weights.len()) {
        return Err(Error::invalid("weights", format!("has {} elements, must have {:?}", weights.len(), dims.scores_shape())));
    }
    let plane = rows * keys;
    let mean = |b: usize, at: usize| (0..heads).map(|h| weights[(b * heads + h) * plane + at]).sum::<f32>() / heads as f32;
    Ok((0..batch).flat_map(|b| (0..plane).map(move |at| mean(b, at))).collect())
}
