//! Operators `MultiHeadAttention` and `GroupQueryAttention` of com.microsoft (ONNX Runtime).

use super::attention::{Attention, AttentionInputs, AttentionOutputs, Mask, Wanted, check_alike, join, past_len};
use super::{OwnedTensor, Tensor, four_axes};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::gpu::{Waiting, block_on};
use crate::layer::fold_broadcast;
use crate::numbers::HostVec;
use crate::problem::{Alignment, BroadcastShape, Dims, Inputs, Layout, Outputs, Problem};
use crate::progress::Progress;
use crate::rotary::{Pairing, Rotary};

/// Attributes of com.microsoft `MultiHeadAttention`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiHeadAttention {
    /// Number of heads, of query, key and value alike.
    pub num_heads: usize,
    /// Factor on the dot products; `None` or 0 is 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// True if causal: row i sees the past and the keys up to i.
    pub unidirectional: bool,
    /// Bias on the scores of keys that `key_padding_mask` marks with 0; -10000 by default. It does not mask them.
    pub mask_filter_value: f32,
}

impl MultiHeadAttention {
    /// Creates attributes with ONNX Runtime's defaults.
    pub const fn new(num_heads: usize) -> Self {
        Self { num_heads, scale: None, unidirectional: false, mask_filter_value: -10000.0 }
    }
}

/// Inputs of `MultiHeadAttention`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MultiHeadAttentionInputs<'a> {
    /// Query [batch, sequence_length, hidden].
    pub query: Tensor<'a>,
    /// Key [batch, kv_sequence_length, hidden].
    pub key: Tensor<'a>,
    /// Value [batch, kv_sequence_length, v_hidden].
    pub value: Tensor<'a>,
    /// Bias on query, key and value, [hidden + hidden + v_hidden].
    pub bias: Option<Tensor<'a>>,
    /// Padding mask [batch, total_sequence_length]: 0 = padding.
    pub key_padding_mask: Option<&'a [i32]>,
    /// Bias on the scores, [batch or 1, num_heads or 1, sequence_length, total_sequence_length].
    pub attention_bias: Option<Tensor<'a>>,
    /// Past keys [batch, num_heads, past_sequence_length, head_size].
    pub past_key: Option<Tensor<'a>>,
    /// Past values [batch, num_heads, past_sequence_length, v_head_size].
    pub past_value: Option<Tensor<'a>>,
}

impl<'a> MultiHeadAttentionInputs<'a> {
    /// Creates inputs with query, key and value only.
    pub fn new(query: Tensor<'a>, key: Tensor<'a>, value: Tensor<'a>) -> Self {
        Self { query, key, value, bias: None, key_padding_mask: None, attention_bias: None, past_key: None, past_value: None }
    }
}

impl MultiHeadAttention {
    /// Computes the node. Always returns present key and value.
    pub fn run(&self, inputs: &MultiHeadAttentionInputs<'_>, engine: &Engine) -> Result<AttentionOutputs> {
        block_on(self.run_on(inputs, engine, Waiting::Blocking), "onnx::MultiHeadAttention::run_async")
    }

    /// [`Self::run`] without blocking; see [`Engine::attention_async`].
    pub async fn run_async(&self, inputs: &MultiHeadAttentionInputs<'_>, engine: &Engine) -> Result<AttentionOutputs> {
        self.run_on(inputs, engine, Waiting::Async).await
    }

    async fn run_on(&self, inputs: &MultiHeadAttentionInputs<'_>, engine: &Engine, waiting: Waiting) -> Result<AttentionOutputs> {
        let attend = async |problem: &Problem, inputs: &Inputs<'_>| engine.run(problem, inputs, waiting, &mut Progress::default()).await;
        self.run_with(inputs, attend).await
    }

