//! Operators of ONNX and ONNX Runtime: the files' tensors and attributes as those of [`crate::onnx`].

use super::attention::{dense, name_outputs};
use super::case_file::{CaseFile, FileData, FileTensor, Given, given};
use super::runner::Runner;
use crate::error::{Error, Result};
use crate::onnx::{
    Attention, AttentionInputs, AttentionOutputs, GroupQueryAttention, GroupQueryAttentionInputs, Mask, MultiHeadAttention,
    MultiHeadAttentionInputs, OwnedTensor, RotaryEmbedding, Wanted,
};
use crate::problem::{Alibi, Alignment, BroadcastShape};

fn give(name: &str, tensor: OwnedTensor) -> Given {
    given(name, &tensor.shape, tensor.data.into_f32())
}

fn give_all(output: &str, outputs: AttentionOutputs) -> Vec<Given> {
    let AttentionOutputs { output: y, present_key, present_value, qk_matmul_output } = outputs;
    let optional = [("present_key", present_key), ("present_value", present_value), ("qk_matmul_output", qk_matmul_output)];
    let there = optional.into_iter().filter_map(|(name, tensor)| Some(give(name, tensor?)));
    std::iter::once(give(output, y)).chain(there).collect()
}

pub(super) fn attention(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
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
    let nonpad = file.optional("nonpad_kv_seqlen", CaseFile::ints)?;
    let attn_mask = match file.optional("attn_mask", CaseFile::input)? {
        Some(FileTensor { shape, data: FileData::Bool(data) }) => Some(Mask::Bool { shape, data }),
        _ => file.optional("attn_mask", CaseFile::tensor)?.map(Mask::Float),
    };
    let inputs = AttentionInputs {
        attn_mask,
        past_key: file.optional("past_key", CaseFile::tensor)?,
        past_value: file.optional("past_value", CaseFile::tensor)?,
        nonpad_kv_seqlen: nonpad.as_deref(),
        ..AttentionInputs::new(file.tensor("Q")?, file.tensor("K")?, file.tensor("V")?)
    };
    let wanted = Wanted { present: file.expects("present_key"), qk_matmul_output: file.expects("qk_matmul_output") };
    Ok(give_all("Y", runner.node(node.run_with(&inputs, wanted, runner.attention()))?))
}

pub(super) fn rotary_embedding(file: &CaseFile, _: &Runner<'_>) -> Result<Vec<Given>> {
    let node = RotaryEmbedding {
        interleaved: file.flag("interleaved")?,
        num_heads: file.attr("num_heads")?,
        rotary_embedding_dim: file.attr("rotary_embedding_dim")?.unwrap_or(0),
    };
    let positions: Option<Vec<i64>> = file.optional("position_ids", CaseFile::ints)?;
    let [x, cos, sin] = [file.tensor("X")?, file.tensor("cos_cache")?, file.tensor("sin_cache")?];
    Ok(vec![give("Y", node.run(x, cos, sin, positions.as_deref())?)])
}

/// Preview operator FlexAttention, with the score function that the file names.
pub(super) fn flex_attention(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
    if file.attr::<String>("prob_mod_kind")?.is_some_and(|kind| kind != "none") {
        return Err(Error::unsupported("prob_mod: a function of the softmax weights", "compute it on weights that are returned"));
    }
    let (mut problem, mut data) = dense(file, ["Q", "K", "V"], file.output_dtype("Y")?)?;
    match file.required_attr::<String>("score_mod_kind")?.as_str() {
        "none" => {}
        "causal_top_left" => problem = problem.aligned(Alignment::TopLeft).causal(),
        "add_scalar" => (problem.bias, data.bias) = (Some(BroadcastShape([1; 4])), file.f32s("score_mod.bias")?),
        "softcap" => problem.softcap = file.f32s("score_mod.cap")?.first().copied(),
        "add_q_minus_k" => {
            // i - j is ALiBi with a slope of -1.
            problem = problem.aligned(Alignment::TopLeft).alibi(Alibi::Signed);
            data.alibi_slopes = vec![-1.0; problem.dims.num_heads];
        }
        other => return Err(file.error(format!("score_mod_kind `{other}` is unknown"))),
    }
    let outputs = (runner.attend)(&problem, &data.inputs())?;
    Ok(name_outputs(&problem, outputs, ["Y", "", ""]))
}

pub(super) fn multi_head_attention(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
    let node = MultiHeadAttention::new(file.required_attr("num_heads")?);
    let node = MultiHeadAttention {
        scale: file.attr("scale")?,
        unidirectional: file.flag("unidirectional")?,
        mask_filter_value: file.attr("mask_filter_value")?.unwrap_or(node.mask_filter_value),
        ..node
    };
    let padding: Option<Vec<i32>> = file.optional("key_padding_mask", CaseFile::ints)?;
    let inputs = MultiHeadAttentionInputs {
        query: file.tensor("query")?,
        key: file.tensor("key")?,
        value: file.tensor("value")?,
        bias: file.optional("bias", CaseFile::tensor)?,
        key_padding_mask: padding.as_deref(),
        attention_bias: file.optional("attention_bias", CaseFile::tensor)?,
        past_key: file.optional("past_key", CaseFile::tensor)?,
        past_value: file.optional("past_value", CaseFile::tensor)?,
    };
    Ok(give_all("output", runner.node(node.run_with(&inputs, runner.attention()))?))
}

pub(super) fn group_query_attention(file: &CaseFile, runner: &Runner<'_>) -> Result<Vec<Given>> {
    let node = GroupQueryAttention {
        scale: file.attr("scale")?,
        softcap: file.attr("softcap")?.unwrap_or(0.0),
        local_window_size: file.size("local_window_size")?,
        do_rotary: file.flag("do_rotary")?,
        rotary_interleaved: file.flag("rotary_interleaved")?,
        smooth_softmax: file.flag("smooth_softmax")?,
        ..GroupQueryAttention::new(file.required_attr("num_heads")?, file.required_attr("kv_num_heads")?)
    };
    let seqlens_k: Vec<i32> = file.ints("seqlens_k")?;
    let inputs = GroupQueryAttentionInputs {
        query: file.tensor("query")?,
        key: file.tensor("key")?,
        value: file.tensor("value")?,
        past_key: file.optional("past_key", CaseFile::tensor)?,
        past_value: file.optional("past_value", CaseFile::tensor)?,
        seqlens_k: &seqlens_k,
        cos_cache: file.optional("cos_cache", CaseFile::tensor)?,
        sin_cache: file.optional("sin_cache", CaseFile::tensor)?,
        attention_bias: file.optional("attention_bias", CaseFile::tensor)?,
        head_sink: file.optional("head_sink", CaseFile::tensor)?,
    };
    Ok(give_all("output", runner.node(node.run_with(&inputs, runner.attention()))?))
}
