//! Reference for the layer: its formulas in f64, with the oracle's attention.
//!
//! Q, K and V are rounded to f32 once, because the oracle takes stored elements.

use super::{Linear, MultiHead};
use crate::error::{Error, Result};
use crate::oracle;
use crate::problem::{Inputs, Problem};

/// Results of the reference, f64 and dense; the projections are f32 and have the layouts of [`super::Steps`].
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReference {
    /// Output [batch, seq_len_q, embed_dim_out].
    pub output: Vec<f64>,
    /// Q: [batch, seq_len_q, num_heads, head_dim].
    pub query: Vec<f32>,
    /// K: [batch, seq_len_kv, num_kv_heads, head_dim].
    pub key: Vec<f32>,
    /// V: [batch, seq_len_kv, num_kv_heads, head_dim_v].
    pub value: Vec<f32>,
    /// Outputs of the heads, side by side: [batch, seq_len_q, num_heads, head_dim_v].
    pub context: Vec<f64>,
    /// Attention with lse, scores and weights; its output is [batch, num_heads, seq_len_q, head_dim_v].
    pub attention: oracle::Reference,
}

/// Computes `layer` as written. Padded batches only.
pub fn forward(layer: &MultiHead, problem: &Problem, inputs: &Inputs<'_>) -> Result<LayerReference> {
    if problem.varlen.is_some() {
        return Err(Error::unsupported("varlen sequences in the layer's reference", "compute the items one by one"));
    }
    let [x_q, x_k, x_v] = layer.check(problem, inputs)?;
    let widened = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let project = |linear: &Linear, x: &[f32]| linear_f64(linear, &widened(x)).into_iter().map(|x| x as f32).collect::<Vec<_>>();
    let d = problem.dims;
    let query = project(layer.query(), x_q);
    let mut key = Vec::new();
    let mut value = Vec::new();
    let own_keys = d.seq_len_kv - layer.appended().count();
    for b in 0..d.batch {
        for (linear, x, out, bias) in [
            (layer.key(), x_k, &mut key, layer.appended().bias_kv.as_ref().map(|pair| &pair.0)),
            (layer.value(), x_v, &mut value, layer.appended().bias_kv.as_ref().map(|pair| &pair.1)),
        ] {
            let item = own_keys * linear.in_features();
            out.extend(project(linear, &x[b * item..(b + 1) * item]));
            if let Some(bias) = bias {
                out.extend(bias);
            }
            if layer.appended().zero {
                out.extend(vec![0.0; linear.out_features()]);
            }
        }
    }
    let attention = oracle::attention(problem, &Inputs { query: (&query).into(), key: (&key).into(), value: (&value).into(), ..*inputs })?;
    let mut context = vec![0.0; attention.output.len()];
    for (row, x) in attention.output.chunks(d.head_dim_v).enumerate() {
        let (b, h, i) = (row / d.seq_len_q / d.num_heads, row / d.seq_len_q % d.num_heads, row % d.seq_len_q);
        context[((b * d.seq_len_q + i) * d.num_heads + h) * d.head_dim_v..][..d.head_dim_v].copy_from_slice(x);
    }
    let output = linear_f64(layer.output(), &context);
    Ok(LayerReference { output, query, key, value, context, attention })
}

fn linear_f64(linear: &Linear, x: &[f64]) -> Vec<f64> {
    let mut y = Vec::new();
    for x in x.chunks(linear.in_features()) {
        for (n, weight) in linear.weight().chunks(linear.in_features()).enumerate() {
            let bias = linear.bias().map_or(0.0, |bias| f64::from(bias[n]));
            y.push(x.iter().zip(weight).map(|(&x, &w)| x * f64::from(w)).sum::<f64>() + bias);
        }
    }
    y
}