    /// [`Self::run`] with any function that computes attention.
    pub(crate) async fn run_with(
        &self,
        inputs: &MultiHeadAttentionInputs<'_>,
        attend: impl AsyncFn(&Problem, &Inputs<'_>) -> Result<Outputs>,
    ) -> Result<AttentionOutputs> {
        let heads = |argument, tensor: Tensor<'_>| three_axes(argument, tensor, self.num_heads);
        let shapes = [heads("query", inputs.query)?, heads("key", inputs.key)?, heads("value", inputs.value)?];
        let widths = shapes.map(|[_, heads, _, dim]| heads * dim);
        let bias = match inputs.bias {
            None => vec![],
            Some(bias) => {
                bias.check("bias")?;
                if bias.data.len() != widths.iter().sum::<usize>() {
                    return Err(Error::invalid("bias", format!("has {} numbers for query, key and value", bias.data.len())));
                }
                bias.to_f32()
            }
        };
        let part = |from: usize, len: usize| if bias.is_empty() { &[][..] } else { &bias[from..from + len] };
        let query = add_to_rows(inputs.query, part(0, widths[0]));
        let key = add_to_rows(inputs.key, part(widths[0], widths[1]));
        let value = add_to_rows(inputs.value, part(widths[0] + widths[1], widths[2]));
        let ([batch, _, seq_len, _], total) = (shapes[0], shapes[1][2] + inputs.past_key.map_or(0, past_len));
        let mut added = attention_bias(inputs.attention_bias, [batch, self.num_heads, seq_len, total])?;
        if let Some(mask) = inputs.key_padding_mask {
            if mask.len() != batch * total {
                let what = format!("a key_padding_mask of {} numbers for {batch} items of {total} keys", mask.len());
                return Err(Error::unsupported(what, "give one of shape [batch, total_sequence_length]"));
            }
            let padding: Vec<f32> = mask.iter().map(|&real| if real == 0 { self.mask_filter_value } else { 0.0 }).collect();
            let bias = added.as_ref().map(|(shape, bias)| (&bias[..], *shape));
            let parts: Vec<_> = bias.into_iter().chain([(&padding[..], [batch, 1, 1, total])]).collect();
            let (shape, sums) = fold_broadcast(&parts, total, 0.0, |sum, bias| sum + bias)?;
            added = Some((shape.0, sums));
        }
        let node = Attention {
            is_causal: self.unidirectional,
            q_num_heads: Some(self.num_heads),
            kv_num_heads: Some(self.num_heads),
            scale: self.scale.filter(|&scale| scale != 0.0),
            ..Attention::default()
        };
        let given = AttentionInputs {
            attn_mask: added.as_ref().map(|(shape, bias)| Mask::Float(Tensor { shape, data: bias.into() })),
            past_key: inputs.past_key,
            past_value: inputs.past_value,
            ..AttentionInputs::new(query.view(), key.view(), value.view())
        };
        node.run_with(&given, Wanted { present: true, ..Wanted::default() }, attend).await
    }
}

/// Attributes of com.microsoft `GroupQueryAttention`, which is always causal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupQueryAttention {
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key/value heads.
    pub kv_num_heads: usize,
    /// Factor on the dot products; `None` or 0 is 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// Bound on the scores by tanh; 0 disables it.
    pub softcap: f32,
    /// Number of keys that a row sees, its own included; `None` (ONNX Runtime: -1) is all.
    pub local_window_size: Option<u32>,
    /// True if the caches rotate query and key.
    pub do_rotary: bool,
    /// True if a rotated pair is two neighbours, false if it has one element of each half.
    pub rotary_interleaved: bool,
    /// True if every head has a sink of logit 0.
    pub smooth_softmax: bool,
}

impl GroupQueryAttention {
    /// Creates attributes with ONNX Runtime's defaults.
    pub const fn new(num_heads: usize, kv_num_heads: usize) -> Self {
        Self {
            num_heads,
            kv_num_heads,
            scale: None,
            softcap: 0.0,
            local_window_size: None,
            do_rotary: false,
            rotary_interleaved: false,
            smooth_softmax: false,
        }
    }
}

/// Inputs of `GroupQueryAttention`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupQueryAttentionInputs<'a> {
    /// Query [batch, sequence_length, num_heads * head_size].
    pub query: Tensor<'a>,
    /// Key [batch, sequence_length, kv_num_heads * head_size].
    pub key: Tensor<'a>,
    /// Value, like key.
    pub value: Tensor<'a>,
    /// Past keys [batch, kv_num_heads, capacity, head_size], the first `seqlens_k[b] + 1 - sequence_length` of item b.
    pub past_key: Option<Tensor<'a>>,
    /// Past values, like past_key.
    pub past_value: Option<Tensor<'a>>,
    /// Length of past and key together, less one, `[batch]`. Prompts of different lengths, without a past, are padded on their
    /// right: an item has so many rows, and what the output holds for the others has no meaning.
    pub seqlens_k: &'a [i32],
    /// Cosines [positions, head_size / 2], needed with `do_rotary`.
    pub cos_cache: Option<Tensor<'a>>,
    /// Sines, like cos_cache.
    pub sin_cache: Option<Tensor<'a>>,
    /// Bias on the scores, [batch or 1, num_heads or 1, sequence_length, total_sequence_length].
    pub attention_bias: Option<Tensor<'a>>,
    /// Sinks `[num_heads]`: one more logit per head in the denominator. They replace `smooth_softmax`.
    pub head_sink: Option<Tensor<'a>>,
}

impl GroupQueryAttention {
    /// Computes the node. Always returns present key and value, as long as the longest item.
    pub fn run(&self, inputs: &GroupQueryAttentionInputs<'_>, engine: &Engine) -> Result<AttentionOutputs> {
        block_on(self.run_on(inputs, engine, Waiting::Blocking), "onnx::GroupQueryAttention::run_async")
    }

