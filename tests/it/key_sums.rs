//! Sums of each key's weights: the same bits in every run, what they add up to, their progress, and refusals. What each is,
//! the generated suite compares with the oracle.

use std::ops::ControlFlow;

use crate::common::buffers::{draw, upload};
use crate::common::{adapters, cpu_and_adapters, open};
use wgpu_attention::gpu::{Attention, Bindings, ShaderOptions};
use wgpu_attention::{Algorithm, Alignment, Backend, Dims, Error, Inputs, Problem, Progress, SummedRows};

const DIMS: Dims = Dims { batch: 2, num_heads: 6, num_kv_heads: 2, seq_len_q: 150, seq_len_kv: 170, head_dim: 32, head_dim_v: 16 };

fn causal() -> Problem {
    Problem::new(DIMS).aligned(Alignment::BottomRight).causal()
}

/// Query, key and value of [`DIMS`].
fn data() -> [Vec<f32>; 3] {
    let keys = DIMS.batch * DIMS.num_kv_heads * DIMS.seq_len_kv;
    [draw(1, DIMS.batch * DIMS.num_heads * DIMS.seq_len_q * DIMS.head_dim), draw(2, keys * DIMS.head_dim), draw(3, keys * DIMS.head_dim_v)]
}

#[test]
fn runs_return_the_same_bits_and_each_row_adds_1() {
    let [query, key, value] = &data();
    let inputs = Inputs::new(query, key, value);
    for engine in cpu_and_adapters() {
        for algorithm in [Algorithm::Fused, Algorithm::Staged] {
            let engine = engine.clone().with_algorithm(algorithm);
            for (summed, rows) in [(SummedRows::All, 150.0), (SummedRows::Last(7), 7.0)] {
                let problem = causal().with_key_sums(summed);
                let outputs = engine.attention(&problem, &inputs).expect("computed");
                assert_eq!(engine.attention(&problem, &inputs).expect("computed"), outputs, "{}", engine.chosen());
                assert!(outputs.lse.is_none() && outputs.stats.is_none(), "{}", engine.chosen());
                for keys in outputs.key_sums.expect("wanted").chunks_exact(DIMS.seq_len_kv) {
                    let sum: f64 = keys.iter().map(|&sum| f64::from(sum)).sum();
                    assert!((sum - 3.0 * rows).abs() < 1e-3, "{}: {sum} instead of 3 heads of {rows} rows", engine.chosen());
                }
            }
        }
    }
}

#[test]
fn progress_grows_and_cancels() {
    // More heads than units that are computed between two reports.
    let dims = Dims { seq_len_q: 16, ..Dims::self_attention(512, 1, 64, 32) };
    let (query, key) = (draw(1, 512 * 16 * 32), draw(2, 512 * 64 * 32));
    let inputs = Inputs::new(&query, &key, &key);
    let (engine, problem) = (open(Backend::Cpu), Problem::new(dims).with_key_sums(SummedRows::All));
    let mut shares = vec![];
    let mut watch = |share| {
        shares.push(share);
        ControlFlow::Continue(())
    };
    engine.attention_controlled(&problem, &inputs, &mut Progress::new(&mut watch)).expect("computed");
    assert!(shares.is_sorted() && shares.last() == Some(&1.0) && shares.iter().any(|&share| share > 0.5 && share < 1.0), "{shares:?}");
    let mut cancel = |share| if share > 0.5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    assert_eq!(engine.attention_controlled(&problem, &inputs, &mut Progress::new(&mut cancel)), Err(Error::Cancelled));
}

#[test]
fn a_missing_or_surplus_buffer_is_refused() {
    for engine in adapters(ShaderOptions::default()) {
        let gpu = engine.gpu().expect("an adapter");
        let [query, key, value] = data().map(|data| upload(gpu.device(), gpu.queue(), &data));
        let output = upload(gpu.device(), gpu.queue(), &vec![0.0; causal().output_len()]);
        let sums = upload(gpu.device(), gpu.queue(), &vec![0.0; causal().key_sums_len()]);
        let short = upload(gpu.device(), gpu.queue(), &[0.0; 4]);
        let plain = Bindings::new(&query, &key, &value, &output);
        let with = |buffer| Bindings { key_sums: Some(wgpu_attention::wgpu::Buffer::as_entire_buffer_binding(buffer)), ..plain.clone() };
        for (problem, bindings) in [
            (causal().with_key_sums(SummedRows::All), plain.clone()),
            (causal().with_key_sums(SummedRows::All), with(&short)),
            (causal(), with(&sums)),
        ] {
            let attention = Attention::new(gpu, &problem, Algorithm::Auto).expect("planned");
            let refused = attention.bind(&bindings).expect_err("refused");
            assert!(matches!(refused, Error::Invalid { argument: "key_sums", .. }), "{refused}");
        }
    }
}
