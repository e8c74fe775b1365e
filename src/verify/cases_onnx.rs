//! Operators of ONNX and ONNX Runtime: the files' tensors and attributes as those of [`crate::onnx`].

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::numbers::HostVec;
use crate::onnx::{
    Attention, AttentionInputs, AttentionOutputs, GroupQueryAttention, GroupQueryAttentionInputs, Mask, MultiHeadAttention,
    MultiHeadAttentionInputs, OwnedTensor, RotaryEmbedding, Tensor, Wanted,
};
use crate::problem::{Alibi, Alignment, AttentionFn, BroadcastShape, Dims, Inputs, Layout, Problem};
use crate::verify::case_file::{CaseFile, FileData};
use crate::verify::cases::Given;

/// Floating-point inputs of a file, owned so that operators can borrow them. f64 is rounded to f32.
struct Floats<'a>(BTreeMap<&'a str, OwnedTensor>);

impl<'a> Floats<'a> {
    fn of(file: &CaseFile, names: &[&'a str]) -> Result<Self> {
        let there = names.iter().filter(|name| {
            let data = file.optional(name).map(|tensor| &tensor.data);
            matches!(data, Some(FileData::Float(_) | FileData::Double(_)))
        });
        let tensors = there.map(|&name| Ok((name, OwnedTensor { shape: file.input(name)?.shape.clone(), data: file.floats(name)? })));
        tensors.collect::<Result<_>>().map(Self)
    }

    fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.0.get(name).map(OwnedTensor::view)
    }

    fn required(&self, file: &CaseFile, name: &str) -> Result<Tensor<'_>> {
        self.get(name).ok_or_else(|| file.error(format!("has no tensor `in.{name}` of floating-point numbers")))
    }
}

fn give(name: &str, tensor: OwnedTensor) -> Given {
    Given { name: name.into(), shape: tensor.shape, values: tensor.data.into_f32() }
}

fn give_all(output: &str, outputs: AttentionOutputs) -> Vec<Given> {
    let AttentionOutputs { output: y, present_key, present_value, qk_matmul_output } = outputs;
    let optional = [("present_key", present_key), ("present_value", present_value), ("qk_matmul_output", qk_matmul_output)];
    let there = optional.into_iter().filter_map(|(name, tensor)| Some(give(name, tensor?)));
    std::iter::once(give(output, y)).chain(there).collect()
}

fn ints<T: TryFrom<i64>>(file: &CaseFile, name: &str) -> Result<Option<Vec<T>>> {
    file.optional(name).map(|_| file.ints(name)).transpose()
}

pub(crate) fn attention(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let node = Attention {
        is_causal: file.flag("is_causal")?,
        q_num_heads: file.attr("q_num_heads")?,
        kv_num_heads: file.attr("kv_num_heads")?,
        scale: file.attr("scale")?,
        softcap: file.attr("softcap")?.unwrap_or(0.0),
        qk_matmul_output_mode: file.attr("qk_matmul_output_mode")?.unwrap_or(0),
        softmax_precision: file.attr("softmax_precision")?,
        left_window_size: file.size("left_window_size")?,
        right_window_size: file.size("right_window_size")?,
    };
    let floats = Floats::of(file, &["Q", "K", "V", "attn_mask", "past_key", "past_value"])?;
    let nonpad = ints(file, "nonpad_kv_seqlen")?;
    let boolean = file.optional("attn_mask").and_then(|mask| match &mask.data {
        FileData::Bool(data) => Some(Mask::Bool { shape: &mask.shape, data }),
        _ => None,
    });
    let inputs = AttentionInputs {
        query: floats.required(file, "Q")?,
        key: floats.required(file, "K")?,
        value: floats.required(file, "V")?,
        attn_mask: boolean.or(floats.get("attn_mask").map(Mask::Float)),
        past_key: floats.get("past_key"),
        past_value: floats.get("past_value"),
        nonpad_kv_seqlen: nonpad.as_deref(),
    };
    let wanted = Wanted { present: file.expected("present_key").is_some(), qk_matmul_output: file.expected("qk_matmul_output").is_some() };
    Ok(give_all("Y", node.run_with(&inputs, wanted, attend)?))
}

pub(crate) fn rotary_embedding(file: &CaseFile, _attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let node = RotaryEmbedding {
        interleaved: file.flag("interleaved")?,
        num_heads: file.attr("num_heads")?,
        rotary_embedding_dim: file.attr("rotary_embedding_dim")?.unwrap_or(0),
    };
    let floats = Floats::of(file, &["X", "cos_cache", "sin_cache"])?;
    let tensor = |name| floats.required(file, name);
    let positions: Option<Vec<i64>> = ints(file, "position_ids")?;
    Ok(vec![give("Y", node.run(tensor("X")?, tensor("cos_cache")?, tensor("sin_cache")?, positions.as_deref())?)])
}

