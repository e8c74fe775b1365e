//! Operator `Attention` of ONNX.

use super::{OwnedTensor, Tensor, check_shape, four_axes};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::gpu::{Waiting, block_on};
use crate::layer::fold_broadcast;
use crate::numbers::HostVec;
use crate::problem::{Alignment, BroadcastShape, Dims, Inputs, Layout, Outputs, Problem, ScoreStage, TensorSpec, Visibility};
use crate::progress::Progress;

/// Attributes of ONNX `Attention`, opsets 23 to 25.
///
/// ```text
/// Y = softmax(softcap(scale * Q K^T) + attn_mask, over the visible keys) V
/// ```
///
/// Row i has the position i + past_sequence_length, or with `nonpad_kv_seqlen` and no past
/// i + nonpad_kv_seqlen\[batch\] - q_sequence_length. `is_causal` and the windows count from it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Attention {
    /// True if keys after a row's position are masked.
    pub is_causal: bool,
    /// Number of query heads, needed for inputs of 3 axes.
    pub q_num_heads: Option<usize>,
    /// Number of key/value heads, needed for inputs of 3 axes.
    pub kv_num_heads: Option<usize>,
    /// Factor on the dot products; `None` is 1/sqrt(head_dim).
    pub scale: Option<f32>,
    /// Bound on the scores by tanh; 0 disables it.
    pub softcap: f32,
    /// Stage of `qk_matmul_output`: 0 scaled dot products, 1 after softcap, 2 after the mask, 3 softmax weights.
    pub qk_matmul_output_mode: u8,
    /// Type of the softmax by ONNX number: 1 (f32), 10 (f16), 11 (f64) or 16 (bf16). It is always computed in f32.
    pub softmax_precision: Option<i32>,
    /// Distance before the position beyond which keys are masked; `None` (ONNX: -1) is open.
    pub left_window_size: Option<u32>,
    /// Distance after the position beyond which keys are masked; `None` (ONNX: -1) is open.
    pub right_window_size: Option<u32>,
}

/// Attention mask (`attn_mask`): 1 to 4 axes that broadcast from the right to
/// [batch, q_num_heads, q_sequence_length, total_sequence_length]. Keys past a shorter last axis are masked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mask<'a> {
    /// Boolean mask: true = may attend.
    Bool {
        /// Shape of the mask.
        shape: &'a [usize],
        /// Elements of the mask.
        data: &'a [bool],
    },
    /// Additive mask; -inf masks a key.
    Float(Tensor<'a>),
}

/// Inputs of `Attention`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionInputs<'a> {
    /// Q: [batch, q_num_heads, q_sequence_length, head_size] or [batch, q_sequence_length, q_num_heads * head_size].
    pub query: Tensor<'a>,
    /// K: [batch, kv_num_heads, kv_sequence_length, head_size], or 3 axes like Q.
    pub key: Tensor<'a>,
    /// V: [batch, kv_num_heads, kv_sequence_length, v_head_size], or 3 axes like Q.
    pub value: Tensor<'a>,
    /// Boolean or additive mask.
    pub attn_mask: Option<Mask<'a>>,
    /// Past keys, before K: [batch, kv_num_heads, past_sequence_length, head_size].
    pub past_key: Option<Tensor<'a>>,
    /// Past values, before V: [batch, kv_num_heads, past_sequence_length, v_head_size].
    pub past_value: Option<Tensor<'a>>,
    /// Number of keys of each item that are not padding, `[batch]`.
    pub nonpad_kv_seqlen: Option<&'a [i64]>,
}

impl<'a> AttentionInputs<'a> {
    /// Creates inputs with Q, K and V only.
    pub fn new(query: Tensor<'a>, key: Tensor<'a>, value: Tensor<'a>) -> Self {
        Self { query, key, value, attn_mask: None, past_key: None, past_value: None, nonpad_kv_seqlen: None }
    }
}

/// Optional outputs to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// True to return present_key and present_value.
    pub present: bool,
    /// True to return qk_matmul_output.
    pub qk_matmul_output: bool,
}

/// Outputs of `Attention` and related operators.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOutputs {
    /// Y, with as many axes as Q.
    pub output: OwnedTensor,
    /// Past keys followed by K: [batch, kv_num_heads, total_sequence_length, head_size].
    pub present_key: Option<OwnedTensor>,
    /// Past values followed by V: [batch, kv_num_heads, total_sequence_length, v_head_size].
    pub present_value: Option<OwnedTensor>,
    /// Scores or weights [batch, q_num_heads, q_sequence_length, total_sequence_length], stored as Q is.
    pub qk_matmul_output: Option<OwnedTensor>,
}

impl Attention {
    /// Computes the node.
    pub fn run(&self, inputs: &AttentionInputs<'_>, wanted: Wanted, engine: &Engine) -> Result<AttentionOutputs> {
        block_on(self.run_on(inputs, wanted, engine, Waiting::Blocking), "onnx::Attention::run_async")
    }

