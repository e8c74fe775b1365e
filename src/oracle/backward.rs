//! Oracle of the gradients: the derivatives of [`Problem`]'s formulas in f64, one line after the other.
//!
//! It builds on the forward oracle and shares no more with the fast paths. Tests compare it with central differences.

use super::forward::{Item, Reference, attention, broadcast, dropout_scale, key_row};
use super::tables::{Read, reads};
use crate::error::{Error, Result};
use crate::numbers::{HostSlice, HostVec};
use crate::problem::{Inputs, Operand, Problem, ScoreOrder, WantGradients, gather};

/// Gradients of `sum(output * d_output) + sum(lse * d_lse)`, dense, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceGradients {
    /// [batch, num_heads, seq_len_q, head_dim]; varlen: [1, num_heads, tokens_q, head_dim].
    pub query: Vec<f64>,
    /// [batch, num_kv_heads, seq_len_kv, head_dim], summed over the query heads that share a key; varlen:
    /// [1, .., tokens_kv, ..]; paged: [pages, .., page_size, ..], summed over the items that share a page.
    pub key: Vec<f64>,
    /// [batch, num_kv_heads, seq_len_kv, head_dim_v], summed like the keys.
    pub value: Vec<f64>,
    /// Shape of the bias, summed over the axes along which it is broadcast; empty if there is none.
    pub bias: Vec<f64>,
    /// [num_heads, 2 * max_distance + 1]; empty if there is none.
    pub relative_bias: Vec<f64>,
    /// `[num_heads]`; empty if there are none.
    pub sinks: Vec<f64>,
    /// Elements of all tables of the user's terms that have an owner.
    pub term_tables: Vec<f64>,
}

/// Terms that the gradients are sums of, each [batch, num_heads, seq_len_q, seq_len_kv]; 0 for masked pairs.
#[derive(Clone, Debug)]
pub(crate) struct Pairs {
    pub(crate) seen: Vec<bool>,
    /// Weights after dropout.
    pub(crate) weights: Vec<f64>,
    /// Gradients of everything that is added to the scores.
    pub(crate) d_bias: Vec<f64>,
    /// Gradients of `scale * q.k`.
    pub(crate) d_score: Vec<f64>,
    /// [batch, num_heads, seq_len_q]: gradients of the sink's score.
    pub(crate) d_sink: Vec<f64>,
    /// For each table that has an owner, [batch, num_heads, seq_len_q, seq_len_kv]: the element that a pair reads, and its
    /// gradient.
    pub(crate) d_tables: Vec<Vec<Option<Read>>>,
}

/// Operands as dense f32.
pub(crate) struct Operands {
    pub(crate) query: Vec<f32>,
    pub(crate) key: Vec<f32>,
    pub(crate) value: Vec<f32>,
    pub(crate) d_output: Vec<f32>,
}

/// Computes the gradients of a problem. For a row i with weights p, output o, and gradients do of the output and dlse of
/// the lse, which is 0 if it is not given:
///
/// ```text
/// dp_j       = m_j * dot(do, value_j)                          m_j from dropout: 0 or 1 / (1 - probability); 1 without
/// delta      = sum_j p_j * dp_j - dlse
/// dbiased_j  = p_j * (dp_j - delta)
/// dsink      = -p_sink * delta                       p_sink = exp(sink - m) / l
/// dscore_j   = dbiased_j * (1 - tanh²)               with a softcap; dbias_j is taken before or after, by the order
/// dquery     = scale * sum_j dscore_j * key_j
/// dkey_j    += scale * dscore_j * query
/// dvalue_j  += m_j * p_j * do
/// dtable_e   = sum of p_j * (dp_j - delta) * d score_j / d table_e       over the pairs that read element e of a user's table
/// ```
///
/// A masked pair contributes to no gradient, even if its operands are NaN; a row without visible keys adds only dlse to
/// the gradient of its sink. The data is as [`crate::BackwardInputs`] describes.
pub fn gradients(problem: &Problem, inputs: &Inputs<'_>, d_output: HostSlice<'_>, d_lse: Option<&[f32]>) -> Result<ReferenceGradients> {
    problem.check_not_rotated()?;
    let forward = attention(problem, inputs)?;
    if d_output.len() < problem.output_len() {
        let why = format!("has {} elements, the problem's output {}", d_output.len(), problem.output_len());
        return Err(Error::invalid("d_output", why));
    }
    if let Some(d_lse) = d_lse.filter(|d_lse| d_lse.len() != problem.lse_len()) {
        return Err(Error::invalid("d_lse", format!("has {} numbers, the problem needs {}", d_lse.len(), problem.lse_len())));
    }
    let operands = Operands::gather(problem, inputs, d_output);
    let pairs = pairs(problem, inputs, &forward, &operands, d_lse);
    Ok(sums(problem, inputs, &pairs, &operands))
}

