//! Gradients of the multi-head layer.

use super::matmul::{matmul, transposed};
use super::{LayerOutputs, Linear, MultiHead, Steps};
use crate::engine::{Engine, canary};
use crate::error::{Error, Result};
use crate::gpu::{self, LayerBackwardParts, ProjectionBackward};
use crate::problem::{BackwardInputs, Inputs, Problem, WantGradients};

/// Gradients of one projection.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearGradients {
    /// dW, in the shape of W: [out_features, in_features].
    pub weight: Vec<f32>,
    /// db `[out_features]`, if the projection has a b.
    pub bias: Option<Vec<f32>>,
}

/// Gradients of a layer, in host memory, contiguous.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerGradients {
    /// dX_q, in the shape of X_q. In self-attention, dX is dX_q + dX_k + dX_v.
    pub query: Vec<f32>,
    /// dX_k, in the shape of X_k.
    pub key: Vec<f32>,
    /// dX_v, in the shape of X_v.
    pub value: Vec<f32>,
    /// Gradients of W_Q and b_Q.
    pub w_q: LinearGradients,
    /// Gradients of W_K and b_K.
    pub w_k: LinearGradients,
    /// Gradients of W_V and b_V.
    pub w_v: LinearGradients,
    /// Gradients of W_O and b_O.
    pub w_o: LinearGradients,
    /// Gradients of the appended key and value, if they are learned.
    pub bias_kv: Option<(Vec<f32>, Vec<f32>)>,
    /// Gradient of the problem's additive bias, in its shape, if it has one.
    pub bias: Option<Vec<f32>>,
    /// Gradient of the table of relative biases, if the problem has one.
    pub relative_bias: Option<Vec<f32>>,
    /// Gradient of the sinks, if the problem has them.
    pub sinks: Option<Vec<f32>>,
}

/// Rows of one projection into the attention: each item's own rows, then the appended ones.
#[derive(Clone, Copy)]
struct ProjectionRows {
    items: usize,
    own: usize,
    appended: usize,
}

impl ProjectionRows {
    fn all(self) -> usize {
        self.items * (self.own + self.appended)
    }

    /// Indices of the own rows among all rows.
    fn places(self) -> impl Iterator<Item = usize> {
        (0..self.items * self.own).map(move |row| row / self.own * (self.own + self.appended) + row % self.own)
    }

    /// Spreads the own rows over all rows, with zeros for the appended ones.
    fn spread(self, x: &[f32], width: usize) -> Vec<f32> {
        let mut all = vec![0.0; self.all() * width];
        for (row, place) in x.chunks_exact(width).zip(self.places()) {
            all[place * width..][..width].copy_from_slice(row);
        }
        all
    }

    /// Gathers the own rows from all rows.
    fn gather(self, all: &[f32], width: usize) -> Vec<f32> {
        self.places().flat_map(|place| &all[place * width..][..width]).copied().collect()
    }

    /// Selectors [1 + learned, rows] of 1 or 0: the own rows first, then each learned row of all items.
    fn selectors(self, learned: usize) -> Vec<f32> {
        let is = |wanted: bool| if wanted { 1.0 } else { 0.0 };
        let item = self.own + self.appended;
        let own = (0..self.all()).map(|row| is(row % item < self.own));
        own.chain((0..learned).flat_map(|n| (0..self.all()).map(move |row| is(row % item == self.own + n)))).collect()
    }
}

