//! Gradients of the multi-head layer, compared with central differences of its own forward pass on every engine. The
//! case files compare them with PyTorch's.

use crate::common::buffers::draw;
use crate::common::every_engine;
use wgpu_attention::layer::{Appended, LayerGradients, Linear, MultiHead};
use wgpu_attention::{Alignment, BroadcastShape, Dims, Dropout, Engine, Error, Inputs, Problem, Varlen};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 3;
const HEAD_DIM_V: usize = 2;
/// Widths of X_q, X_k, X_v and of the output.
const WIDTHS: [usize; 4] = [5, 6, 7, 8];
const BATCH: usize = 2;
const ROWS: usize = 3;
const KEYS: usize = 4;

/// Everything that the loss depends on: inputs, W and b of each projection, learned key and value, attention bias.
#[derive(Clone)]
struct Case {
    x: [Vec<f32>; 3],
    weights: [Vec<f32>; 4],
    biases: [Vec<f32>; 4],
    learned: [Vec<f32>; 2],
    bias: Vec<f32>,
    d_output: Vec<f32>,
    appended: bool,
    varlen: bool,
}

/// Name of a tensor, its gradient, and its elements in a case.
type Part<T> = (String, Vec<f32>, Box<dyn Fn(&mut T) -> &mut Vec<f32>>);

impl Case {
    fn new(appended: bool, varlen: bool) -> Self {
        let outs = [HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM_V, WIDTHS[3]];
        let ins = [WIDTHS[0], WIDTHS[1], WIDTHS[2], HEADS * HEAD_DIM_V];
        let (rows, keys) = (BATCH * ROWS, BATCH * KEYS);
        let all_keys = KEYS + if appended { 2 } else { 0 };
        Self {
            x: [draw(1, rows * WIDTHS[0]), draw(2, keys * WIDTHS[1]), draw(3, keys * WIDTHS[2])],
            weights: std::array::from_fn(|at| draw(10 + at, outs[at] * ins[at])),
            biases: std::array::from_fn(|at| draw(20 + at, outs[at])),
            learned: [draw(30, outs[1]), draw(31, outs[2])],
            bias: if varlen { vec![] } else { draw(40, ROWS * all_keys) },
            d_output: draw(50, rows * WIDTHS[3]),
            appended,
            varlen,
        }
    }

    fn layer(&self) -> MultiHead {
        let ins = [WIDTHS[0], WIDTHS[1], WIDTHS[2], HEADS * HEAD_DIM_V];
        let [q, k, v, o] = std::array::from_fn(|at| {
            Linear::new(self.weights[at].clone(), Some(self.biases[at].clone()), ins[at]).expect("the shapes fit")
        });
        let layer = MultiHead::new(q, k, v, o, HEADS, KV_HEADS).expect("the shapes fit");
        if !self.appended {
            return layer;
        }
        let [key, value] = self.learned.clone();
        layer.with_appended(Appended { bias_kv: Some((key, value)), zero: true }).expect("the shapes fit")
    }

    fn problem(&self, layer: &MultiHead) -> Problem {
        let mut problem = layer.problem(BATCH, ROWS, KEYS);
        problem.softcap = Some(3.0);
        problem.dropout = Some(0.2);
        if self.varlen {
            problem = problem.aligned(Alignment::BottomRight).causal();
            problem.varlen = Some(Varlen { tokens_q: BATCH * ROWS, tokens_kv: BATCH * KEYS });
            problem.dims = Dims { seq_len_q: ROWS + 1, seq_len_kv: KEYS + 1, ..problem.dims };
        } else {
            problem.bias = Some(BroadcastShape([1, 1, ROWS, problem.dims.seq_len_kv]));
        }
        problem
    }

