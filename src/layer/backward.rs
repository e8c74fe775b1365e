//! Gradients of the multi-head layer.

use std::borrow::Cow;

use super::matmul::{matmul, transposed};
use super::{LayerOutputs, Linear, MultiHead, Steps};
use crate::engine::{Engine, canary};
use crate::error::{Error, Result};
use crate::gpu::{self, Asked, LayerBackwardParts, LayerBackwardResults, ProjectionBackward, RowMap, Waiting, block_on};
use crate::numbers::HostVec;
use crate::problem::{BackwardInputs, Inputs, Problem, WantGradients};
use crate::progress::Progress;

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
    /// Gradients of the tables of the user's terms that have an owner, if there are any: [`crate::Gradients::term_tables`].
    pub term_tables: Option<Vec<f32>>,
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
        let computed = self.run_backward(engine, problem, inputs, (forward, d_output), Waiting::Blocking);
        block_on(computed, "MultiHead::backward_async")
    }

    /// [`Self::backward`] without blocking; see [`Engine::attention_async`].
    pub async fn backward_async(
        &self,
        engine: &Engine,
        problem: &Problem,
        inputs: &Inputs<'_>,
        forward: &LayerOutputs,
        d_output: &[f32],
    ) -> Result<LayerGradients> {
        self.run_backward(engine, problem, inputs, (forward, d_output), Waiting::Async).await
    }

    async fn run_backward(
        &self,
        engine: &Engine,
        problem: &Problem,
        inputs: &Inputs<'_>,
        (forward, d_output): (&LayerOutputs, &[f32]),
        waiting: Waiting,
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
        let ([rows_q, rows_kv], learned) = (self.rows(problem), usize::from(self.appended.bias_kv.is_some()));
        let Steps { query, key, value, context } = steps;
        let parts = LayerBackwardParts {
            sides: [side(&self.query, x[0], rows_q, 0), side(&self.key, x[1], rows_kv, learned), side(&self.value, x[2], rows_kv, learned)],
            output: side(&self.output, context, RowMap::plain(rows_q.all()), 0),
            d_output,
            steps: [query, key, value, context],
            stats,
        };
        let want = WantGradients::all(problem);
        let mut runs = None;
        // Empty buffers cannot be bound.
        if let Some(gpu) = engine.gpu().filter(|_| x.iter().all(|x| !x.is_empty())) {
            let checked = canary::check_backward(gpu, problem, &want, waiting).await;
            runs = engine.may_run(checked)?.then_some(gpu);
        }
        let results = match runs {
            Some(gpu) => gpu::layer_backward(gpu, problem, inputs, &parts, waiting).await?,
            None => on_host(engine, problem, inputs, &parts, waiting).await?,
        };
        // The sum of dY's own rows is db; those of the learned rows follow.
        let gradients = |linear: &Linear, rows: RowMap, [d_x, weight, mut sums]: [Vec<f32>; 3]| {
            let learned = sums.split_off(linear.out_features());
            let bias = linear.bias().map(|_| sums);
            (gather(rows, d_x, linear.in_features()), LinearGradients { weight, bias }, learned)
        };
        let [query, key, value, output] = results.projections;
        let (query, w_q, _) = gradients(&self.query, rows_q, query);
        let (key, w_k, learned_key) = gradients(&self.key, rows_kv, key);
        let (value, w_v, learned_value) = gradients(&self.value, rows_kv, value);
        let (_, w_o, _) = gradients(&self.output, RowMap::plain(rows_q.all()), output);
        let bias_kv = self.appended.bias_kv.as_ref().map(|_| (learned_key, learned_value));
        let [bias, relative_bias, sinks, term_tables] = results.attention;
        Ok(LayerGradients { query, key, value, w_q, w_k, w_v, w_o, bias_kv, bias, relative_bias, sinks, term_tables })
    }
}

/// Projection whose own rows are `x`, with the first `learned` appended rows of each item summed apart.
fn side<'a>(linear: &'a Linear, x: &'a [f32], rows: RowMap, learned: usize) -> ProjectionBackward<'a> {
    let (width, item) = (linear.in_features(), rows.own + rows.appended);
    let selected = |sum: usize, row: usize| if sum == 0 { row % item < rows.own } else { row % item == rows.own + sum - 1 };
    let selectors = (0..=learned).flat_map(|sum| (0..rows.all()).map(move |row| if selected(sum, row) { 1.0 } else { 0.0 }));
    ProjectionBackward {
        x: if rows.appended == 0 { Cow::Borrowed(x) } else { Cow::Owned(spread(rows, x, width)) },
        weight: linear.weight(),
        selectors: selectors.collect(),
        sums: 1 + learned,
        rows: rows.all(),
        in_features: width,
        out_features: linear.out_features(),
    }
}

/// Spreads the own rows over all rows, with zeros for the appended ones.
fn spread(rows: RowMap, x: &[f32], width: usize) -> Vec<f32> {
    let mut all = vec![0.0; rows.all() * width];
    let items = all.chunks_exact_mut((rows.own + rows.appended) * width);
    items.zip(x.chunks_exact((rows.own * width).max(1))).for_each(|(all, own)| all[..own.len()].copy_from_slice(own));
    all
}

/// Gathers the own rows from all rows.
fn gather(rows: RowMap, all: Vec<f32>, width: usize) -> Vec<f32> {
    if rows.appended == 0 {
        return all;
    }
    all.chunks_exact((rows.own + rows.appended) * width).flat_map(|item| &item[..rows.own * width]).copied().collect()
}

async fn on_host(
    engine: &Engine,
    problem: &Problem,
    inputs: &Inputs<'_>,
    parts: &LayerBackwardParts<'_>,
    waiting: Waiting,
) -> Result<LayerBackwardResults> {
    let output = project_back(&parts.output, parts.d_output);
    let [query, key, value, context] = parts.steps;
    let projected = Inputs { query: query.into(), key: key.into(), value: value.into(), ..*inputs };
    let backward = BackwardInputs { stats: parts.stats, ..BackwardInputs::new(context, &output[0]) };
    let want = &WantGradients::all(problem);
    let asked = Asked { problem, inputs: &projected, backward: &backward, want };
    let gradients = engine.run_backward(asked, waiting, &mut Progress::default()).await?;
    let [query, key, value] = &parts.sides;
    let back = |side, d_y: Option<HostVec>| project_back(side, &d_y.map(HostVec::into_f32).unwrap_or_default());
    let projections = [back(query, gradients.query), back(key, gradients.key), back(value, gradients.value), output];
    Ok(LayerBackwardResults { projections, attention: [gradients.bias, gradients.relative_bias, gradients.sinks, gradients.term_tables] })
}

/// dX = dY·W, dW = dYᵀ·X, and the sum of dY's rows for each selector.
fn project_back(side: &ProjectionBackward<'_>, d_y: &[f32]) -> [Vec<f32>; 3] {
    let &ProjectionBackward { sums, rows: m, in_features: k, out_features: n, .. } = side;
    if m == 0 {
        return [Vec::new(), vec![0.0; n * k], vec![0.0; sums * n]];
    }
    let d_y_t = transposed(d_y, m, n);
    let d_x = matmul(d_y, &transposed(side.weight, n, k), None, n, k);
    [d_x, matmul(&d_y_t, &transposed(&side.x, m, k), None, m, k), matmul(&side.selectors, &d_y_t, None, m, n)]
}