impl Operands {
    pub(crate) fn gather(problem: &Problem, inputs: &Inputs<'_>, d_output: HostSlice<'_>) -> Self {
        Self {
            query: gather(inputs.query, &problem.query, problem.shape(Operand::Query)),
            key: gather(inputs.key, &problem.key, problem.shape(Operand::Key)),
            value: gather(inputs.value, &problem.value, problem.shape(Operand::Value)),
            d_output: gather(d_output, &problem.output, problem.shape(Operand::Output)),
        }
    }
}

/// Computes the weights and the score gradients of all pairs.
pub(crate) fn pairs(problem: &Problem, inputs: &Inputs<'_>, forward: &Reference, operands: &Operands, d_lse: Option<&[f32]>) -> Pairs {
    let d = problem.dims;
    let tokens_q = problem.shape(Operand::Query)[2];
    let all = problem.scores_len();
    let mut out = Pairs {
        seen: vec![false; all],
        weights: vec![0.0; all],
        d_bias: vec![0.0; all],
        d_score: vec![0.0; all],
        d_sink: vec![0.0; d.batch * d.num_heads * d.seq_len_q],
        d_tables: vec![vec![None; all]; problem.owned_tables().count()],
    };
    for b in 0..d.batch {
        let item = Item::new(problem, inputs, b);
        for h in 0..d.num_heads {
            let kv_head = h / (d.num_heads / d.num_kv_heads);
            for i in 0..item.rows {
                let row = (b * d.num_heads + h) * d.seq_len_q + i;
                let q_row = (item.stored * d.num_heads + h) * tokens_q + item.first_q + i;
                let d_output = &operands.d_output[q_row * d.head_dim_v..][..d.head_dim_v];
                let at = |j: usize| row * d.seq_len_kv + j;
                let seen: Vec<usize> = (0..item.keys).filter(|&j| forward.masked[at(j)] != f64::NEG_INFINITY).collect();

                let scale_of = |j: usize| dropout_scale(problem, inputs, [b, h, i, j]);
                let d_weight = |j: usize| -> f64 {
                    let value = &operands.value[key_row(problem, inputs, b, kv_head, j) * d.head_dim_v..][..d.head_dim_v];
                    let product: f64 = d_output.iter().zip(value).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                    scale_of(j) * product
                };
                let d_lse = d_lse.map_or(0.0, |d_lse| f64::from(d_lse[item.lse_place(problem, [b, h, i])]));
                let delta = seen.iter().map(|&j| forward.weights[at(j)] * d_weight(j)).sum::<f64>() - d_lse;
                if problem.sinks {
                    let [max, sum] = forward.stats[row];
                    out.d_sink[row] = -(f64::from(inputs.sinks[h]) - max).exp() / sum * delta;
                }
                for j in seen {
                    let d_last = forward.weights[at(j)] * (d_weight(j) - delta);
                    let read = reads(problem, inputs, forward.before_terms[at(j)], item.pair(problem, [b, h, i, j]));
                    for (of_table, read) in out.d_tables.iter_mut().zip(read) {
                        of_table[at(j)] = read.filter(|&(_, slope)| slope != 0.0).map(|(element, slope)| (element, d_last * slope));
                    }
                    let d_biased = d_last * forward.slopes[at(j)];
                    // The derivative of softcap * tanh(x / softcap) is 1 - tanh²; tanh is the capped score / softcap.
                    let slope = problem.softcap.map_or(1.0, |softcap| {
                        let before_biases = problem.score_order == ScoreOrder::SoftcapThenBias;
                        let capped = if before_biases { forward.capped[at(j)] } else { forward.before_terms[at(j)] };
                        1.0 - (capped / f64::from(softcap)).powi(2)
                    });
                    out.seen[at(j)] = true;
                    out.weights[at(j)] = scale_of(j) * forward.weights[at(j)];
                    out.d_score[at(j)] = d_biased * slope;
                    out.d_bias[at(j)] = if problem.score_order == ScoreOrder::SoftcapThenBias { d_biased } else { d_biased * slope };
                }
            }
        }
    }
    out
}

