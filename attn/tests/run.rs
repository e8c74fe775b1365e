//! `attn run` on arrays in files, checked against the oracle.

mod common;

use std::path::{Path, PathBuf};

use common::{assert_close, attn, folder, npy, npy_f32, npy_i64, numbers, read_npy, text, tuple};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use wgpu_attention::oracle::{self, Reference};
use wgpu_attention::verify::{Data, backward_oracle, oracle};
use wgpu_attention::{
    Alibi, Alignment, BackwardInputs, BroadcastShape, DType, Dims, Dropout, HostVec, Inputs, Layout, Owner, Problem, ScoreOrder,
    ScoreStage, SummedRows, Table, Term, Varlen, WantGradients,
};

const DIMS: Dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 5, seq_len_kv: 7, head_dim: 8, head_dim_v: 6 };

struct Files {
    folder: PathBuf,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
}

/// Writes query.npy, key.npy and value.npy to a folder of this name.
fn files(name: &str) -> Files {
    let folder = folder(name);
    let [query, key, value] = [(2 * 4 * 5 * 8, 1), (2 * 2 * 7 * 8, 2), (2 * 2 * 7 * 6, 3)].map(|(count, seed)| numbers(count, seed));
    for (name, shape, data) in [("query", [2, 4, 5, 8], &query), ("key", [2, 2, 7, 8], &key), ("value", [2, 2, 7, 6], &value)] {
        std::fs::write(folder.join(format!("{name}.npy")), npy_f32(&shape, data)).expect("written");
    }
    Files { folder, query, key, value }
}

impl Files {
    fn path(&self, name: &str) -> String {
        text(&self.folder.join(name)).to_string()
    }

    fn run(&self, more: &[&str]) -> common::Ran {
        let [query, key, value, out] = ["query.npy", "key.npy", "value.npy", "out.npy"].map(|name| self.path(name));
        let base = ["run", "--query", &query, "--key", &key, "--value", &value, "--out", &out, "--backend", "cpu"];
        attn(&[&base[..], more].concat())
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs::new(&self.query, &self.key, &self.value)
    }

    fn oracle(&self, problem: &Problem) -> Reference {
        oracle::attention(problem, &self.inputs()).expect("a valid problem")
    }

    fn out(&self) -> (Vec<usize>, String, Vec<f32>) {
        read_npy(&self.folder.join("out.npy"))
    }
}

#[test]
fn grouped_heads_lse_and_weights() {
    let files = files("grouped");
    let (lse, weights) = (files.path("lse.npy"), files.path("weights.npy"));
    let told = files.run(&["--lse", &lse, "--weights", &weights, "--json"]).ok();
    assert!(told.err.contains("cpu") && told.err.contains("ms") && told.err.contains("out.npy"), "{}", told.err);
    assert_eq!(told.json()["shape"], serde_json::json!([2, 4, 5, 6]));
    let oracle = files.oracle(&Problem::new(DIMS));
    let (shape, descr, output) = files.out();
    assert_eq!((&shape[..], &descr[..]), (&[2, 4, 5, 6][..], "'<f4'"));
    assert_close(&output, &oracle.output, 1e-5);
    let (shape, _, lse) = read_npy(Path::new(&lse));
    assert_eq!(shape, [2, 4, 5]);
    assert_close(&lse, &oracle.lse, 1e-5);
    let (shape, _, weights) = read_npy(Path::new(&weights));
    assert_eq!(shape, [2, 4, 5, 7]);
    assert_close(&weights, &oracle.weights, 1e-5);
}

#[test]
fn key_sums_of_all_and_of_the_last_rows() {
    let files = files("key_sums");
    let sums = files.path("key_sums.npy");
    for (rows, summed) in [("all", SummedRows::All), ("2", SummedRows::Last(2))] {
        files.run(&["--key-sums", &sums, "--summed-rows", rows, "--causal", "bottom-right"]).ok();
        let problem = Problem::new(DIMS).aligned(Alignment::BottomRight).causal().with_key_sums(summed);
        let (shape, _, got) = read_npy(Path::new(&sums));
        assert_eq!(shape, [2, 2, 7]);
        assert_close(&got, &files.oracle(&problem).key_sums(&problem, &files.inputs()), 1e-5);
    }
    files.run(&["--key-sums", &sums, "--summed-rows", "some"]).refused(&["neither `all` nor a number"]);
}