    /// [`Self::run`] without blocking; see [`Engine::attention_async`].
    pub async fn run_async(&self, inputs: &AttentionInputs<'_>, wanted: Wanted, engine: &Engine) -> Result<AttentionOutputs> {
        self.run_on(inputs, wanted, engine, Waiting::Async).await
    }

    async fn run_on(&self, inputs: &AttentionInputs<'_>, wanted: Wanted, engine: &Engine, waiting: Waiting) -> Result<AttentionOutputs> {
        let attend = async |problem: &Problem, inputs: &Inputs<'_>| engine.run(problem, inputs, waiting, &mut Progress::default()).await;
        self.run_with(inputs, wanted, attend).await
    }

    /// [`Self::run`] with any function that computes attention.
    pub(crate) async fn run_with(
        &self,
        inputs: &AttentionInputs<'_>,
        wanted: Wanted,
        attend: impl AsyncFn(&Problem, &Inputs<'_>) -> Result<Outputs>,
    ) -> Result<AttentionOutputs> {
        self.check()?;
        let (q, q_layout) = inputs.query.heads("Q", self.q_num_heads)?;
        let (k, k_layout) = inputs.key.heads("K", self.kv_num_heads)?;
        let (v, v_layout) = inputs.value.heads("V", self.kv_num_heads)?;
        check_alike(q, k, v)?;
        let past = inputs.past_key.map_or(0, past_len);
        let total = past + k[2];
        let together = wanted.present || inputs.past_key.is_some() || inputs.past_value.is_some();
        let present_key = together.then(|| join("past_key", inputs.past_key, inputs.key, k, k_layout)).transpose()?;
        let present_value = together.then(|| join("past_value", inputs.past_value, inputs.value, v, v_layout)).transpose()?;
        if present_value.as_ref().is_some_and(|value| value.shape[2] != total) {
            return Err(Error::invalid("past_value", "must be as long as past_key"));
        }

        let dims =
            Dims { batch: q[0], num_heads: q[1], num_kv_heads: k[1], seq_len_q: q[2], seq_len_kv: total, head_dim: q[3], head_dim_v: v[3] };
        let mut problem = Problem { scale: self.scale, softcap: (self.softcap != 0.0).then_some(self.softcap), ..Problem::new(dims) };
        let spec = |tensor: Tensor<'_>, layout| TensorSpec::new(tensor.data.dtype(), layout);
        problem.query = spec(inputs.query, q_layout);
        problem.output = problem.query;
        problem.key = spec(inputs.key, if together { Layout::Bhsd } else { k_layout });
        problem.value = spec(inputs.value, if together { Layout::Bhsd } else { v_layout });
        let lengths = lengths(inputs.nonpad_kv_seqlen, dims.batch)?;
        // An external cache ends at its length, and so do the rows; with a past, rows end where K does.
        let aligned = if lengths.is_some() && inputs.past_key.is_none() { Alignment::BottomRight } else { offset(past)? };
        problem.visibility = Visibility {
            causal: self.is_causal,
            window_left: self.left_window_size,
            window_right: self.right_window_size,
            kv_lengths: lengths.is_some(),
            ..Visibility::default()
        };
        problem.visibility.alignment = problem.uses_position().then_some(aligned);
        if wanted.qk_matmul_output {
            match self.qk_matmul_output_mode {
                0 => problem.want.scores = Some(ScoreStage::Raw),
                1 => problem.want.scores = Some(ScoreStage::Capped),
                2 => problem.want.scores = Some(ScoreStage::Masked),
                _ => problem.want.weights = true,
            }
        }
        let (mut mask, mut bias) = (vec![], vec![]);
        match inputs.attn_mask {
            None => {}
            Some(Mask::Bool { shape, data }) => {
                check_shape("attn_mask", shape, data.len())?;
                let padded = pad_last(four_axes("attn_mask", shape)?, data, total, false)?;
                (problem.visibility.mask, mask) = (Some(padded.0), padded.1);
            }
            Some(Mask::Float(tensor)) => {
                tensor.check("attn_mask")?;
                let padded = pad_last(four_axes("attn_mask", tensor.shape)?, &tensor.to_f32(), total, f32::NEG_INFINITY)?;
                (problem.bias, bias) = (Some(padded.0), padded.1);
            }
        }

        let key = present_key.as_ref().map_or(inputs.key.data, |key| key.data.as_slice());
        let value = present_value.as_ref().map_or(inputs.value.data, |value| value.data.as_slice());
        let lent = Inputs {
            mask: &mask,
            bias: &bias,
            kv_lengths: lengths.as_deref().unwrap_or(&[]),
            ..Inputs::new(inputs.query.data, key, value)
        };
        let outputs = attend(&problem, &lent).await?;
        let qk = outputs.scores.or(outputs.weights).filter(|_| wanted.qk_matmul_output);
        let shape = match q_layout {
            Layout::Bshd => vec![dims.batch, dims.seq_len_q, dims.num_heads * dims.head_dim_v],
            _ => vec![dims.batch, dims.num_heads, dims.seq_len_q, dims.head_dim_v],
        };
        Ok(AttentionOutputs {
            output: OwnedTensor { shape, data: outputs.output },
            present_key: present_key.filter(|_| wanted.present),
            present_value: present_value.filter(|_| wanted.present),
            qk_matmul_output: qk
                .map(|data| OwnedTensor { shape: dims.scores_shape().to_vec(), data: HostVec::from_f32(problem.query.dtype, &data) }),
        })
    }

    fn check(&self) -> Result<()> {
        if !(self.softcap.is_finite() && self.softcap >= 0.0) {
            return Err(Error::invalid("softcap", format!("{} is not a finite number from 0 on", self.softcap)));
        }
        if self.qk_matmul_output_mode > 3 {
            return Err(Error::invalid("qk_matmul_output_mode", format!("{} is none of 0, 1, 2, 3", self.qk_matmul_output_mode)));
        }
        match self.softmax_precision {
            None | Some(1 | 10 | 11 | 16) => Ok(()),
            Some(other) => Err(Error::invalid("softmax_precision", format!("{other} is no floating-point type: 1, 10, 11 or 16"))),
        }
    }
}

/// Refuses Q, K, V that differ in batch, key length or width.
pub(super) fn check_alike(q: [usize; 4], k: [usize; 4], v: [usize; 4]) -> Result<()> {
    if k[0] != q[0] || k[3] != q[3] {
        return Err(Error::invalid("K", format!("[batch, heads, seq, dim] = {k:?} does not fit Q's {q:?}")));
    }
    if v[..3] != k[..3] {
        return Err(Error::invalid("V", format!("[batch, heads, seq, dim] = {v:?} does not fit K's {k:?}")));
    }
    Ok(())
}

fn offset(past: usize) -> Result<Alignment> {
    i32::try_from(past).map(Alignment::Offset).map_err(|_| Error::invalid("past_key", format!("a past of {past} keys is too long")))
}

/// Number of past keys in [batch, heads, past_sequence_length, dim].
pub(super) fn past_len(past: Tensor<'_>) -> usize {
    past.shape.get(2).copied().unwrap_or(0)
}

/// Joins `past` and `new` as [batch, heads, seq, dim]; `shape` and `layout` are those of `new`.
pub(super) fn join(
    argument: &'static str,
    past: Option<Tensor<'_>>,
    new: Tensor<'_>,
    shape: [usize; 4],
    layout: Layout,
) -> Result<OwnedTensor> {
    let [batch, heads, seq, dim] = shape;
    let dense = new.dense(shape, layout);
    let (past_len, before) = match past {
        None => (0, vec![]),
        Some(past) => {
            past.check(argument)?;
            let [b, h, past_len, d] = *past.shape else {
                return Err(Error::invalid(argument, format!("has shape {:?}; 4 axes are needed", past.shape)));
            };
            if [b, h, d] != [batch, heads, dim] || past.data.dtype() != new.data.dtype() {
                let (found, stored) = (past.data.dtype(), new.data.dtype());
                let why = format!("{found} {:?} does not fit [batch, heads, seq, dim] = {shape:?} in {stored}", past.shape);
                return Err(Error::invalid(argument, why));
            }
            (past_len, past.to_f32())
        }
    };
    let mut all = Vec::with_capacity(before.len() + dense.len());
    for head in 0..batch * heads {
        all.extend_from_slice(&before[head * past_len * dim..(head + 1) * past_len * dim]);
        all.extend_from_slice(&dense[head * seq * dim..(head + 1) * seq * dim]);
    }
    Ok(OwnedTensor { shape: vec![batch, heads, past_len + seq, dim], data: HostVec::from_f32(new.data.dtype(), &all) })
}

/// Number of keys of each item, in the engine's type.
fn lengths(nonpad: Option<&[i64]>, batch: usize) -> Result<Option<Vec<u32>>> {
    let Some(lengths) = nonpad else { return Ok(None) };
    if lengths.len() != batch {
        return Err(Error::invalid("nonpad_kv_seqlen", format!("has {} numbers for {batch} items", lengths.len())));
    }
    let narrow = |&length: &i64| u32::try_from(length).map_err(|_| Error::invalid("nonpad_kv_seqlen", format!("{length} is no length")));
    lengths.iter().map(narrow).collect::<Result<_>>().map(Some)
}

/// Pads the last axis of a mask to `total` with `masked`.
fn pad_last<T: Copy>(shape: [usize; 4], data: &[T], total: usize, masked: T) -> Result<(BroadcastShape, Vec<T>)> {
    if shape[3] >= total {
        return Ok((BroadcastShape(shape), data.to_vec()));
    }
    fold_broadcast(&[(data, shape)], total, masked, |_, given| given)
}
