//! Long contexts: every key counts, sums keep their precision, and equal scores give uniform rows, however large.

use crate::common::engines;
use wgpu_attention::{Alignment, BackwardInputs, DType, Dims, HostVec, Inputs, Layout, Problem, WantGradients};

/// Returns the sizes of a batch of 1 whose keys and values have one width.
const fn dims(num_heads: usize, num_kv_heads: usize, seq_len_q: usize, seq_len_kv: usize, head_dim: usize) -> Dims {
    Dims { batch: 1, num_heads, num_kv_heads, seq_len_q, seq_len_kv, head_dim, head_dim_v: head_dim }
}

/// Returns the largest relative difference from `expected`; infinite if there is a NaN.
fn error(got: &[f32], expected: f64) -> f64 {
    got.iter()
        .map(|&x| ((f64::from(x) - expected) / expected).abs())
        .fold(0.0, |most, x| if x.is_nan() { f64::INFINITY } else { x.max(most) })
}

/// Counts keys: with queries of 0, each visible key adds 1 to exp(lse), and the output is the mean of the values.
#[test]
fn every_key_counts() {
    let problems = [
        ("16 rows, head of 128", Problem::new(dims(1, 1, 16, 8192, 128))),
        ("16 rows, head of 64", Problem::new(dims(1, 1, 16, 20_000, 64))),
        ("16 rows, head of 80", Problem::new(dims(1, 1, 16, 30_000, 80))),
        ("2 rows", Problem::new(dims(1, 1, 2, 131_072, 16))),
        ("20 rows", Problem::new(dims(1, 1, 20, 131_072, 16))),
        ("decode, 8 heads", Problem::new(dims(8, 8, 1, 131_072, 64))),
        ("decode, 32 heads on 8", Problem::new(dims(32, 8, 1, 131_072, 64)).stored(DType::F16, Layout::Bhsd)),
        ("decode, a million keys", Problem::new(dims(1, 1, 1, 1 << 20, 32))),
        ("causal", Problem::new(dims(1, 1, 8192, 8192, 128)).aligned(Alignment::TopLeft).causal()),
    ];
    for backend in engines().iter().filter(|backend| !backend.name.contains("staged")) {
        for (what, problem) in &problems {
            let problem = problem.clone().with_lse();
            let filled = |len: usize, x: f32| HostVec::from_f32(problem.query.dtype, &vec![x; len]);
            let (query, key, value) = (filled(problem.query_len(), 0.0), filled(problem.key_len(), 0.1), filled(problem.value_len(), 0.1));
            let outputs = (backend.attend)(&problem, &Inputs::new(query.as_slice(), key.as_slice(), value.as_slice()))
                .unwrap_or_else(|error| panic!("{what} on {}: {error}", backend.name));
            let lse = outputs.lse.expect("asked for");
            let keys = |row: usize| if problem.visibility.causal { row + 1 } else { problem.dims.seq_len_kv } as f64;
            let lost = lse.iter().enumerate().map(|(at, &lse)| (f64::from(lse).exp() / keys(at % problem.dims.seq_len_q) - 1.0).abs());
            let lost = lost.fold(0.0, f64::max);
            assert!(lost < 1e-4, "{what} on {}: of the keys {lost} are not counted", backend.name);
            let tenth = f64::from(value.to_f32()[0]);
            // The errors of a sum's parts add up, a few 1e-11 per key, also beyond 131,072 keys.
            let rounding = if problem.output.dtype == DType::F16 { 1e-3 } else { 3e-11 * problem.dims.seq_len_kv as f64 };
            let worst = error(&outputs.output.to_f32(), tenth);
            assert!(worst < 3e-5 + rounding, "{what} on {}: the mean of equal values is off by {worst}", backend.name);
        }
    }
}

/// Checks dV of few keys, which is a sum over very many rows.
#[test]
fn gradients_of_very_many_rows() {
    for dtype in [DType::F32, DType::F16] {
        gradients_of_rows(if dtype == DType::F32 { 131_072 } else { 5000 }, dtype);
    }
}

fn gradients_of_rows(rows: usize, dtype: DType) {
    let problem = Problem::new(dims(2, 1, rows, 4, 16)).stored(dtype, Layout::Bhsd);
    let filled = |len: usize, x: f32| HostVec::from_f32(dtype, &vec![x; len]);
    let (query, key, value) = (filled(problem.query_len(), 0.0), filled(problem.key_len(), 0.1), filled(problem.value_len(), 0.1));
    let output = filled(problem.output_len(), 0.1);
    let inputs = Inputs::new(query.as_slice(), key.as_slice(), value.as_slice());
    let backward = BackwardInputs::new(&output, &output);
    for backend in engines() {
        let Some(engine) = &backend.engine else { continue };
        let gradients = engine.backward(&problem, &inputs, &backward, &WantGradients::default());
        let gradients = gradients.unwrap_or_else(|error| panic!("{}: {error}", backend.name));
        // Each row of the two heads contributes a quarter of its gradient to each key.
        let worst = error(&gradients.value.expect("wanted").to_f32(), 2.0 * rows as f64 * f64::from(output.to_f32()[0]) / 4.0);
        let rounding = if dtype == DType::F16 { 1e-3 } else { 0.0 };
        assert!(worst < 3e-5 + rounding, "{}: dV is off by {worst}", backend.name);
    }
}