/// Sums the terms of all pairs to the gradients.
pub(crate) fn sums(problem: &Problem, inputs: &Inputs<'_>, pairs: &Pairs, operands: &Operands) -> ReferenceGradients {
    let d = problem.dims;
    let scale = f64::from(problem.effective_scale());
    let tokens_q = problem.shape(Operand::Query)[2];
    let columns = problem.relative_bias_max_distance.map_or(0, |max| 2 * max as usize + 1);
    let Operands { query, key, value, d_output } = operands;
    let mut gradients = ReferenceGradients {
        query: vec![0.0; query.len()],
        key: vec![0.0; key.len()],
        value: vec![0.0; value.len()],
        bias: vec![0.0; inputs.bias.len()],
        relative_bias: vec![0.0; d.num_heads * columns],
        sinks: vec![0.0; inputs.sinks.len()],
        term_tables: vec![0.0; problem.d_term_tables_len()],
    };
    let table_starts: Vec<usize> = problem.owned_tables().map(|table| table.range.start).collect();
    for b in 0..d.batch {
        let item = Item::new(problem, inputs, b);
        for h in 0..d.num_heads {
            let kv_head = h / (d.num_heads / d.num_kv_heads);
            for i in 0..item.rows {
                let row = (b * d.num_heads + h) * d.seq_len_q + i;
                let q_row = (item.stored * d.num_heads + h) * tokens_q + item.first_q + i;
                if problem.sinks {
                    gradients.sinks[h] += pairs.d_sink[row];
                }
                for j in 0..item.keys {
                    let at = row * d.seq_len_kv + j;
                    if !pairs.seen[at] {
                        continue;
                    }
                    if let Some(shape) = problem.bias {
                        gradients.bias[broadcast(shape, [b, h, i, j])] += pairs.d_bias[at];
                    }
                    if let Some(max) = problem.relative_bias_max_distance {
                        let distance = i as i64 + item.offset - j as i64;
                        let column = distance.clamp(-i64::from(max), i64::from(max)) + i64::from(max);
                        gradients.relative_bias[h * columns + column as usize] += pairs.d_bias[at];
                    }
                    for (of_table, start) in pairs.d_tables.iter().zip(&table_starts) {
                        if let Some((element, by_element)) = of_table[at] {
                            gradients.term_tables[start + element] += by_element;
                        }
                    }
                    let kv_row = key_row(problem, inputs, b, kv_head, j);
                    for e in 0..d.head_dim {
                        gradients.query[q_row * d.head_dim + e] += scale * pairs.d_score[at] * f64::from(key[kv_row * d.head_dim + e]);
                        gradients.key[kv_row * d.head_dim + e] += scale * pairs.d_score[at] * f64::from(query[q_row * d.head_dim + e]);
                    }
                    for e in 0..d.head_dim_v {
                        gradients.value[kv_row * d.head_dim_v + e] += pairs.weights[at] * f64::from(d_output[q_row * d.head_dim_v + e]);
                    }
                }
            }
        }
    }
    gradients
}

impl ReferenceGradients {
    /// Rounds the wanted gradients and stores them as the problem describes.
    pub fn into_gradients(self, problem: &Problem, want: &WantGradients) -> crate::problem::Gradients {
        let stored = |wanted: bool, operand: Operand, dense: &[f64]| {
            wanted.then(|| {
                let spec = problem.spec(operand);
                let strides = spec.strides(problem.shape(operand));
                let [_, heads, seq, dim] = problem.shape(operand);
                let mut to = vec![0.0; problem.operand_len(operand)];
                for (at, &x) in dense.iter().enumerate() {
                    let (b, h, i, e) = (at / dim / seq / heads, at / dim / seq % heads, at / dim % seq, at % dim);
                    to[spec.offset + b * strides.batch + h * strides.head + i * strides.seq + e * strides.dim] = x as f32;
                }
                HostVec::from_f32(want.dtype(problem, operand), &to)
            })
        };
        let narrow = |wanted: bool, numbers: &[f64]| wanted.then(|| numbers.iter().map(|&x| x as f32).collect());
        crate::problem::Gradients {
            query: stored(want.query, Operand::Query, &self.query),
            key: stored(want.key, Operand::Key, &self.key),
            value: stored(want.value, Operand::Value, &self.value),
            bias: narrow(want.bias, &self.bias),
            relative_bias: narrow(want.relative_bias, &self.relative_bias),
            sinks: narrow(want.sinks, &self.sinks),
            term_tables: narrow(want.term_tables, &self.term_tables),
        }
    }
}