#[test]
fn options() {
    let files = files("options");
    let plain = || Problem::new(DIMS);
    let with = |change: &dyn Fn(&mut Problem)| {
        let mut problem = plain();
        change(&mut problem);
        problem
    };
    let cases: [(&[&str], Problem); 8] = [
        (&["--causal", "top-left"], plain().aligned(Alignment::TopLeft).causal()),
        (&["--causal", "bottom-right"], plain().aligned(Alignment::BottomRight).causal()),
        (&["--causal", "-2"], plain().aligned(Alignment::Offset(-2)).causal()),
        (&["--causal=3", "--window", "1,-"], plain().aligned(Alignment::Offset(3)).causal().window(Some(1), None)),
        (&["--window", "1,2", "--align", "bottom-right"], plain().aligned(Alignment::BottomRight).window(Some(1), Some(2))),
        (&["--window", "-,0", "--align", "top-left"], plain().aligned(Alignment::TopLeft).window(None, Some(0))),
        (&["--scale", "0.7", "--softcap", "0.5"], with(&|problem| (problem.scale, problem.softcap) = (Some(0.7), Some(0.5)))),
        (&["--scale", "-1"], with(&|problem| problem.scale = Some(-1.0))),
    ];
    for (arguments, problem) in cases {
        files.run(arguments).ok();
        assert_close(&files.out().2, &files.oracle(&problem).output, 1e-5);
    }
}

#[test]
fn masks_and_biases_broadcast() {
    let files = files("masks");
    let (mask, bias) = (files.path("mask.npy"), files.path("bias.npy"));
    let seen: Vec<bool> = (0..5 * 7).map(|at| at % 3 != 0 && at / 7 != 2).collect();
    let bytes: Vec<u8> = seen.iter().map(|&seen| u8::from(seen)).collect();
    std::fs::write(&mask, npy("|b1", false, "(5, 7)", &bytes)).expect("written");
    let mut added = numbers(4 * 7, 9);
    added[3] = f32::NEG_INFINITY;
    std::fs::write(&bias, npy_f32(&[4, 1, 7], &added)).expect("written");
    files.run(&["--mask", &mask, "--bias", &bias]).ok();
    let mut problem = Problem::new(DIMS);
    problem.visibility.mask = Some(BroadcastShape([1, 1, 5, 7]));
    problem.bias = Some(BroadcastShape([1, 4, 1, 7]));
    let oracle = oracle::attention(&problem, &Inputs { mask: &seen, bias: &added, ..files.inputs() }).expect("a valid problem");
    let output = files.out().2;
    assert_close(&output, &oracle.output, 1e-5);
    assert!(output[2 * 6..3 * 6].iter().all(|&x| x == 0.0), "row 2 sees nothing");
}

#[test]
fn other_orders_and_types() {
    let files = files("orders");
    let problem = Problem::new(DIMS);
    let oracle = files.oracle(&problem);
    files.run(&[]).ok();
    let plain = files.out();

    // Fortran order: the first index varies fastest.
    let fortran: Vec<u8> = (0..2 * 4 * 5 * 8)
        .flat_map(|at| {
            let (b, h, i, d) = (at % 2, at / 2 % 4, at / 8 % 5, at / 40);
            files.query[((b * 4 + h) * 5 + i) * 8 + d].to_le_bytes()
        })
        .collect();
    std::fs::write(files.folder.join("query.npy"), npy("<f4", true, "(2, 4, 5, 8)", &fortran)).expect("written");
    files.run(&[]).ok();
    assert_eq!(files.out(), plain);

    // Big-endian.
    let swapped: Vec<u8> = files.query.iter().flat_map(|x| x.to_be_bytes()).collect();
    std::fs::write(files.folder.join("query.npy"), npy(">f4", false, "(2, 4, 5, 8)", &swapped)).expect("written");
    files.run(&[]).ok();
    assert_eq!(files.out(), plain);

    // float16 in, float16 out.
    for (name, shape, data) in
        [("query", [2, 4, 5, 8], &files.query), ("key", [2, 2, 7, 8], &files.key), ("value", [2, 2, 7, 6], &files.value)]
    {
        let bytes: Vec<u8> = data.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        std::fs::write(files.folder.join(format!("{name}.npy")), npy("<f2", false, &tuple(&shape), &bytes)).expect("written");
    }
    files.run(&[]).ok();
    let (_, descr, output) = files.out();
    assert_eq!(descr, "'<f2'");
    assert_close(&output, &oracle.output, 4e-3);
}