    /// [`Self::run`] without blocking; see [`Engine::attention_async`].
    pub async fn run_async(&self, inputs: &GroupQueryAttentionInputs<'_>, engine: &Engine) -> Result<AttentionOutputs> {
        self.run_on(inputs, engine, Waiting::Async).await
    }

    async fn run_on(&self, inputs: &GroupQueryAttentionInputs<'_>, engine: &Engine, waiting: Waiting) -> Result<AttentionOutputs> {
        let attend = async |problem: &Problem, inputs: &Inputs<'_>| engine.run(problem, inputs, waiting, &mut Progress::default()).await;
        self.run_with(inputs, attend).await
    }

    /// [`Self::run`] with any function that computes attention.
    pub(crate) async fn run_with(
        &self,
        inputs: &GroupQueryAttentionInputs<'_>,
        attend: impl AsyncFn(&Problem, &Inputs<'_>) -> Result<Outputs>,
    ) -> Result<AttentionOutputs> {
        let q = three_axes("query", inputs.query, self.num_heads)?;
        let k = three_axes("key", inputs.key, self.kv_num_heads)?;
        let v = three_axes("value", inputs.value, self.kv_num_heads)?;
        check_alike(q, k, v)?;
        let [batch, _, seq, dim] = q;
        if k[2] != seq {
            return Err(Error::invalid("key", format!("has {} rows, the query has {seq}", k[2])));
        }
        let lengths = self.lengths(inputs.seqlens_k, batch, seq)?;
        let rotary = self.rotary(inputs, dim / 2)?;
        let firsts = lengths.iter().map(|&length| (length as usize).saturating_sub(seq));
        let positions: Vec<usize> = firsts.flat_map(|first| first..first + seq).collect();
        let rotate = |tensor: Tensor<'_>, heads: usize| -> Result<OwnedTensor> {
            let mut data = tensor.to_f32();
            if let Some(rotary) = &rotary {
                rotary.apply_tokens(&mut data, heads, dim, &positions)?;
            }
            Ok(OwnedTensor { shape: tensor.shape.to_vec(), data: HostVec::from_f32(tensor.data.dtype(), &data) })
        };
        let (query, key) = (rotate(inputs.query, q[1])?, rotate(inputs.key, k[1])?);
        let present_key = join_ragged("past_key", inputs.past_key, key.view(), k, &lengths)?;
        let present_value = join_ragged("past_value", inputs.past_value, inputs.value, v, &lengths)?;
        let sinks = match inputs.head_sink {
            Some(sinks) => sinks.to_f32(),
            None if self.smooth_softmax => vec![0.0; self.num_heads],
            None => vec![],
        };
        let node = Attention {
            is_causal: true,
            q_num_heads: Some(self.num_heads),
            scale: self.scale.filter(|&scale| scale != 0.0),
            softcap: self.softcap,
            left_window_size: self.local_window_size.map(|size| size.saturating_sub(1)),
            ..Attention::default()
        };
        let bias = attention_bias(inputs.attention_bias, [batch, self.num_heads, seq, present_key.shape[2]])?;
        let nonpad: Vec<i64> = lengths.iter().map(|&length| length.into()).collect();
        let given = AttentionInputs {
            attn_mask: bias.as_ref().map(|(shape, bias)| Mask::Float(Tensor { shape, data: bias.into() })),
            nonpad_kv_seqlen: Some(&nonpad),
            ..AttentionInputs::new(query.view(), present_key.view(), present_value.view())
        };
        let is_prompt = lengths.iter().all(|&length| length as usize <= seq);
        let with_sinks = async |problem: &Problem, inputs: &Inputs<'_>| {
            let mut problem = Problem { sinks: !sinks.is_empty(), ..problem.clone() };
            if is_prompt {
                problem.visibility.alignment = Some(Alignment::TopLeft);
            }
            attend(&problem, &Inputs { sinks: &sinks, ..*inputs }).await
        };
        let outputs = node.run_with(&given, Wanted::default(), with_sinks).await?;
        Ok(AttentionOutputs { present_key: Some(present_key), present_value: Some(present_value), ..outputs })
    }

    /// Total number of keys of each item: at least a row's for each row, or at most that in a prompt padded on its right.
    fn lengths(&self, seqlens_k: &[i32], batch: usize, seq: usize) -> Result<Vec<u32>> {
        if seqlens_k.len() != batch {
            return Err(Error::invalid("seqlens_k", format!("has {} numbers for {batch} items", seqlens_k.len())));
        }
        let length = |&last: &i32| {
            u32::try_from(i64::from(last) + 1).map_err(|_| Error::invalid("seqlens_k", format!("{last} is no length less one")))
        };
        let lengths: Vec<u32> = seqlens_k.iter().map(length).collect::<Result<_>>()?;
        let (is_shorter, is_longer) = (|&length: &u32| (length as usize) < seq, |&length: &u32| length as usize > seq);
        if lengths.iter().any(is_shorter) && lengths.iter().any(is_longer) {
            return Err(Error::unsupported(
                format!("{seq} rows for items of {lengths:?} keys, some with a past and some padded"),
                "run prompts that are padded on their right apart from items that continue a past",
            ));
        }
        Ok(lengths)
    }

    fn rotary(&self, inputs: &GroupQueryAttentionInputs<'_>, pairs: usize) -> Result<Option<Rotary>> {
        if !self.do_rotary {
            return Ok(None);
        }
        let (Some(cos), Some(sin)) = (inputs.cos_cache, inputs.sin_cache) else {
            return Err(Error::invalid("cos_cache", "do_rotary needs cos_cache and sin_cache"));
        };
        let width = cos.shape.last().copied().unwrap_or(0);
        if width > pairs {
            return Err(Error::invalid("cos_cache", format!("has shape {:?}, but a head has {pairs} pairs", cos.shape)));
        }
        let pairing = if self.rotary_interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
        Rotary::from_tables(pairing, width, cos.to_f32(), sin.to_f32()).map(Some)
    }
}

