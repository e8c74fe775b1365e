//! ONNX operators: tests beyond the case files, which `conformance.rs` runs.

use wgpu_attention::onnx::{
    Attention, AttentionInputs, GroupQueryAttention, GroupQueryAttentionInputs, Mask, MultiHeadAttention, MultiHeadAttentionInputs,
    OwnedTensor, RotaryEmbedding, Tensor, Wanted,
};
use wgpu_attention::{Backend, Engine, EngineOptions, Error, HostVec};

fn oracle() -> Engine {
    Engine::new(EngineOptions { backend: Backend::Oracle, ..Default::default() }).expect("the oracle is always there")
}

fn tensor(shape: &[usize]) -> OwnedTensor {
    let data = (0..shape.iter().product()).map(|at: usize| (at as f32 * 0.7).sin()).collect();
    OwnedTensor { shape: shape.to_vec(), data: HostVec::F32(data) }
}

fn invalid<T>(result: Result<T, Error>) -> &'static str {
    match result {
        Err(Error::Invalid { argument, .. }) => argument,
        Err(other) => panic!("not invalid: {other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[test]
fn contradictions_are_refused() {
    let (q, kv) = (tensor(&[2, 4, 3, 8]), tensor(&[2, 2, 5, 8]));
    let inputs = AttentionInputs::new(q.view(), kv.view(), kv.view());
    let run = |node: Attention, inputs: &AttentionInputs<'_>| node.run(inputs, Wanted::default(), &oracle());
    let plain = Attention::default();
    assert!(run(plain, &inputs).is_ok());
    assert_eq!(invalid(run(Attention { softcap: -1.0, ..plain }, &inputs)), "softcap");
    assert_eq!(invalid(run(Attention { softcap: f32::NAN, ..plain }, &inputs)), "softcap");
    assert_eq!(invalid(run(Attention { qk_matmul_output_mode: 4, ..plain }, &inputs)), "qk_matmul_output_mode");
    assert_eq!(invalid(run(Attention { softmax_precision: Some(7), ..plain }, &inputs)), "softmax_precision");
    let three = tensor(&[2, 3, 32]);
    assert_eq!(invalid(run(plain, &AttentionInputs { query: three.view(), ..inputs })), "Q");
    let wider = tensor(&[2, 2, 5, 9]);
    assert_eq!(invalid(run(plain, &AttentionInputs { key: wider.view(), ..inputs })), "K");
    let longer = tensor(&[2, 2, 6, 8]);
    assert_eq!(invalid(run(plain, &AttentionInputs { value: longer.view(), ..inputs })), "V");
    let uneven = tensor(&[2, 3, 5, 8]);
    assert_eq!(invalid(run(plain, &AttentionInputs::new(q.view(), uneven.view(), uneven.view()))), "num_kv_heads");
    let torn = Tensor { shape: &[2, 2, 5, 8], data: (&[0.0f32; 7][..]).into() };
    assert_eq!(invalid(run(plain, &AttentionInputs { key: torn, ..inputs })), "K");
    let past = tensor(&[2, 2, 4, 8]);
    let with_past = AttentionInputs { past_key: Some(past.view()), ..inputs };
    assert_eq!(invalid(run(plain, &with_past)), "past_value");
    let past_of_other_heads = AttentionInputs { past_key: Some(uneven.view()), past_value: Some(uneven.view()), ..inputs };
    assert_eq!(invalid(run(plain, &past_of_other_heads)), "past_key");
    for mask in [&[6][..], &[2, 5], &[3, 1, 3, 5], &[1, 1, 1, 3, 5]] {
        let data = vec![true; mask.iter().product()];
        let masked = AttentionInputs { attn_mask: Some(Mask::Bool { shape: mask, data: &data }), ..inputs };
        let argument = invalid(run(plain, &masked));
        assert!(argument == "mask" || argument == "attn_mask", "{mask:?}: {argument}");
    }
    for lengths in [&[5i64][..], &[5, -1], &[5, i64::MAX]] {
        let padded = AttentionInputs { nonpad_kv_seqlen: Some(lengths), ..inputs };
        assert_eq!(invalid(run(plain, &padded)), "nonpad_kv_seqlen");
    }
    let padded = AttentionInputs { nonpad_kv_seqlen: Some(&[5, 6]), ..inputs };
    assert_eq!(invalid(run(plain, &padded)), "kv_lengths");
}

#[test]
fn three_axes_and_four_axes_agree() {
    // [batch, seq, heads, dim] is [batch, seq, heads * dim]; transposed it is [batch, heads, seq, dim].
    let (heads, seq, dim) = (2, 3, 4);
    let three = tensor(&[1, seq, heads * dim]);
    let flat = three.data.to_f32();
    let transpose = |flat: &[f32]| -> Vec<f32> {
        (0..heads * seq * dim).map(|at| flat[(at / dim % seq) * heads * dim + at / (seq * dim) * dim + at % dim]).collect()
    };
    let four = OwnedTensor { shape: vec![1, heads, seq, dim], data: HostVec::F32(transpose(&flat)) };
    let node = Attention { is_causal: true, q_num_heads: Some(heads), kv_num_heads: Some(heads), ..Default::default() };
    let run = |x: &OwnedTensor| {
        node.run(&AttentionInputs::new(x.view(), x.view(), x.view()), Wanted { present: true, qk_matmul_output: true }, &oracle())
            .unwrap_or_else(|error| panic!("{error}"))
    };
    let (from_three, from_four) = (run(&three), run(&four));
    assert_eq!(transpose(&from_three.output.data.to_f32()), from_four.output.data.to_f32());
    assert_eq!(from_three.present_key, from_four.present_key);
    assert_eq!(from_three.qk_matmul_output, from_four.qk_matmul_output);
}

#[test]
fn rotary_embedding_checks_its_inputs() {
    let (x, table) = (tensor(&[1, 2, 3, 8]), tensor(&[10, 4]));
    let run = |node: RotaryEmbedding, x: &OwnedTensor, table: &OwnedTensor, ids: &[i64]| {
        node.run(x.view(), table.view(), table.view(), Some(ids)).map(|_| ())
    };
    let plain = RotaryEmbedding::default();
    assert!(run(plain, &x, &table, &[0, 1, 9]).is_ok());
    assert_eq!(invalid(run(plain, &x, &table, &[0, 1])), "position_ids");
    assert_eq!(invalid(run(plain, &x, &table, &[0, 1, -1])), "position_ids");
    assert_eq!(invalid(run(plain, &x, &table, &[0, 1, 10])), "position");
    assert_eq!(invalid(run(RotaryEmbedding { rotary_embedding_dim: 10, ..plain }, &x, &table, &[0, 1, 2])), "rotary_embedding_dim");
    assert_eq!(invalid(run(RotaryEmbedding { rotary_embedding_dim: 4, ..plain }, &x, &table, &[0, 1, 2])), "cos_cache");
    assert_eq!(invalid(run(plain, &tensor(&[1, 3, 16]), &table, &[0, 1, 2])), "X");
}

#[test]
fn contrib_operators_refuse_unsupported_inputs() {
    let (q, kv) = (tensor(&[2, 3, 16]), tensor(&[2, 3, 8]));
    let node = MultiHeadAttention::new(2);
    let inputs = MultiHeadAttentionInputs::new(q.view(), q.view(), q.view());
    assert!(node.run(&inputs, &oracle()).is_ok());
    let lengths = MultiHeadAttentionInputs { key_padding_mask: Some(&[3, 3]), ..inputs };
    assert!(matches!(node.run(&lengths, &oracle()), Err(Error::Unsupported { .. })));
    let bias = tensor(&[40]);
    assert_eq!(invalid(node.run(&MultiHeadAttentionInputs { bias: Some(bias.view()), ..inputs }, &oracle())), "bias");
    let wrong = tensor(&[3, 1, 3, 3]);
    assert_eq!(invalid(node.run(&MultiHeadAttentionInputs { attention_bias: Some(wrong.view()), ..inputs }, &oracle())), "attention_bias");

    let node = GroupQueryAttention::new(4, 2);
    let inputs = |seqlens_k| GroupQueryAttentionInputs {
        query: q.view(),
        key: kv.view(),
        value: kv.view(),
        past_key: None,
        past_value: None,
        seqlens_k,
        cos_cache: None,
        sin_cache: None,
        attention_bias: None,
        head_sink: None,
    };
    assert!(node.run(&inputs(&[2, 2]), &oracle()).is_ok());
    assert!(matches!(node.run(&inputs(&[3, 1]), &oracle()), Err(Error::Unsupported { .. })));
    assert_eq!(invalid(node.run(&inputs(&[2]), &oracle())), "seqlens_k");
    assert_eq!(invalid(node.run(&inputs(&[2, -2]), &oracle())), "seqlens_k");
    assert_eq!(invalid(node.run(&inputs(&[2, 5]), &oracle())), "past_key");
    assert_eq!(invalid(GroupQueryAttention { do_rotary: true, ..node }.run(&inputs(&[2, 2]), &oracle())), "cos_cache");
}

/// Prompts of different lengths, padded on their right with NaN, are what each computes alone.
#[test]
fn prompts_of_different_lengths() {
    const SEQ: usize = 6;
    let tables = [tensor(&[SEQ, 4]), tensor(&[SEQ, 4])];
    let node = GroupQueryAttention { do_rotary: true, local_window_size: Some(3), ..GroupQueryAttention::new(4, 2) };
    let run = |lengths: &[usize], seq: usize, [q, k, v]: [&OwnedTensor; 3]| {
        let seqlens_k: Vec<i32> = lengths.iter().map(|&length| length as i32 - 1).collect();
        let inputs = GroupQueryAttentionInputs {
            query: q.view(),
            key: k.view(),
            value: v.view(),
            past_key: None,
            past_value: None,
            seqlens_k: &seqlens_k,
            cos_cache: Some(tables[0].view()),
            sin_cache: Some(tables[1].view()),
            attention_bias: None,
            head_sink: None,
        };
        let outputs = node.run(&inputs, &oracle()).expect("supported");
        assert_eq!(outputs.output.shape, [lengths.len(), seq, 32]);
        [Some(outputs.output), outputs.present_key, outputs.present_value].map(|tensor| tensor.expect("always returned").data.to_f32())
    };
    let lengths = [4, SEQ, 1];
    let widths = [32, 16, 16];
    let mut all = widths.map(|width| tensor(&[lengths.len(), SEQ, width]));
    for (tensor, width) in all.iter_mut().zip(widths) {
        let HostVec::F32(data) = &mut tensor.data else { panic!("f32") };
        for (item, length) in lengths.into_iter().enumerate() {
            data[(item * SEQ + length) * width..(item + 1) * SEQ * width].fill(f32::NAN);
        }
    }
    let [output, key, value] = run(&lengths, SEQ, all.each_ref());
    for (item, length) in lengths.into_iter().enumerate() {
        let alone = [0, 1, 2].map(|which: usize| {
            let (width, from) = (widths[which], all[which].data.to_f32());
            let rows = from[item * SEQ * width..][..length * width].to_vec();
            OwnedTensor { shape: vec![1, length, width], data: rows.into() }
        });
        let [expected, of_key, of_value] = run(&[length], length, alone.each_ref());
        assert_eq!(output[item * SEQ * 32..][..length * 32], expected, "item {item}");
        // [batch, heads, longest, dim]; zeros follow.
        for (present, alone) in [(&key, of_key), (&value, of_value)] {
            for head in 0..2 {
                let row = &present[(item * 2 + head) * SEQ * 8..][..SEQ * 8];
                assert_eq!(row[..length * 8], alone[head * length * 8..][..length * 8], "item {item}");
                assert!(row[length * 8..].iter().all(|&x| x == 0.0));
            }
        }
    }
}