impl MultiHead {
    /// Computes the gradients of the layer on `engine`, from the gradient of its output
    /// [batch, seq_len_q, embed_dim_out]. `problem` and `inputs` are those of the forward pass; `forward` is the result
    /// of [`Self::forward_with_steps`], best with [`crate::Returns::stats`], which are otherwise recomputed.
    pub fn backward(
        &self,
        engine: &Engine,
        problem: &Problem,
        inputs: &Inputs<'_>,
        forward: &LayerOutputs,
        d_output: &[f32],
    ) -> Result<LayerGradients> {
        let x = self.check(problem, inputs)?;
        let steps = forward.steps.as_ref().ok_or_else(|| Error::invalid("forward", "has no steps: use forward_with_steps"))?;
        let stats = forward.stats.as_deref();
        let rows_q = x[0].len() / self.query.in_features();
        for (argument, found, expected) in [
            ("d_output", d_output.len(), rows_q * self.output.out_features()),
            ("forward", steps.query.len(), problem.query_len()),
            ("forward", steps.key.len(), problem.key_len()),
            ("forward", steps.value.len(), problem.value_len()),
            ("forward", steps.context.len(), problem.output_len()),
            ("forward", stats.map_or(problem.lse_len(), <[_]>::len), problem.lse_len()),
        ] {
            if found != expected {
                return Err(Error::invalid(argument, format!("has {found} numbers where the problem needs {expected}")));
            }
        }
        let backward = Backward { layer: self, problem, inputs, x, steps, stats, d_output };
        match engine.gpu() {
            // Empty buffers cannot be bound.
            Some(gpu)
                if x.iter().all(|x| !x.is_empty())
                    && engine.may_run(canary::check_backward(gpu, problem, &WantGradients::all(problem)))? =>
            {
                backward.on_gpu(gpu)
            }
            _ => backward.on_host(engine),
        }
    }
}

/// Backward pass whose arguments have all been checked.
struct Backward<'a> {
    layer: &'a MultiHead,
    problem: &'a Problem,
    inputs: &'a Inputs<'a>,
    x: [&'a [f32]; 3],
    steps: &'a Steps,
    stats: Option<&'a [[f32; 2]]>,
    d_output: &'a [f32],
}

