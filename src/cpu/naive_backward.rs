//! The oracle of the gradients: the derivatives of [`Problem`]'s formulas in f64, one line after the other.
//!
//! It stands on the forward oracle and, like it, shares nothing with the fast paths. Tests hold it against central differences.

use super::naive::{self, broadcast};
use crate::problem::Operand;
use crate::tensor::gather;
use crate::{Alignment, Error, HostSlice, Inputs, Problem, Result, ScoreOrder};

/// The gradients of `sum(output * output_gradient)`, dense, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// [batch, num_heads, seq_len_q, head_dim]; of packed sequences [1, num_heads, tokens_q, head_dim].
    pub query: Vec<f64>,
    /// [batch, num_kv_heads, seq_len_kv, head_dim], summed over the query heads that share a key; packed: [1, .., tokens_kv, ..];
    /// paged: [pages, .., page_size, ..], summed over the items that share a page.
    pub key: Vec<f64>,
    /// [batch, num_kv_heads, seq_len_kv, head_dim_v], likewise.
    pub value: Vec<f64>,
    /// In the shape of the bias, summed over the axes along which it is broadcast; empty if there is none.
    pub bias: Vec<f64>,
    /// [num_heads, 2 * max_distance + 1]; empty if there is none.
    pub relative_bias: Vec<f64>,
    /// `[num_heads]`; empty if there are none.
    pub sinks: Vec<f64>,
}

/// Computes, for a row i with weights p, output o and the gradient do of its output,
///
/// ```text
/// dp_j       = dot(do, value_j)
/// delta      = sum_j p_j * dp_j
/// dbiased_j  = p_j * (dp_j - delta)
/// dsink      = -p_sink * delta                       p_sink = exp(sink - lse)
/// dscore_j   = dbiased_j * (1 - tanh²)               if there is a softcap; dbias_j is taken before or after, by the order
/// dquery     = scale * sum_j dscore_j * key_j
/// dkey_j    += scale * dscore_j * query
/// dvalue_j  += p_j * do
/// ```
///
/// A hidden pair adds nothing anywhere and is never read; a row that sees nothing has gradient 0. `output_gradient` is stored as
/// [`Problem::output`] describes.
pub fn attention(problem: &Problem, inputs: &Inputs<'_>, output_gradient: HostSlice<'_>) -> Result<Gradients> {
    let forward = naive::attention(problem, inputs)?;
    if output_gradient.len() < problem.output_len() {
        let why = format!("has {} elements, the problem's output {}", output_gradient.len(), problem.output_len());
        return Err(Error::invalid("output_gradient", why));
    }
    let d = problem.dims;
    let [items, _, tokens_q, _] = problem.shape(Operand::Query);
    let query = gather(inputs.query, &problem.query, problem.shape(Operand::Query));
    let key = gather(inputs.key, &problem.key, problem.shape(Operand::Key));
    let value = gather(inputs.value, &problem.value, problem.shape(Operand::Value));
    let output_gradient = gather(output_gradient, &problem.output, problem.shape(Operand::Output));
    let scale = f64::from(problem.effective_scale());
    let columns = problem.relative_bias.map_or(0, |max| 2 * max as usize + 1);

    let mut gradients = Gradients {
        query: vec![0.0; items * d.num_heads * tokens_q * d.head_dim],
        key: vec![0.0; key.len()],
        value: vec![0.0; value.len()],
        bias: vec![0.0; inputs.bias.len()],
        relative_bias: vec![0.0; d.num_heads * columns],
        sinks: vec![0.0; inputs.sinks.len()],
    };
    for b in 0..d.batch {
        // Where item b lies, and the position of its row 0.
        let packed = problem.packed.is_some();
        let first_q = if packed { inputs.cu_seqlens_q[b] as usize } else { 0 };
        let rows = if packed { inputs.cu_seqlens_q[b + 1] as usize - first_q } else { d.seq_len_q };
        let keys = if problem.paged.is_some() {
            inputs.kv_lengths[b] as usize
        } else if packed {
            (inputs.cu_seqlens_kv[b + 1] - inputs.cu_seqlens_kv[b]) as usize
        } else {
            d.seq_len_kv
        };
        let length = if problem.visibility.kv_lengths { inputs.kv_lengths[b] as usize } else { keys };
        let offset = match problem.visibility.alignment {
            None | Some(Alignment::TopLeft) => 0,
            Some(Alignment::BottomRight) => length as i64 - rows as i64,
            Some(Alignment::Offset(offset)) => i64::from(offset),
        };
        let item = if packed { 0 } else { b };
        for h in 0..d.num_heads {
            let kv_head = h / (d.num_heads / d.num_kv_heads);
            for i in 0..rows {
                let row = (b * d.num_heads + h) * d.seq_len_q + i;
                let q_row = (item * d.num_heads + h) * tokens_q + first_q + i;
                let kv_row = |j: usize| naive::key_row(problem, inputs, b, kv_head, j);
                let d_output = &output_gradient[q_row * d.head_dim_v..][..d.head_dim_v];
                let seen: Vec<usize> = (0..keys).filter(|j| forward.masked[row * d.seq_len_kv + j] != f64::NEG_INFINITY).collect();

                let d_weight = |j: usize| -> f64 {
                    let value = &value[kv_row(j) * d.head_dim_v..][..d.head_dim_v];
                    d_output.iter().zip(value).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
                };
                let weight = |j: usize| forward.weights[row * d.seq_len_kv + j];
                let delta: f64 = seen.iter().map(|&j| weight(j) * d_weight(j)).sum();
                if problem.sinks && !seen.is_empty() {
                    gradients.sinks[h] -= (f64::from(inputs.sinks[h]) - forward.lse[row]).exp() * delta;
                }
                for &j in &seen {
                    let at = row * d.seq_len_kv + j;
                    let d_biased = weight(j) * (d_weight(j) - delta);
                    // The derivative of softcap * tanh(x / softcap) is 1 - tanh²; the tanh is the capped score / softcap.
                    let slope = problem.softcap.map_or(1.0, |softcap| {
                        let capped =
                            if problem.score_order == ScoreOrder::SoftcapThenBias { forward.capped[at] } else { forward.masked[at] };
                        1.0 - (capped / f64::from(softcap)).powi(2)
                    });
                    let d_score = d_biased * slope;
                    let d_bias = if problem.score_order == ScoreOrder::SoftcapThenBias { d_biased } else { d_score };
                    if let Some(shape) = problem.bias {
                        gradients.bias[broadcast(shape, [b, h, i, j])] += d_bias;
                    }
                    if let Some(max) = problem.relative_bias {
                        let distance = i as i64 + offset - j as i64;
                        let column = distance.clamp(-i64::from(max), i64::from(max)) + i64::from(max);
                        gradients.relative_bias[h * columns + column as usize] += d_bias;
                    }
                    for e in 0..d.head_dim {
                        gradients.query[q_row * d.head_dim + e] += scale * d_score * f64::from(key[kv_row(j) * d.head_dim + e]);
                        gradients.key[kv_row(j) * d.head_dim + e] += scale * d_score * f64::from(query[q_row * d.head_dim + e]);
                    }
                    for (e, &d_output) in d_output.iter().enumerate() {
                        gradients.value[kv_row(j) * d.head_dim_v + e] += weight(j) * f64::from(d_output);
                    }
                }
            }
        }
    }
    Ok(gradients)
}