#[test]
fn unbatched_and_heads_inside() {
    let files = files("unbatched");
    let first = |data: &[f32], len: usize| data[..len].to_vec();
    let (query, key, value) = (first(&files.query, 4 * 5 * 8), first(&files.key, 2 * 7 * 8), first(&files.value, 2 * 7 * 6));
    for (name, shape, data) in [("query", [4, 5, 8], &query), ("key", [2, 7, 8], &key), ("value", [2, 7, 6], &value)] {
        std::fs::write(files.folder.join(format!("{name}.npy")), npy_f32(&shape, data)).expect("written");
    }
    let lse = files.path("lse.npy");
    files.run(&["--lse", &lse]).ok();
    let (shape, _, output) = files.out();
    assert_eq!((shape, read_npy(Path::new(&lse)).0), (vec![4, 5, 6], vec![4, 5]));
    let one = Problem::new(Dims { batch: 1, ..DIMS });
    assert_close(&output, &oracle::attention(&one, &Inputs::new(&query, &key, &value)).expect("valid").output, 1e-5);

    // The data read as [seq, heads, dim], with the sizes of both axes swapped: 5 query heads do not fit 7 key heads.
    for (name, shape, data) in [("query", [5, 4, 8], &query), ("key", [7, 2, 8], &key), ("value", [7, 2, 6], &value)] {
        std::fs::write(files.folder.join(format!("{name}.npy")), npy_f32(&shape, data)).expect("written");
    }
    files.run(&["--layout", "bshd"]).ok();
    let (shape, _, output) = files.out();
    assert_eq!(shape, [5, 4, 6]);
    let inside = one.stored(DType::F32, Layout::Bshd);
    let oracle = oracle::attention(&inside, &Inputs::new(&query, &key, &value)).expect("valid").output;
    let turned: Vec<f64> = (0..5 * 4 * 6).map(|at| oracle[(at / 6 % 4 * 5 + at / 24) * 6 + at % 6]).collect();
    assert_close(&output, &turned, 1e-5);
}

#[test]
fn safetensors_in_and_out() {
    let files = files("safetensors");
    let (input, out) = (files.path("qkv.safetensors"), files.path("out.safetensors"));
    let bytes = |data: &[f32]| data.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect::<Vec<u8>>();
    let (query, key, value) = (bytes(&files.query), bytes(&files.key), bytes(&files.value));
    let view = |shape: &[usize], data| TensorView::new(Dtype::BF16, shape.to_vec(), data).expect("a whole tensor");
    let mask = vec![1u8, 1, 1, 0, 1, 1, 0];
    let tensors = [
        ("query", view(&[2, 4, 5, 8], &query)),
        ("key", view(&[2, 2, 7, 8], &key)),
        ("value", view(&[2, 2, 7, 6], &value)),
        ("mask", TensorView::new(Dtype::BOOL, vec![7], &mask).expect("a whole tensor")),
    ];
    std::fs::write(&input, safetensors::serialize(tensors, None).expect("serialised")).expect("written");
    attn(&["run", "--input", &input, "--out", &out, "--backend", "cpu"]).ok();
    let written = std::fs::read(&out).expect("written");
    let written = safetensors::SafeTensors::deserialize(&written).expect("a whole file");
    let output = written.tensor("output").expect("there");
    assert_eq!((output.dtype(), output.shape()), (Dtype::BF16, &[2, 4, 5, 6][..]));
    let output: Vec<f32> = output.data().chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f32()).collect();
    let seen: Vec<bool> = mask.iter().map(|&x| x != 0).collect();
    let mut problem = Problem::new(DIMS);
    problem.visibility.mask = Some(BroadcastShape([1, 1, 1, 7]));
    let oracle = oracle::attention(&problem, &Inputs { mask: &seen, ..files.inputs() }).expect("a valid problem");
    assert_close(&output, &oracle.output, 3e-2);
    attn(&["run", "--input", &input, "--out", &files.path("o.npy")]).refused(&["o.npy", "bfloat16", ".safetensors"]);
}

