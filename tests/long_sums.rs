//! Sums of very many equal numbers keep their precision, because they have levels instead of one chain.

use wgpu_attention::{Backend, BackwardInputs, Dims, Engine, EngineOptions, Inputs, Problem, WantGradients};

const MANY: usize = 131_072;

/// Returns the largest relative error of numbers that should all be `right`.
fn worst(got: &[f32], right: f64) -> f64 {
    got.iter().map(|&x| (f64::from(x) / right - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn equal_values_come_back() {
    let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() }).expect("it is always there");
    for seq_len_q in [1, 2, 20] {
        let problem = Problem::new(Dims { seq_len_q, seq_len_kv: MANY, ..Dims::self_attention(1, 1, 0, 16) });
        let (query, key) = (vec![0.25; problem.query_len()], vec![0.5; problem.key_len()]);
        let value = vec![0.1; problem.value_len()];
        let output = engine.attention(&problem, &Inputs::new(&query, &key, &value)).expect("valid").output.to_f32();
        assert!(worst(&output, 0.1f32.into()) <= 3e-5, "{seq_len_q} rows: {:e}", worst(&output, 0.1f32.into()));
    }
    // Two equal keys: dV of each is half of the sum over the rows.
    let problem = Problem::new(Dims { seq_len_q: MANY, seq_len_kv: 2, ..Dims::self_attention(1, 1, 0, 16) });
    let (query, key, rows) = (vec![0.25; problem.query_len()], vec![0.5; problem.key_len()], vec![0.1; problem.output_len()]);
    let backward = BackwardInputs { output: (&rows).into(), stats: None, d_output: (&rows).into() };
    let got = engine.backward(&problem, &Inputs::new(&query, &key, &key), &backward, &WantGradients::default()).expect("valid");
    let d_value = got.value.expect("it is wanted").to_f32();
    let right = MANY as f64 / 2.0 * f64::from(0.1f32);
    assert!(worst(&d_value, right) <= 3e-5, "dV: {:e}", worst(&d_value, right));
}
