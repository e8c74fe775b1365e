//! Layer weights by name, from small files made here.

use crate::common::buffers::draw;
use safetensors::Dtype;
use wgpu_attention::layer::{Naming, WeightFile, WeightTensor};
use wgpu_attention::{Error, HostVec, f16};

/// Creates a safetensors file of tensors (name, dtype, shape) whose elements are all 0.5.
fn file(tensors: &[(&str, Dtype, &[usize])]) -> Vec<u8> {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| {
            let number = match dtype {
                Dtype::F32 => 0.5f32.to_le_bytes().to_vec(),
                Dtype::F16 => f16::from_f32(0.5).to_le_bytes().to_vec(),
                Dtype::BF16 => wgpu_attention::bf16::from_f32(0.5).to_le_bytes().to_vec(),
                _ => 0.5f64.to_le_bytes().to_vec(),
            };
            number.repeat(shape.iter().product())
        })
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (*name, safetensors::tensor::TensorView::new(*dtype, shape.to_vec(), data).expect("the data fits the shape"))
    });
    safetensors::serialize(views, None).expect("a sound file")
}

const BERT: [(&str, Dtype, &[usize]); 8] = [
    ("bert.encoder.layer.3.attention.self.query.weight", Dtype::F16, &[8, 8]),
    ("bert.encoder.layer.3.attention.self.query.bias", Dtype::F16, &[8]),
    ("bert.encoder.layer.3.attention.self.key.weight", Dtype::BF16, &[8, 8]),
    ("bert.encoder.layer.3.attention.self.key.bias", Dtype::BF16, &[8]),
    ("bert.encoder.layer.3.attention.self.value.weight", Dtype::F32, &[8, 8]),
    ("bert.encoder.layer.3.attention.self.value.bias", Dtype::F32, &[8]),
    ("bert.encoder.layer.3.attention.output.dense.weight", Dtype::F32, &[8, 8]),
    ("bert.encoder.layer.3.attention.output.dense.bias", Dtype::F32, &[8]),
];

fn bert(layer: usize) -> Naming {
    Naming::Bert { prefix: "bert.".into(), layer }
}

#[test]
fn bert_names_and_every_storage_type() {
    let weights = WeightFile::from_bytes("bert", file(&BERT)).expect("a sound file");
    let layer = weights.multi_head(&bert(3), 2, 2).expect("the weights fit");
    for linear in [layer.query(), layer.key(), layer.value(), layer.output()] {
        assert_eq!((linear.weight(), linear.bias()), (&[0.5; 64][..], Some(&[0.5; 8][..])));
    }
}

/// Creates a safetensors file of f32 tensors.
fn numbered(tensors: &[(&str, &[usize], &[f32])]) -> WeightFile {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, data)| data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, safetensors::tensor::TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("the data fits the shape"))
    });
    WeightFile::from_bytes("weights", safetensors::serialize(views, None).expect("a sound file")).expect("a sound file")
}

#[test]
fn tensors_are_read_by_name() {
    let weights = WeightFile::from_bytes("weights", file(&BERT)).expect("a sound file");
    let tensor = weights.tensor(BERT[1].0).expect("it is there");
    assert_eq!(tensor, WeightTensor { shape: vec![8], data: HostVec::F16(vec![f16::from_f32(0.5); 8]) });
    assert!(file_error(weights.tensor("absent")).contains("`absent`"));
    let doubles = WeightFile::from_bytes("weights", file(&[("x", Dtype::F64, &[2])])).expect("a sound file");
    assert!(file_error(doubles.tensor("x")).contains("F64"));
}

/// Reads GPT-2's transposed weights, with Q, K and V side by side in c_attn.
#[test]
fn gpt2_names() {
    let is_near = |x: &[f32], y: &[f32]| x.len() == y.len() && x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-5);
    let embed = 4;
    let packed = draw(1, embed * 3 * embed);
    let (output, biases, bias) = (draw(2, embed * embed), draw(3, 3 * embed), draw(4, embed));
    let weights = numbered(&[
        ("transformer.h.1.attn.c_attn.weight", &[embed, 3 * embed], &packed),
        ("transformer.h.1.attn.c_attn.bias", &[3 * embed], &biases),
        ("transformer.h.1.attn.c_proj.weight", &[embed, embed], &output),
        ("transformer.h.1.attn.c_proj.bias", &[embed], &bias),
        ("h.0.attn.c_attn.weight", &[embed, 10], &packed[..40]),
        ("h.0.attn.c_attn.bias", &[10], &biases[..10]),
    ]);
    let layer = weights.multi_head(&Naming::Gpt2 { prefix: "transformer.".into(), layer: 1 }, 2, 2).expect("the weights fit");
    // Conv1D computes y[column] = sum over row of x[row] * W[row, column] + b[column].
    let x = draw(5, embed);
    let conv = |weight: &[f32], columns: usize, bias: &[f32], from: usize| -> Vec<f32> {
        (from..from + embed)
            .map(|column| (0..embed).map(|row| x[row] * weight[row * columns + column]).sum::<f32>() + bias[column])
            .collect()
    };
    for (at, linear) in [layer.query(), layer.key(), layer.value()].into_iter().enumerate() {
        let y = linear.forward(&x).expect("a row");
        assert!(is_near(&y, &conv(&packed, 3 * embed, &biases, at * embed)), "{at}");
    }
    assert!(is_near(&layer.output().forward(&x).expect("a row"), &conv(&output, embed, &bias, 0)));
    let gpt2 = |prefix: &str, layer| weights.multi_head(&Naming::Gpt2 { prefix: prefix.into(), layer }, 2, 2);
    assert!(file_error(gpt2("", 0)).contains("h.0.attn.c_attn.weight"), "10 columns are no three stacks");
    assert!(file_error(gpt2("", 1)).contains("h.1.attn.c_attn.weight"));
}