#[test]
fn nothing_to_see_is_no_error() {
    let files = files("nothing");
    std::fs::write(files.folder.join("key.npy"), npy_f32(&[2, 2, 0, 8], &[])).expect("written");
    std::fs::write(files.folder.join("value.npy"), npy_f32(&[2, 2, 0, 6], &[])).expect("written");
    let lse = files.path("lse.npy");
    files.run(&["--lse", &lse]).ok();
    assert!(files.out().2.iter().all(|&x| x == 0.0));
    assert!(read_npy(Path::new(&lse)).2.iter().all(|&x| x == f32::NEG_INFINITY));
}

#[test]
fn what_was_there_stays_when_nothing_is_computed() {
    let files = files("stays");
    std::fs::write(files.folder.join("out.npy"), "precious").expect("written");
    files.run(&["--scale", "nan"]).refused(&["scale"]);
    assert_eq!(std::fs::read(files.folder.join("out.npy")).expect("still there"), b"precious");
}

/// Writes an array and returns its path.
fn write(files: &Files, name: &str, bytes: Vec<u8>) -> String {
    std::fs::write(files.folder.join(name), bytes).expect("written");
    files.path(name)
}

#[test]
fn every_option_of_a_problem() {
    let files = files("every");
    let data = Data {
        alibi_slopes: numbers(4, 11),
        relative_bias: numbers(4 * 7, 12),
        sinks: numbers(4, 13),
        kv_lengths: vec![6, 7],
        prefix_lengths: vec![2, 0],
        segment_ids_q: vec![0, 0, 1, 1, 1, 0, 1, 1, 1, 1],
        segment_ids_kv: vec![0, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1],
        dropout: Dropout { seed: 5, offset: 2 },
        ..Data::new(HostVec::F32(files.query.clone()), HostVec::F32(files.key.clone()), HostVec::F32(files.value.clone()))
    };
    let floats = |name: &str, shape: &[usize], data: &[f32]| write(&files, name, npy_f32(shape, data));
    let integers = |name: &str, shape: &[usize], data: Vec<i64>| write(&files, name, npy_i64(shape, &data));
    let ids = |ids: &[i32]| ids.iter().map(|&id| id.into()).collect();
    let alibi = floats("alibi.npy", &[4], &data.alibi_slopes);
    let relative = floats("relative.npy", &[4, 7], &data.relative_bias);
    let sinks = floats("sinks.npy", &[4], &data.sinks);
    let (lengths, prefix) = (integers("lengths.npy", &[2], vec![6, 7]), integers("prefix.npy", &[2], vec![2, 0]));
    let segments = integers("segments.npy", &[2, 5], ids(&data.segment_ids_q));
    let segments_kv = integers("segments_kv.npy", &[2, 7], ids(&data.segment_ids_kv));
    let mut problem = Problem::new(DIMS).aligned(Alignment::BottomRight).causal().prefix_lengths().kv_lengths().segments();
    (problem.alibi, problem.relative_bias_max_distance, problem.sinks) = (Some(Alibi::Signed), Some(3), true);
    (problem.dropout, problem.softcap, problem.score_order) = (Some(0.25), Some(1.5), ScoreOrder::BiasThenSoftcap);
    (problem.want.stats, problem.want.scores) = (true, Some(ScoreStage::Masked));
    let d_output = numbers(2 * 4 * 5 * 6, 14);
    let gradient = floats("d_output.npy", &[2, 4, 5, 6], &d_output);
    let d_lse = numbers(2 * 4 * 5, 15);
    let lse_gradient = floats("d_lse.npy", &[2, 4, 5], &d_lse);
    let (scores, stats, gradients) = (files.path("scores.npy"), files.path("stats.npy"), files.path("gradients"));
    let options = [
        &["--causal", "bottom-right", "--prefix-lengths", &prefix, "--kv-lengths", &lengths, "--segment-ids", &segments][..],
        &["--segment-ids-kv", &segments_kv, "--alibi", &alibi, "--alibi-form", "signed", "--relative-bias", &relative],
        &["--sinks", &sinks, "--dropout", "0.25", "--dropout-seed", "5", "--dropout-offset", "2", "--softcap-after-biases", "1.5"],
    ]
    .concat();
    let results = ["--scores", &scores, "--stats", &stats, "--d-output", &gradient, "--d-lse", &lse_gradient, "--gradients", &gradients];
    files.run(&[&options[..], &results].concat()).ok();

    let wide = |numbers: Vec<f32>| numbers.into_iter().map(f64::from).collect::<Vec<f64>>();
    let expected = oracle(&problem, &data.inputs()).expect("a valid problem");
    assert_close(&files.out().2, &wide(expected.output.to_f32()), 1e-5);
    assert_close(&read_npy(Path::new(&scores)).2, &wide(expected.scores.clone().expect("wanted")), 1e-5);
    let (shape, _, got) = read_npy(Path::new(&stats));
    assert_eq!(shape, [2, 4, 5, 2]);
    assert_close(&got, &wide(expected.stats.clone().expect("wanted").into_flattened()), 1e-5);

    let backward = BackwardInputs { d_lse: Some(&d_lse), ..BackwardInputs::new(&expected.output, &d_output) };
    let want = WantGradients { through_lse: true, ..WantGradients::all(&problem) };
    let expected = backward_oracle(&problem, &data.inputs(), &backward, &want).expect("a valid problem");
    let read = |name: &str| read_npy(&Path::new(&gradients).join(name));
    for (name, shape, expected) in [
        ("d_query.npy", &[2, 4, 5, 8][..], expected.query),
        ("d_key.npy", &[2, 2, 7, 8], expected.key),
        ("d_value.npy", &[2, 2, 7, 6], expected.value),
        ("d_relative_bias.npy", &[4, 7], expected.relative_bias.map(HostVec::F32)),
        ("d_sinks.npy", &[4], expected.sinks.map(HostVec::F32)),
    ] {
        let (got_shape, _, got) = read(name);
        assert_eq!(got_shape, shape, "{name}");
        assert_close(&got, &wide(expected.expect("wanted").into_f32()), 1e-4);
    }
    assert!(!Path::new(&gradients).join("d_bias.npy").exists());
}