/// Preview operator FlexAttention, with the score function that the file names.
pub(crate) fn flex_attention(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    if file.attr::<String>("prob_mod_kind")?.is_some_and(|kind| kind != "none") {
        return Err(Error::unsupported("prob_mod: a function of the softmax weights", "compute it on weights that are handed out"));
    }
    let [batch, num_heads, seq_len_q, head_dim] = file.shape("Q")?;
    let [_, num_kv_heads, seq_len_kv, _] = file.shape("K")?;
    let [.., head_dim_v] = file.shape::<4>("V")?;
    let (query, key, value) = (file.floats("Q")?, file.floats("K")?, file.floats("V")?);
    let dims = Dims { batch, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v };
    let mut problem = Problem::new(dims).stored(query.as_slice().dtype(), Layout::Bhsd);
    problem.scale = file.attr("scale")?;
    let mut inputs = Inputs::new(query.as_slice(), key.as_slice(), value.as_slice());
    let scalar = if file.optional("score_mod.bias").is_some() { file.f32s("score_mod.bias")? } else { vec![] };
    let slopes = vec![-1.0; num_heads];
    match file.required_attr::<String>("score_mod_kind")?.as_str() {
        "none" => {}
        "causal_top_left" => problem = problem.aligned(Alignment::TopLeft).causal(),
        "add_scalar" => (problem.bias, inputs.bias) = (Some(BroadcastShape([1; 4])), &scalar),
        "softcap" => problem.softcap = file.f32s("score_mod.cap")?.first().copied(),
        "add_q_minus_k" => {
            // i - j is ALiBi with a slope of -1.
            (problem.alibi, inputs.alibi_slopes) = (Some(Alibi::Signed), &slopes);
            problem.visibility.alignment = Some(Alignment::TopLeft);
        }
        other => return Err(file.error(format!("score_mod_kind `{other}` is unknown"))),
    }
    let output: HostVec = attend(&problem, &inputs)?.output;
    Ok(vec![give("Y", OwnedTensor { shape: vec![batch, num_heads, seq_len_q, head_dim_v], data: output })])
}

pub(crate) fn multi_head_attention(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let node = MultiHeadAttention::new(file.required_attr("num_heads")?);
    let node = MultiHeadAttention {
        scale: file.attr("scale")?,
        unidirectional: file.flag("unidirectional")?,
        mask_filter_value: file.attr("mask_filter_value")?.unwrap_or(node.mask_filter_value),
        ..node
    };
    let floats = Floats::of(file, &["query", "key", "value", "bias", "attention_bias", "past_key", "past_value"])?;
    let padding: Option<Vec<i32>> = ints(file, "key_padding_mask")?;
    let inputs = MultiHeadAttentionInputs {
        query: floats.required(file, "query")?,
        key: floats.required(file, "key")?,
        value: floats.required(file, "value")?,
        bias: floats.get("bias"),
        key_padding_mask: padding.as_deref(),
        attention_bias: floats.get("attention_bias"),
        past_key: floats.get("past_key"),
        past_value: floats.get("past_value"),
    };
    Ok(give_all("output", node.run_with(&inputs, attend)?))
}

pub(crate) fn group_query_attention(file: &CaseFile, attend: &AttentionFn<'_>) -> Result<Vec<Given>> {
    let node = GroupQueryAttention {
        scale: file.attr("scale")?,
        softcap: file.attr("softcap")?.unwrap_or(0.0),
        local_window_size: file.size("local_window_size")?,
        do_rotary: file.flag("do_rotary")?,
        rotary_interleaved: file.flag("rotary_interleaved")?,
        smooth_softmax: file.flag("smooth_softmax")?,
        ..GroupQueryAttention::new(file.required_attr("num_heads")?, file.required_attr("kv_num_heads")?)
    };
    let names = ["query", "key", "value", "past_key", "past_value", "cos_cache", "sin_cache", "attention_bias", "head_sink"];
    let floats = Floats::of(file, &names)?;
    let seqlens_k: Vec<i32> = file.ints("seqlens_k")?;
    let inputs = GroupQueryAttentionInputs {
        query: floats.required(file, "query")?,
        key: floats.required(file, "key")?,
        value: floats.required(file, "value")?,
        past_key: floats.get("past_key"),
        past_value: floats.get("past_value"),
        seqlens_k: &seqlens_k,
        cos_cache: floats.get("cos_cache"),
        sin_cache: floats.get("sin_cache"),
        attention_bias: floats.get("attention_bias"),
        head_sink: floats.get("head_sink"),
    };
    Ok(give_all("output", node.run_with(&inputs, attend)?))
}