/// Sizes of [batch, seq, heads * dim] as [batch, heads, seq, dim].
fn three_axes(argument: &'static str, tensor: Tensor<'_>, heads: usize) -> Result<[usize; 4]> {
    if tensor.shape.len() != 3 {
        let what = format!("`{argument}` of shape {:?}", tensor.shape);
        return Err(Error::unsupported(what, "give query, key and value as [batch, sequence, hidden] each"));
    }
    tensor.heads(argument, Some(heads)).map(|(shape, _)| shape)
}

/// Adds `bias` to every row of the last axis, or nothing if it is empty.
fn add_to_rows(tensor: Tensor<'_>, bias: &[f32]) -> OwnedTensor {
    let mut data = tensor.to_f32();
    if !bias.is_empty() {
        data.chunks_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
    }
    OwnedTensor { shape: tensor.shape.to_vec(), data: HostVec::from_f32(tensor.data.dtype(), &data) }
}

/// Bias on scores of this shape, to which it broadcasts, with its last axis whole.
fn attention_bias(bias: Option<Tensor<'_>>, scores: [usize; 4]) -> Result<Option<([usize; 4], Vec<f32>)>> {
    let Some(bias) = bias else { return Ok(None) };
    bias.check("attention_bias")?;
    let (mut shape, mut data) = (four_axes("attention_bias", bias.shape)?, bias.to_f32());
    let [batch, num_heads, seq_len, total] = scores;
    let dims = Dims { seq_len_kv: total, ..Dims::self_attention(batch, num_heads, seq_len, 0) };
    BroadcastShape(shape).check("attention_bias", &dims)?;
    if shape[3] == 1 {
        data = data.into_iter().flat_map(|x| std::iter::repeat_n(x, total)).collect();
        shape[3] = total;
    }
    Ok(Some((shape, data)))
}

/// Joins the used part of `past`, the used part of `new`, and zeros up to the longest item, per item: [batch, heads, longest, dim].
fn join_ragged(
    argument: &'static str,
    past: Option<Tensor<'_>>,
    new: Tensor<'_>,
    shape: [usize; 4],
    lengths: &[u32],
) -> Result<OwnedTensor> {
    let [_, heads, seq, dim] = shape;
    // All rows joined: those of an item are at 0.. and at capacity..capacity + seq.
    let all = join(argument, past, new, shape, Layout::Bshd)?;
    let rows = all.shape[2];
    let capacity = rows - seq;
    let longest = lengths.iter().max().map_or(0, |&length| length as usize);
    if longest.saturating_sub(seq) > capacity {
        return Err(Error::invalid(argument, format!("has room for {capacity} keys; seqlens_k needs {}", longest - seq)));
    }
    let data = all.data.to_f32();
    let mut ragged = Vec::with_capacity(lengths.len() * heads * longest * dim);
    for (item, &length) in lengths.iter().enumerate() {
        for head in 0..heads {
            let from = (item * heads + head) * rows;
            let row = |at: usize| (from + at) * dim;
            let (length, past) = (length as usize, (length as usize).saturating_sub(seq));
            ragged.extend_from_slice(&data[row(0)..row(past)]);
            ragged.extend_from_slice(&data[row(capacity)..row(capacity + length - past)]);
            ragged.extend(std::iter::repeat_n(0.0, (longest - length) * dim));
        }
    }
    Ok(OwnedTensor { shape: vec![lengths.len(), heads, longest, dim], data: HostVec::from_f32(new.data.dtype(), &ragged) })
}