#[test]
fn a_table_with_an_owner_has_a_gradient() {
    let files = files("owner");
    let rates = numbers(4, 16);
    let table = format!("rates:head={}", write(&files, "rates.npy", npy_f32(&[4], &rates)));
    let d_output = numbers(2 * 4 * 5 * 6, 14);
    let gradient = write(&files, "d_output.npy", npy_f32(&[2, 4, 5, 6], &d_output));
    let (score, gradients) = ("x + rates[at.head] * f32(at.key)", files.path("gradients"));
    files.run(&["--score", score, "--table", &table, "--d-output", &gradient, "--gradients", &gradients]).ok();

    let text = format!("fn score(x: f32, at: Pair) -> f32 {{ return {score}; }}");
    let term = Term::with_tables(&text, &[Table::f32("rates", 4).owner(Owner::Head)]).expect("valid");
    let problem = Problem::new(DIMS).with_term(term);
    let term_tables = problem.term_tables(&[("rates", rates[..].into())]).expect("valid");
    let inputs = Inputs { term_tables: &term_tables, ..Inputs::new(&files.query, &files.key, &files.value) };
    let output = oracle(&problem, &inputs).expect("a valid problem").output;
    let backward = BackwardInputs::new(&output, &d_output);
    let expected = backward_oracle(&problem, &inputs, &backward, &WantGradients::all(&problem)).expect("a valid problem");
    let (shape, _, got) = read_npy(&Path::new(&gradients).join("d_table_rates.npy"));
    assert_eq!(shape, [4]);
    assert_close(&got, &expected.term_tables.expect("wanted").into_iter().map(f64::from).collect::<Vec<_>>(), 1e-4);

    let unknown = table.replace("head", "heads");
    files.run(&["--score", score, "--table", &unknown]).refused(&["heads", "distance"]);
    files.run(&["--score", "x + rates[at.key]", "--table", &table]).refused(&["rates", "Owner::Key"]);
}

