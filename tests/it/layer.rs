//! Multi-head layer, compared with a real model, with PyTorch and with its own f64 reference.

use std::path::PathBuf;

use crate::common::buffers::draw;
use crate::common::{every_engine, open};
use safetensors::{Dtype, SafeTensors};
use wgpu_attention::layer::{Appended, Linear, MultiHead, Naming, TorchMask, WeightFile, average_heads, merge_torch_masks, naive};
use wgpu_attention::{Alignment, Backend, BroadcastShape, Engine, Error, Inputs, Layout, ScoreStage, TensorSpec, gather};

fn cpu() -> Engine {
    open(Backend::Cpu)
}

/// Case file: its tensors and metadata.
struct Case {
    bytes: Vec<u8>,
    path: PathBuf,
}

impl Case {
    fn open(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        Self { bytes: std::fs::read(&path).expect("the case file is in the repository"), path }
    }

    fn weights(&self) -> WeightFile {
        WeightFile::open(&self.path).expect("the case file is sound")
    }

    fn tensor(&self, name: &str) -> Option<(Dtype, Vec<usize>, Vec<u8>)> {
        let tensors = SafeTensors::deserialize(&self.bytes).expect("the case file is sound");
        tensors.tensor(name).ok().map(|view| (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let (dtype, _, bytes) = self.tensor(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(dtype, Dtype::F32, "{name}");
        bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn attribute(&self, name: &str) -> String {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).expect("the case file is sound");
        header.metadata().as_ref().and_then(|m| m.get(name).cloned()).unwrap_or_else(|| panic!("{name} is missing"))
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> T {
        self.attribute(name).parse().unwrap_or_else(|_| panic!("{name} is not a number"))
    }

    /// Compares a tensor with the file's, within the file's tolerance.
    fn compare(&self, name: &str, got: &[f32]) {
        let expected = self.floats(&format!("out.{name}"));
        let (rtol, atol): (f32, f32) = (self.number("tol.rtol"), self.number(&format!("tol.{name}")));
        let worst = mismatch(got, &expected, rtol, atol);
        assert!(worst.is_none(), "{} {name}: {}", self.path.display(), worst.unwrap_or_default());
    }
}

/// Returns the first position where `got` differs from `expected` by more than atol + rtol * |expected|.
fn mismatch(got: &[f32], expected: &[f32], rtol: f32, atol: f32) -> Option<String> {
    if got.len() != expected.len() {
        return Some(format!("{} elements instead of {}", got.len(), expected.len()));
    }
    let wrong = |(&got, &expected): (&f32, &f32)| !((got - expected).abs() <= atol + rtol * expected.abs() || got == expected);
    let at = got.iter().zip(expected).position(wrong)?;
    Some(format!("{} instead of {} at {at}", got[at], expected[at]))
}

#[test]
fn the_comparison_fails_what_is_wrong() {
    let right = [1.0, -2.0, 0.0];
    assert_eq!(mismatch(&right, &right, 1e-4, 1e-5), None);
    for wrong in [&[1.0, -2.0, 3e-5][..], &[1.0, f32::NAN, 0.0], &[-2.0, 1.0, 0.0], &[0.0; 3], &[1.0, -2.0]] {
        assert!(mismatch(wrong, &right, 1e-4, 1e-5).is_some(), "{wrong:?}");
    }
}

/// Transposes [batch, seq, heads, dim] to [batch, heads, seq, dim].
fn heads_first(data: &[f32], shape: [usize; 4]) -> Vec<f32> {
    gather(data.into(), &TensorSpec { layout: Layout::Bshd, ..Default::default() }, shape)
}

/// Computes LayerNorm(x + y).
fn residual_norm(x: &[f32], y: &[f32], weight: &[f32], bias: &[f32], epsilon: f64) -> Vec<f32> {
    let width = weight.len();
    let mut out = Vec::new();
    for (x, y) in x.chunks(width).zip(y.chunks(width)) {
        let sum: Vec<f64> = x.iter().zip(y).map(|(&x, &y)| f64::from(x) + f64::from(y)).collect();
        let mean = sum.iter().sum::<f64>() / width as f64;
        let variance = sum.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / width as f64;
        let norm = |s: f64| (s - mean) / (variance + epsilon).sqrt();
        out.extend(sum.iter().zip(weight.iter().zip(bias)).map(|(&s, (&w, &b))| (norm(s) * f64::from(w) + f64::from(b)) as f32));
    }
    out
}

#[test]
fn reproduces_a_real_model() {
    let case = Case::open("minilm/minilm_layer0_block.safetensors");
    let layer = case.weights().multi_head(&Naming::Plain { prefix: "in.".into() }, 12, 12).expect("the weights fit");
    let hidden = case.floats("in.hidden");
    let mut problem = layer.problem(1, 9, 9).with_lse();
    problem.want.weights = true;
    let (weight, bias) = (case.floats("in.ln_weight"), case.floats("in.ln_bias"));
    for engine in every_engine() {
        eprintln!("{}", engine.chosen());
        let outputs = layer.forward_with_steps(&engine, &problem, &Inputs::new(&hidden, &hidden, &hidden)).expect("a valid problem");
        let steps = outputs.steps.expect("asked for");
        for (name, step) in [("q", &steps.query), ("k", &steps.key), ("v", &steps.value), ("context", &steps.context)] {
            case.compare(name, &heads_first(step, [1, 12, 9, 32]));
        }
        case.compare("probs", &outputs.weights.expect("asked for"));
        case.compare("lse", &outputs.lse.expect("asked for"));
        case.compare("proj", &outputs.output);
        case.compare("block_out", &residual_norm(&hidden, &outputs.output, &weight, &bias, case.number("attr.layer_norm_eps")));
    }
}

/// Transposes [L, B, E] to [B, L, E], unless the tensor has this order `already`.
fn batch_first(data: Vec<f32>, seq: usize, batch: usize, already: bool) -> Vec<f32> {
    if already {
        return data;
    }
    let width = data.len() / (seq * batch);
    (0..batch).flat_map(|b| (0..seq).flat_map(move |i| (i * batch + b) * width..(i * batch + b + 1) * width)).map(|at| data[at]).collect()
}

fn torch_case(name: &str, engine: &Engine) {
    let case = Case::open(&format!("torch/{name}.safetensors"));
    let flag = |name: &str| case.attribute(&format!("attr.{name}")) == "1";
    let heads: usize = case.number("attr.num_heads");
    let layer = case.weights().multi_head(&Naming::Torch { prefix: "in.".into() }, heads, heads).expect("the weights fit");
    let appended = Appended { zero: flag("add_zero_attn"), ..layer.appended().clone() };
    let layer = layer.with_appended(appended).expect("they fit");
    let extra = layer.appended().count();

    let sizes = |name: &str| {
        let (_, shape, _) = case.tensor(name).expect("an input");
        match (shape.len(), flag("batch_first")) {
            (2, _) => (shape[0], 1),
            (_, true) => (shape[1], shape[0]),
            (_, false) => (shape[0], shape[1]),
        }
    };
    let (key_name, value_name) = if flag("self_attention") { ("in.query", "in.query") } else { ("in.key", "in.value") };
    let ((seq_q, batch), (seq_kv, _)) = (sizes("in.query"), sizes(key_name));
    let already = flag("batch_first") || flag("unbatched");
    let input = |name: &str, seq| batch_first(case.floats(name), seq, batch, already);
    let (x_q, x_k, x_v) = (input("in.query", seq_q), input(key_name, seq_kv), input(value_name, seq_kv));

    let mut problem = layer.problem(batch, seq_q, seq_kv);
    problem.want.weights = flag("need_weights");
    let mask_data = ["in.key_padding_mask", "in.attn_mask"].map(|name| {
        case.tensor(name).map(|(dtype, _, bytes)| match dtype {
            Dtype::BOOL => (bytes.iter().map(|&b| b != 0).collect::<Vec<_>>(), Vec::new()),
            _ => (Vec::new(), case.floats(name)),
        })
    });
    let [padding, attention] = [0, 1].map(|index| {
        let (masked, added) = mask_data[index].as_ref()?;
        Some(if added.is_empty() { TorchMask::Bool(masked) } else { TorchMask::Float(added) })
    });
    let masks = merge_torch_masks(&problem.dims, extra, padding, attention).expect("the masks fit");
    let mut inputs = Inputs::new(&x_q, &x_k, &x_v);
    if let Some((shape, mask)) = &masks.mask {
        problem.visibility.mask = Some(*shape);
        inputs.mask = mask;
    }
    if let Some((shape, bias)) = &masks.bias {
        problem.bias = Some(*shape);
        inputs.bias = bias;
    }
    let outputs = layer.forward(engine, &problem, &inputs).expect("a valid problem");
    let expected_order = if already { outputs.output.clone() } else { batch_first(outputs.output.clone(), batch, seq_q, false) };
    case.compare("output", &expected_order);
    if let Some(weights) = outputs.weights {
        let averaged = flag("average_attn_weights");
        case.compare("attn_weights", &if averaged { average_heads(&weights, &problem.dims).expect("they fit") } else { weights });
    }
    let reference = naive::forward(&layer, &problem, &inputs).expect("a valid problem");
    for (got, expected) in outputs.output.iter().zip(&reference.output) {
        assert!((f64::from(*got) - expected).abs() < 1e-5, "{name}: {got} instead of {expected}");
    }
}

#[test]
fn agrees_with_pytorch() {
    let engines = every_engine();
    for name in [
        "mha_bias_kv_zero_attn",
        "mha_bool_mask_and_kpm",
        "mha_causal_no_weights",
        "mha_cross_batch_first_per_head",
        "mha_float_mask_3d_backward",
        "mha_kdim_vdim_no_bias",
        "mha_kpm_all_masked_no_weights",
        "mha_kpm_avg_weights",
        "mha_self_small",
        "mha_unbatched",
    ] {
        engines.iter().for_each(|engine| torch_case(name, engine));
    }
}

fn linear(seed: usize, rows: usize, columns: usize, biased: bool) -> Linear {
    Linear::new(draw(seed, rows * columns), biased.then(|| draw(seed + 1, rows)), columns).expect("the shape is right")
}

/// Compares cross attention with grouped heads and widths that all differ: unmasked, causal, windowed, with a mask.
#[test]
fn agrees_with_its_reference() {
    let layer = MultiHead::new(
        linear(1, 6 * 5, 10, true),
        linear(3, 2 * 5, 7, false),
        linear(5, 2 * 3, 11, true),
        linear(7, 13, 6 * 3, true),
        6,
        2,
    )
    .expect("the shapes fit");
    let (x_q, x_k, x_v) = (draw(11, 2 * 9 * 10), draw(12, 2 * 20 * 7), draw(13, 2 * 20 * 11));
    let mask: Vec<bool> = (0..9 * 20).map(|at| at % 7 != 0 && at / 20 != 4).collect();
    let engines = every_engine();
    let plain = layer.problem(2, 9, 20);
    let mut masked = plain.clone().aligned(Alignment::BottomRight).causal();
    masked.visibility.mask = Some(BroadcastShape([1, 1, 9, 20]));
    masked.softcap = Some(2.0);
    for mut problem in [
        plain.clone(),
        plain.clone().aligned(Alignment::TopLeft).causal(),
        plain.aligned(Alignment::BottomRight).window(Some(3), Some(1)),
        masked,
    ] {
        problem.want.scores = Some(ScoreStage::Raw);
        let mut inputs = Inputs::new(&x_q, &x_k, &x_v);
        if problem.visibility.mask.is_some() {
            inputs.mask = &mask;
        }
        let expected = naive::forward(&layer, &problem, &inputs).expect("a valid problem");
        let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
        for engine in &engines {
            let outputs = layer.forward_with_steps(engine, &problem.clone().with_lse(), &inputs).expect("a valid problem");
            assert_eq!(outputs.output.len(), 2 * 9 * 13);
            let steps = outputs.steps.expect("asked for");
            for (name, got, expected) in [
                ("query", &steps.query, &expected.query),
                ("key", &steps.key, &expected.key),
                ("value", &steps.value, &expected.value),
                ("context", &steps.context, &narrow(&expected.context)),
                ("lse", &outputs.lse.expect("asked for"), &narrow(&expected.attention.lse)),
                ("scores", &outputs.scores.expect("asked for"), &narrow(&expected.attention.raw)),
                ("output", &outputs.output, &narrow(&expected.output)),
            ] {
                assert_eq!(mismatch(got, expected, 1e-5, 1e-5), None, "{name} on {}", engine.chosen());
            }
        }
    }
}

/// Compares layers larger than every tile of the projections, with and without whole vec4s.
#[test]
fn large_layers_agree_with_their_reference() {
    for (embed, width, seq) in [(132, 96, 70), (67, 70, 130)] {
        let layer = MultiHead::new(
            linear(1, width, embed, true),
            linear(3, width, embed, true),
            linear(5, width, embed, true),
            linear(7, embed, width, true),
            2,
            2,
        )
        .expect("the shapes fit");
        let x: Vec<f32> = draw(11, seq * embed).iter().map(|x| x / 8.0).collect();
        let (problem, inputs) = (layer.problem(1, seq, seq), Inputs::new(&x, &x, &x));
        let expected: Vec<f32> = naive::forward(&layer, &problem, &inputs).expect("valid").output.iter().map(|&x| x as f32).collect();
        for engine in every_engine() {
            let output = layer.forward(&engine, &problem, &inputs).expect("a valid problem").output;
            assert_eq!(mismatch(&output, &expected, 1e-5, 2e-5), None, "{}", engine.chosen());
        }
    }
}

#[test]
fn varlen_sequences_are_the_items_one_by_one() {
    let layer =
        MultiHead::new(linear(1, 8, 6, true), linear(3, 8, 6, true), linear(5, 8, 6, true), linear(7, 6, 8, true), 2, 2).expect("fits");
    let x = draw(11, 7 * 6);
    let mut problem = layer.problem(2, 4, 4).aligned(Alignment::TopLeft).causal();
    problem.varlen = Some(wgpu_attention::Varlen { tokens_q: 7, tokens_kv: 7 });
    let inputs = Inputs { cu_seqlens_q: &[0, 3, 7], cu_seqlens_kv: &[0, 3, 7], ..Inputs::new(&x, &x, &x) };
    for engine in every_engine() {
        let together = layer.forward(&engine, &problem, &inputs).expect("a valid problem").output;
        let awaited = pollster::block_on(layer.forward_async(&engine, &problem, &inputs)).expect("a valid problem").output;
        assert_eq!(awaited, together, "{}", engine.chosen());
        for (start, len) in [(0, 3), (3, 4)] {
            let x = &x[start * 6..(start + len) * 6];
            let alone = layer.forward(&engine, &layer.problem(1, len, len).aligned(Alignment::TopLeft).causal(), &Inputs::new(x, x, x));
            let alone = alone.expect("a valid problem").output;
            assert_eq!(mismatch(&alone, &together[start * 6..(start + len) * 6], 1e-6, 1e-6), None, "{}", engine.chosen());
        }
    }
}

const NOTHING: &[f32] = &[];

fn invalid<T: std::fmt::Debug>(argument: &str, result: Result<T, Error>) {
    assert!(matches!(&result, Err(Error::Invalid { argument: found, .. }) if *found == argument), "{argument}: {result:?}");
}

#[test]
fn bad_arguments_are_named_errors() {
    invalid("weight", Linear::new(vec![0.0; 5], None, 2));
    invalid("weight", Linear::new(vec![], None, 2));
    invalid("weight", Linear::new(vec![0.0; 4], None, 0));
    invalid("bias", Linear::new(vec![0.0; 4], Some(vec![0.0; 3]), 2));
    invalid("x", linear(1, 2, 3, false).forward(&[0.0; 4]));
    assert_eq!(linear(1, 2, 3, true).forward(&[]), Ok(vec![]));

    let new = |q, k, v, o, heads, kv_heads| {
        MultiHead::new(linear(1, q, 4, false), linear(1, k, 4, false), linear(1, v, 4, false), linear(1, 4, o, false), heads, kv_heads)
    };
    invalid("num_heads", new(4, 4, 4, 4, 0, 2));
    invalid("num_kv_heads", new(4, 4, 4, 4, 2, 0));
    invalid("num_kv_heads", new(6, 4, 4, 6, 3, 2));
    invalid("w_q", new(5, 4, 4, 4, 2, 2));
    invalid("w_k", new(4, 6, 4, 4, 2, 2));
    invalid("w_v", new(4, 4, 5, 4, 2, 2));
    invalid("w_o", new(4, 4, 4, 5, 2, 2));
    invalid("w_k", new(4, 4, 4, 4, 2, 1));

    let layer = new(4, 4, 4, 4, 2, 2).expect("the shapes fit");
    invalid("bias_k", layer.clone().with_appended(Appended { bias_kv: Some((vec![0.0; 3], vec![0.0; 4])), zero: false }));
    invalid("bias_v", layer.clone().with_appended(Appended { bias_kv: Some((vec![0.0; 4], vec![0.0; 5])), zero: false }));
    let x = draw(1, 3 * 4);
    let problem = layer.problem(1, 3, 3);
    let run = |problem, query: &[f32], key: &[f32]| layer.forward(&cpu(), &problem, &Inputs::new(query, key, &x[..]));
    invalid("query", run(problem.clone(), &x[1..], &x));
    invalid("key", run(problem.clone(), &x, &x[..8]));
    invalid("value", run(layer.problem(1, 3, 2), &x, &x[..8]));
    invalid("query", run(layer.problem(0, 3, 3), &x, &x));
    invalid(
        "problem",
        run(wgpu_attention::Problem { dims: wgpu_attention::Dims { num_heads: 4, ..problem.dims }, ..problem.clone() }, &x, &x),
    );
    invalid("problem", run(wgpu_attention::Problem { query: TensorSpec::default(), ..problem.clone() }, &x, &x));
    assert!(run(layer.problem(usize::MAX, 3, usize::MAX), &x, &x).is_err());
    let halves = [wgpu_attention::f16::ONE; 12];
    invalid("query", layer.forward(&cpu(), &problem, &Inputs::new(&halves[..], &x, &x)));
    let zero = layer.clone().with_appended(Appended { bias_kv: None, zero: true }).expect("it fits");
    invalid("seq_len_kv", zero.forward(&cpu(), &layer.problem(1, 3, 0), &Inputs::new(&x[..], NOTHING, NOTHING)));
    assert_eq!(zero.forward(&cpu(), &zero.problem(1, 3, 0), &Inputs::new(&x[..], NOTHING, NOTHING)).map(|o| o.output), Ok(vec![0.0; 12]));
    for (layer, problem) in [(&layer, layer.problem(0, 3, 3)), (&zero, zero.problem(0, 3, 3))] {
        assert_eq!(layer.forward(&cpu(), &problem, &Inputs::new(NOTHING, NOTHING, NOTHING)).map(|o| o.output), Ok(vec![]));
    }
    assert_eq!(layer.forward(&cpu(), &layer.problem(1, 0, 3), &Inputs::new(NOTHING, &x, &x)).map(|o| o.output), Ok(vec![]));

    let dims = problem.dims;
    invalid("key_padding_mask", merge_torch_masks(&dims, 0, Some(TorchMask::Bool(&[true; 2])), None));
    invalid("attn_mask", merge_torch_masks(&dims, 0, None, Some(TorchMask::Float(&[0.0; 10]))));
    invalid("appended", merge_torch_masks(&dims, 4, None, None));
    invalid("weights", average_heads(&[0.0; 17], &dims));
    let empty = wgpu_attention::Dims { seq_len_kv: 0, ..dims };
    assert!(merge_torch_masks(&empty, 0, Some(TorchMask::Bool(&[])), Some(TorchMask::Float(&[]))).is_ok());
}