/// Reads Llama's grouped heads, with Qwen 2's biases; refuses Qwen 3's norms by name.
#[test]
fn llama_names() {
    let stem = "model.layers.2.self_attn.";
    let names = ["q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "q_proj.bias", "k_proj.bias", "v_proj.bias"];
    let names = names.map(|name| format!("{stem}{name}"));
    let shapes: [&[usize]; 7] = [&[8, 6], &[4, 6], &[4, 6], &[6, 8], &[8], &[4], &[4]];
    let data: Vec<Vec<f32>> = shapes.iter().enumerate().map(|(at, shape)| draw(at, shape.iter().product())).collect();
    let tensors: Vec<_> = names.iter().zip(shapes).zip(&data).map(|((name, shape), data)| (&name[..], shape, &data[..])).collect();
    let naming = Naming::Llama { prefix: "model.".into(), layer: 2 };
    let plain = numbered(&tensors[..4]).multi_head(&naming, 4, 2).expect("Llama");
    let biased = numbered(&tensors).multi_head(&naming, 4, 2).expect("Qwen 2");
    for (at, (plain, biased)) in
        [(plain.query(), biased.query()), (plain.key(), biased.key()), (plain.value(), biased.value())].into_iter().enumerate()
    {
        assert_eq!((plain.weight(), plain.bias()), (&data[at][..], None));
        assert_eq!((biased.weight(), biased.bias()), (&data[at][..], Some(&data[4 + at][..])));
    }
    assert_eq!((biased.output().weight(), biased.output().bias()), (&data[3][..], None));
    assert!(file_error(numbered(&tensors[..6]).multi_head(&naming, 4, 2)).contains("v_proj.bias"));
    let norm = [1.0; 2];
    let normed: Vec<_> = tensors.iter().copied().chain([("model.layers.2.self_attn.k_norm.weight", &[2][..], &norm[..])]).collect();
    match numbered(&normed).multi_head(&naming, 4, 2) {
        Err(Error::Unsupported { what, .. }) => assert!(what.contains("self_attn.k_norm.weight"), "{what}"),
        other => panic!("{other:?}"),
    }
}

/// Returns the message of a file error, which must name the file.
fn file_error<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(Error::File { path, why }) if path == "weights" => why.to_string(),
        other => panic!("{other:?} is not an error about the file"),
    }
}

#[test]
fn bad_files_are_named_errors() {
    let sound = file(&BERT);
    for end in [0, 7, 8, 20, sound.len() / 2, sound.len() - 1] {
        file_error(WeightFile::from_bytes("weights", sound[..end].to_vec()));
    }
    file_error(WeightFile::from_bytes("weights", vec![0xff; 64]));
    let missing = WeightFile::open("no/such/file").expect_err("it is missing");
    assert!(matches!(&missing, Error::File { path, .. } if path == "no/such/file"));
    let source = std::error::Error::source(&missing).and_then(|source| source.downcast_ref::<std::io::Error>());
    assert_eq!(source.map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));

    let open = |tensors: &[(&str, Dtype, &[usize])]| WeightFile::from_bytes("weights", file(tensors)).expect("a sound file");
    assert!(file_error(open(&BERT).multi_head(&bert(4), 2, 2)).contains("bert.encoder.layer.4.attention.self.query.weight"));
    for (missing, tensor) in BERT.iter().enumerate() {
        let rest: Vec<_> = (0..BERT.len()).filter(|&at| at != missing).map(|at| BERT[at]).collect();
        assert!(file_error(open(&rest).multi_head(&bert(3), 2, 2)).contains(tensor.0));
    }
    for (at, shape) in [(0, &[64][..]), (0, &[8, 0]), (0, &[2, 4, 8]), (1, &[7]), (3, &[8, 8]), (5, &[])] {
        let mut tensors = BERT;
        tensors[at].2 = shape;
        assert!(file_error(open(&tensors).multi_head(&bert(3), 2, 2)).contains(tensors[at].0), "{shape:?}");
    }
    let mut tensors = BERT;
    tensors[4].1 = Dtype::F64;
    assert!(file_error(open(&tensors).multi_head(&bert(3), 2, 2)).contains("F64"));
    tensors = BERT;
    tensors[2].2 = &[6, 8];
    tensors[3].2 = &[6];
    assert!(file_error(open(&tensors).multi_head(&bert(3), 2, 2)).contains("w_k"));

    let torch = |prefix: &str| Naming::Torch { prefix: prefix.into() };
    let odd = open(&[("in_proj_weight", Dtype::F32, &[10, 4]), ("out_proj.weight", Dtype::F32, &[4, 4])]);
    assert!(file_error(odd.multi_head(&torch(""), 2, 2)).contains("in_proj_weight"));
    let half_biased = open(&[
        ("a.in_proj_weight", Dtype::F32, &[12, 4]),
        ("a.in_proj_bias", Dtype::F32, &[12]),
        ("a.out_proj.weight", Dtype::F32, &[4, 4]),
    ]);
    assert!(file_error(half_biased.multi_head(&torch("a."), 2, 2)).contains("a.out_proj.bias"));
    assert!(file_error(half_biased.multi_head(&torch("b."), 2, 2)).contains("b.in_proj_weight"));
    let plain = open(&[
        ("wq", Dtype::F32, &[4, 4]),
        ("wk", Dtype::F32, &[4, 4]),
        ("wv", Dtype::F32, &[4, 4]),
        ("wo", Dtype::F32, &[4, 4]),
        ("bq", Dtype::F32, &[4]),
    ]);
    assert!(file_error(plain.multi_head(&Naming::Plain { prefix: String::new() }, 2, 2)).contains("`bk`"));
}