#[test]
fn varlen_sequences_and_pages() {
    let files = files("varlen");
    let (query, key, value) = (numbers(9 * 4 * 8, 1), numbers(9 * 2 * 8, 2), numbers(9 * 2 * 6, 3));
    for (name, shape, data) in [("query", [9, 4, 8], &query), ("key", [9, 2, 8], &key), ("value", [9, 2, 6], &value)] {
        write(&files, &format!("{name}.npy"), npy_f32(&shape, data));
    }
    let boundaries = write(&files, "cu.npy", npy_i64(&[3], &[0, 4, 9]));
    let lse = files.path("lse.npy");
    files.run(&["--layout", "bshd", "--cu-seqlens", &boundaries, "--causal", "bottom-right", "--lse", &lse]).ok();
    let dims = Dims { seq_len_q: 5, seq_len_kv: 5, ..DIMS };
    let problem = Problem::new(dims).stored(DType::F32, Layout::Bshd).aligned(Alignment::BottomRight).causal().with_lse();
    let problem = problem.varlen(Varlen { tokens_q: 9, tokens_kv: 9 });
    let data = Data {
        cu_seqlens_q: vec![0, 4, 9],
        cu_seqlens_kv: vec![0, 4, 9],
        ..Data::new(HostVec::F32(query), HostVec::F32(key), HostVec::F32(value))
    };
    let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect::<Vec<f64>>();
    let expected = oracle(&problem, &data.inputs()).expect("a valid problem");
    let (shape, _, output) = files.out();
    assert_eq!((&shape[..], &read_npy(Path::new(&lse)).0[..]), (&[9, 4, 6][..], &[9, 4][..]));
    assert_close(&output, &wide(&expected.output.to_f32()), 1e-5);
    let bad = write(&files, "cu.npy", npy_i64(&[3], &[0, 4, 8]));
    files.run(&["--layout", "bshd", "--cu-seqlens", &bad]).refused(&["--cu-seqlens", "9 tokens"]);

    // Two items of 5 queries, with 3 and 8 keys in pages of 4.
    let (query, key, value) = (numbers(2 * 4 * 5 * 8, 1), numbers(6 * 2 * 4 * 8, 2), numbers(6 * 2 * 4 * 6, 3));
    for (name, shape, data) in [("query", [2, 4, 5, 8], &query), ("key", [6, 2, 4, 8], &key), ("value", [6, 2, 4, 6], &value)] {
        write(&files, &format!("{name}.npy"), npy_f32(&shape, data));
    }
    let table = write(&files, "pages.npy", npy_i64(&[2, 2], &[3, 0, 5, 1]));
    let lengths = write(&files, "lengths.npy", npy_i64(&[2], &[3, 8]));
    files.run(&["--page-table", &table, "--kv-lengths", &lengths]).ok();
    let paged = wgpu_attention::Paged { page_size: 4, pages: 6, pages_per_item: 2 };
    let problem = Problem::new(Dims { seq_len_kv: 8, ..DIMS }).paged(paged);
    let data = Data {
        page_table: vec![3, 0, 5, 1],
        kv_lengths: vec![3, 8],
        ..Data::new(HostVec::F32(query), HostVec::F32(key), HostVec::F32(value))
    };
    let expected = oracle(&problem, &data.inputs()).expect("a valid problem");
    assert_close(&files.out().2, &wide(&expected.output.to_f32()), 1e-5);
    files.run(&["--page-table", &table]).refused(&["--kv-lengths"]);
}