    fn inputs(&self) -> Inputs<'_> {
        let borders: [&[u32]; 2] = if self.varlen { [&[0, 2, 6], &[0, 3, 8]] } else { [&[], &[]] };
        Inputs {
            bias: &self.bias,
            cu_seqlens_q: borders[0],
            cu_seqlens_kv: borders[1],
            dropout: Dropout { seed: 3, offset: 4 },
            ..Inputs::new(&self.x[0], &self.x[1], &self.x[2])
        }
    }

    fn loss(&self, engine: &Engine) -> f64 {
        let layer = self.layer();
        let output = layer.forward(engine, &self.problem(&layer), &self.inputs()).expect("a valid problem").output;
        output.iter().zip(&self.d_output).map(|(&x, &d)| f64::from(x) * f64::from(d)).sum()
    }

    fn gradients(&self, engine: &Engine) -> LayerGradients {
        let layer = self.layer();
        let (problem, inputs) = (self.problem(&layer), self.inputs());
        let forward = layer.forward_with_steps(engine, &problem, &inputs).expect("a valid problem");
        layer.backward(engine, &problem, &inputs, &forward, &self.d_output).expect("a valid problem")
    }

    /// Compares every gradient with differences of the loss.
    fn check(&self, engine: &Engine) {
        let got = self.gradients(engine);
        let mut parts: Vec<Part<Self>> = vec![
            ("x_q".into(), got.query, Box::new(|case| &mut case.x[0])),
            ("x_k".into(), got.key, Box::new(|case| &mut case.x[1])),
            ("x_v".into(), got.value, Box::new(|case| &mut case.x[2])),
        ];
        for (at, linear) in [got.w_q, got.w_k, got.w_v, got.w_o].into_iter().enumerate() {
            parts.push((format!("weight {at}"), linear.weight, Box::new(move |case| &mut case.weights[at])));
            parts.push((format!("bias {at}"), linear.bias.expect("there is a bias"), Box::new(move |case| &mut case.biases[at])));
        }
        if let Some((key, value)) = got.bias_kv {
            parts.push(("learned key".into(), key, Box::new(|case| &mut case.learned[0])));
            parts.push(("learned value".into(), value, Box::new(|case| &mut case.learned[1])));
        }
        assert_eq!((self.appended, !self.varlen), (parts.len() == 13, got.bias.is_some()));
        if let Some(bias) = got.bias {
            parts.push(("bias".into(), bias, Box::new(|case| &mut case.bias)));
        }
        for (name, gradient, of) in parts {
            assert_eq!(gradient.len(), of(&mut self.clone()).len(), "{name}");
            for at in (0..gradient.len()).step_by(gradient.len().div_ceil(7)) {
                const STEP: f32 = 1.0 / 64.0;
                let loss = |by: f32| {
                    let mut case = self.clone();
                    of(&mut case)[at] += by;
                    case.loss(engine)
                };
                let expected = (loss(STEP) - loss(-STEP)) / f64::from(2.0 * STEP);
                // Errors: the third derivative times STEP²/6, and the rounding of some 50 terms divided by STEP.
                let error = (f64::from(gradient[at]) - expected).abs();
                assert!(
                    error < 5e-3 * (1.0 + expected.abs()),
                    "d{name}[{at}] is {}, differences are {expected} on {}",
                    gradient[at],
                    engine.chosen()
                );
            }
        }
    }
}

#[test]
fn gradients_are_central_differences() {
    for engine in every_engine() {
        for (appended, varlen) in [(false, false), (true, false), (false, true)] {
            Case::new(appended, varlen).check(&engine);
        }
    }
}

#[test]
fn missing_steps_of_the_forward_pass_are_an_error() {
    let case = Case::new(false, false);
    let layer = case.layer();
    // The oracle, the CPU path and one GPU: nothing depends on the adapter.
    for engine in every_engine().into_iter().take(3) {
        let (problem, inputs) = (case.problem(&layer), case.inputs());
        let kept = layer.forward_with_steps(&engine, &problem, &inputs).expect("a valid problem");
        let refused = |forward: &_, d_output: &[f32]| {
            let error = layer.backward(&engine, &problem, &inputs, forward, d_output).expect_err("it must be refused");
            let Error::Invalid { argument, .. } = error else { panic!("{error}") };
            argument
        };
        let without_steps = layer.forward(&engine, &problem, &inputs).expect("a valid problem");
        assert_eq!(refused(&without_steps, &case.d_output), "forward");
        assert_eq!(refused(&wgpu_attention::layer::LayerOutputs { stats: Some(vec![]), ..kept.clone() }, &case.d_output), "forward");
        assert_eq!(refused(&kept, &case.d_output[1..]), "d_output");
    }
}