impl Backward<'_> {
    /// Rows of Q, K and V.
    fn rows(&self) -> [ProjectionRows; 3] {
        let d = &self.problem.dims;
        let appended = self.layer.appended.count();
        let (queries, keys) = match self.problem.varlen {
            Some(varlen) => (
                ProjectionRows { items: 1, own: varlen.tokens_q, appended: 0 },
                ProjectionRows { items: 1, own: varlen.tokens_kv, appended: 0 },
            ),
            None => (
                ProjectionRows { items: d.batch, own: d.seq_len_q, appended: 0 },
                ProjectionRows { items: d.batch, own: d.seq_len_kv - appended, appended },
            ),
        };
        [queries, keys, keys]
    }

    fn learned(&self) -> usize {
        usize::from(self.layer.appended.bias_kv.is_some())
    }

    fn on_host(&self, engine: &Engine) -> Result<LayerGradients> {
        let layer = self.layer;
        let (d_context, w_o, _) = project_back(&layer.output, &self.steps.context, self.d_output, &[]);
        let Steps { query, key, value, context } = self.steps;
        let projected = Inputs { query: query.into(), key: key.into(), value: value.into(), ..*self.inputs };
        let backward = BackwardInputs { output: context.into(), stats: self.stats, d_output: (&d_context).into() };
        let gradients = engine.backward(self.problem, &projected, &backward, &WantGradients::all(self.problem))?;
        let mut sides = Vec::new();
        for (index, (linear, gradient)) in
            [(&layer.query, gradients.query), (&layer.key, gradients.key), (&layer.value, gradients.value)].into_iter().enumerate()
        {
            let rows = self.rows()[index];
            let x = rows.spread(self.x[index], linear.in_features());
            let selectors = rows.selectors(if index == 0 { 0 } else { self.learned() });
            let d = gradient.map(crate::numbers::HostVec::into_f32).unwrap_or_default();
            let (d_x, gradients, learned) = project_back(linear, &x, &d, &selectors);
            sides.push((rows.gather(&d_x, linear.in_features()), gradients, learned));
        }
        Ok(self.gradients(sides, w_o, [gradients.bias, gradients.relative_bias, gradients.sinks]))
    }

    fn on_gpu(&self, gpu: &gpu::Gpu) -> Result<LayerGradients> {
        let layer = self.layer;
        let rows_q = self.rows()[0].all();
        let side = |linear: &Linear, x: &[f32], rows: usize, selectors: Vec<f32>| ProjectionBackward {
            x_t: transposed(x, rows, linear.in_features()),
            weight_t: transposed(linear.weight(), linear.out_features(), linear.in_features()),
            selectors,
            rows,
            in_features: linear.in_features(),
            out_features: linear.out_features(),
        };
        let linears = [&layer.query, &layer.key, &layer.value];
        let sides = [0, 1, 2].map(|index| {
            let rows = self.rows()[index];
            let x = rows.spread(self.x[index], linears[index].in_features());
            side(linears[index], &x, rows.all(), rows.selectors(if index == 0 { 0 } else { self.learned() }))
        });
        let Steps { query, key, value, context } = self.steps;
        let parts = LayerBackwardParts {
            sides,
            output: side(&layer.output, context, rows_q, vec![1.0; rows_q]),
            d_output: self.d_output,
            steps: [query, key, value, context],
            stats: self.stats,
        };
        let results = pollster::block_on(gpu::layer_backward(gpu, self.problem, self.inputs, &parts))?;
        let mut projections = results.projections.into_iter();
        let mut next = |linear: &Linear| {
            let [d_x, weight, sums] = projections.next().unwrap_or_default();
            (d_x, split(linear, weight, sums))
        };
        let mut sides = Vec::new();
        for (index, linear) in linears.into_iter().enumerate() {
            let (d_x, (gradients, learned)) = next(linear);
            sides.push((self.rows()[index].gather(&d_x, linear.in_features()), gradients, learned));
        }
        let (_, (w_o, _)) = next(&layer.output);
        Ok(self.gradients(sides, w_o, results.attention))
    }

    /// Combines the results of the three projections: dX, gradients of W and b, gradient of the learned key or value.
    fn gradients(
        &self,
        sides: Vec<(Vec<f32>, LinearGradients, Vec<f32>)>,
        w_o: LinearGradients,
        [bias, relative_bias, sinks]: [Option<Vec<f32>>; 3],
    ) -> LayerGradients {
        let empty = || (Vec::new(), LinearGradients { weight: Vec::new(), bias: None }, Vec::new());
        let mut sides = sides.into_iter();
        let mut next = || sides.next().unwrap_or_else(empty);
        let ((query, w_q, _), (key, w_k, learned_key), (value, w_v, learned_value)) = (next(), next(), next());
        let bias_kv = self.layer.appended.bias_kv.as_ref().map(|_| (learned_key, learned_value));
        LayerGradients { query, key, value, w_q, w_k, w_v, w_o, bias_kv, bias, relative_bias, sinks }
    }
}

/// dX = dY·W, dW = dYᵀ·X, and the sum of dY's rows for each selector: first db, then the learned rows.
fn project_back(linear: &Linear, x: &[f32], d_y: &[f32], selectors: &[f32]) -> (Vec<f32>, LinearGradients, Vec<f32>) {
    let (k, n) = (linear.in_features(), linear.out_features());
    let m = x.len() / k;
    if m == 0 {
        let (gradients, rest) = split(linear, vec![0.0; n * k], vec![0.0; n]);
        return (Vec::new(), gradients, rest);
    }
    let ones = vec![1.0; m];
    let selectors = if selectors.is_empty() { &ones[..] } else { selectors };
    let d_y_t = transposed(d_y, m, n);
    let d_x = matmul(d_y, &transposed(linear.weight(), n, k), None, n, k);
    let weight = matmul(&d_y_t, &transposed(x, m, k), None, m, k);
    let (gradients, rest) = split(linear, weight, matmul(selectors, &d_y_t, None, m, n));
    (d_x, gradients, rest)
}

/// Splits the sums of dY's rows into db, which comes first, and the others. Returns the gradients and the others.
fn split(linear: &Linear, weight: Vec<f32>, mut sums: Vec<f32>) -> (LinearGradients, Vec<f32>) {
    let rest = sums.split_off(linear.out_features());
    (LinearGradients { weight, bias: linear.bias().map(|_| sums) }, rest)
}