#[test]
fn terms_in_wgsl() {
    let files = files("wgsl");
    let output = |arguments: &[&str]| {
        files.run(arguments).ok();
        files.out().2
    };
    let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect::<Vec<f64>>();
    // A body, a function, a file of a function, and a file of a body.
    let causal = output(&["--causal", "bottom-right"]);
    let function = "fn visible(at: Pair) -> bool { return at.key <= at.position; }";
    let whole = write(&files, "causal.wgsl", format!("// A fn of a pair.\n{function}\n").into_bytes());
    let body = write(&files, "body.wgsl", b"at.key <= at.position // no `fn` here, and no return\n".to_vec());
    for text in ["at.key <= at.position", "if (at.key > at.position) { return false; } return true;", function, &whole, &body] {
        assert_close(&output(&["--visible", text, "--align", "bottom-right"]), &wide(&causal), 1e-6);
    }
    // ALiBi, its slopes as a table; and with a mask in the same file, which is one term.
    let slopes = write(&files, "slopes.npy", npy_f32(&[4], &[0.5, 0.25, 0.125, 0.0625]));
    let table = format!("slopes={slopes}");
    let score = "x - slopes[at.head] * f32(abs(at.position - at.key))";
    let alibi = output(&["--alibi", &slopes, "--align", "0"]);
    assert_close(&output(&["--score", score, "--table", &table, "--align", "0"]), &wide(&alibi), 1e-6);
    let both = format!("{function}\nfn score(x: f32, at: Pair) -> f32 {{ return {score}; }}");
    let both = write(&files, "both.wgsl", both.into_bytes());
    let expected = output(&["--alibi", &slopes, "--causal", "1"]);
    assert_close(&output(&["--score", &both, "--visible", &both, "--table", &table, "--align", "1"]), &wide(&expected), 1e-6);
    assert_close(&output(&["--score", score, "--visible", function, "--table", &table, "--align", "1"]), &wide(&expected), 1e-6);
    // int64 is i32, uint32 is u32, each checked by the compiler; a table of both functions.
    let ids = write(&files, "ids.npy", npy_i64(&[7], &[0, 0, 0, 1, 1, 1, -1]));
    let bits = write(&files, "bits.npy", npy("<u4", false, "(1,)", &0b101_1101u32.to_le_bytes()));
    let mask: Vec<bool> =
        (0..5 * 7).map(|at| [0, 0, 0, 1, 1][at / 7] == [0, 0, 0, 1, 1, 1, -1][at % 7] && 0b101_1101 >> (at % 7) & 1 == 1).collect();
    let mask = write(&files, "mask.npy", npy("|b1", false, "(5, 7)", &mask.iter().map(|&seen| u8::from(seen)).collect::<Vec<u8>>()));
    let visible = "ids[at.row] == ids[at.key] && ((bits[0] >> u32(at.key)) & 1u) == 1u";
    let (ids, bits) = (format!("ids={ids}"), format!("bits={bits}"));
    let expected = output(&["--mask", &mask]);
    assert_close(&output(&["--visible", visible, "--table", &ids, "--table", &bits]), &wide(&expected), 1e-6);
    let score = "x + 0.0 * f32(ids[at.key])";
    assert_close(&output(&["--visible", visible, "--score", score, "--table", &ids, "--table", &bits]), &wide(&expected), 1e-6);
    // Gradients, against those of the built-in softcap.
    let gradient = write(&files, "do.npy", npy_f32(&[2, 4, 5, 6], &numbers(2 * 4 * 5 * 6, 4)));
    let [own, expected] = [["--score", "0.5 * tanh(2.0 * x)"], ["--softcap", "0.5"]].map(|option| {
        let folder = files.path("gradients");
        files.run(&[&option[..], &["--d-output", &gradient, "--gradients", &folder]].concat()).ok();
        read_npy(&Path::new(&folder).join("d_query.npy")).2
    });
    assert_close(&own, &wide(&expected), 1e-5);
}

#[test]
fn bad_terms_in_wgsl() {
    let files = files("bad_wgsl");
    let refused = |arguments: &[&str], culprits: &[&str]| files.run(arguments).refused(culprits);
    refused(&["--visible", "at.key <= at.nothing"], &["--visible", "line 1, column 14", "nothing"]);
    refused(&["--visible", "fn visible(at: Pair) -> bool {\n  return at.key; }"], &["--visible", "line 2"]);
    let broken = write(&files, "broken.wgsl", b"\n\nat.key <".to_vec());
    refused(&["--visible", &broken], &["--visible", "broken.wgsl", "at the end"]);
    refused(&["--visible", "no_such.wgsl"], &["--visible no_such.wgsl"]);
    refused(
        &["--score", "fn visible(at: Pair) -> bool { return true; }"],
        &["--score", "does not define", "fn score(x: f32, at: Pair) -> f32"],
    );
    refused(&["--visible", "at.key <= at.position"], &["--visible", "5 queries and 7 keys", "--align"]);
    refused(&["--visible", "at.key <= 2", "--align", "0"], &["--align"]);
    let floats = write(&files, "floats.npy", npy_f32(&[2], &[1.0, 2.0]));
    let table = format!("t={floats}");
    refused(&["--visible", "at.key <= t[0]", "--table", &table], &["--visible", "line 1, column"]);
    refused(&["--visible", "at.key <= 2", "--table", &table], &["--table t", "neither"]);
    refused(&["--table", &table], &["--table t", "neither"]);
    refused(&["--score", "x + t[0]"], &["--score", "line 1, column 5", "t"]);
    refused(&["--score", "x + t[0]", "--table", &table, "--table", &table], &["--table t", "twice"]);
    refused(&["--score", "x + t[0]", "--table", "t"], &["--table t", "NAME=T.npy"]);
    refused(&["--score", "x + t[0]", "--table", "t=1,x"], &["--table t=1,x", "neither a file nor numbers"]);
    let empty = format!("t={}", write(&files, "empty.npy", npy_f32(&[0], &[])));
    refused(&["--score", "x + t[0]", "--table", &empty], &["--score", "`t`", "0 elements"]);
    let large = format!("t={}", write(&files, "large.npy", npy_i64(&[1], &[1 << 31])));
    refused(&["--score", "x + f32(t[0])", "--table", &large], &["large.npy", "out of range"]);
    let bools = format!("t={}", write(&files, "bools.npy", npy("|b1", false, "(1,)", &[1])));
    refused(&["--score", "x + f32(t[0])", "--table", &bools], &["bools.npy", "int32"]);
    let gradient = write(&files, "do.npy", npy_f32(&[2, 4, 5, 6], &numbers(2 * 4 * 5 * 6, 4)));
    let folder = files.path("gradients");
    let arguments = ["--score", "bitcast<f32>(bitcast<u32>(x) ^ 1u)", "--d-output", &gradient, "--gradients", &folder];
    refused(&arguments, &["--score", "cannot be derived", "line 1, column", "slope"]);
}

#[cfg(unix)]
#[test]
fn symbolic_links_are_followed() {
    let files = files("links");
    std::fs::write(files.folder.join("there.npy"), "old").expect("written");
    for target in ["there.npy", "new.npy"] {
        let link = files.folder.join("out.npy");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).expect("linked");
        files.run(&[]).ok();
        assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
        assert_eq!(read_npy(&files.folder.join(target)).0, [2, 4, 5, 6]);
    }
    let link = files.folder.join("out.npy");
    std::fs::remove_file(&link).expect("removed");
    std::os::unix::fs::symlink("query.npy", &link).expect("linked");
    files.run(&[]).refused(&["out.npy", "an input too"]);
}
