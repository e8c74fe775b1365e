//! The oracle: the formulas of [`Problem`] in f64, one line after the other, with every matrix stored.
//!
//! Written to be checked by reading. It shares no visibility arithmetic, tiling or tables with the fast paths, but it
//! shares the decoding of operands and the random words of dropout.

use crate::error::Result;
use crate::numbers::HostVec;
use crate::problem::{Alibi, Alignment, BroadcastShape, Inputs, Outputs, Problem, ScoreOrder, ScoreStage, gather};

/// All results of the oracle, dense, in f64.
///
/// Past the lengths of a varlen or paged item, lse, raw, capped and masked are -inf, stats `[f32::MIN, 0]`, the rest 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// [batch, num_heads, seq_len_q, head_dim_v].
    pub output: Vec<f64>,
    /// [batch, num_heads, seq_len_q].
    pub lse: Vec<f64>,
    /// [batch, num_heads, seq_len_q], m and l: see [`Outputs::stats`].
    pub stats: Vec<[f64; 2]>,
    /// [batch, num_heads, seq_len_q, seq_len_kv]: `scale * q.k`.
    pub raw: Vec<f64>,
    /// `raw` after softcap, if that comes before the biases; else `raw`.
    pub capped: Vec<f64>,
    /// Scores after softcap and biases; -inf where masked.
    pub masked: Vec<f64>,
    /// Softmax weights, before dropout.
    pub weights: Vec<f64>,
}

/// Statistics of a row without visible keys and without a sink.
const NOTHING_SEEN: [f64; 2] = [f32::MIN as f64, 0.0];

/// Computes `problem` as written. Time and memory grow with batch x num_heads x seq_len_q x seq_len_kv.
pub fn attention(problem: &Problem, inputs: &Inputs<'_>) -> Result<Reference> {
    problem.check()?;
    inputs.check(problem)?;
    let d = problem.dims;
    let v = &problem.visibility;
    let varlen = problem.varlen.is_some();
    let tokens_q = problem.varlen.map_or(d.seq_len_q, |p| p.tokens_q);
    let items = if varlen { 1 } else { d.batch };
    let query = gather(inputs.query, &problem.query, [items, d.num_heads, tokens_q, d.head_dim]);
    let [stored, tokens_kv] = match (problem.paged, problem.varlen) {
        (Some(paged), _) => [paged.pages, paged.page_size],
        (None, Some(varlen)) => [1, varlen.tokens_kv],
        (None, None) => [d.batch, d.seq_len_kv],
    };
    let key = gather(inputs.key, &problem.key, [stored, d.num_kv_heads, tokens_kv, d.head_dim]);
    let value = gather(inputs.value, &problem.value, [stored, d.num_kv_heads, tokens_kv, d.head_dim_v]);
    let scale = f64::from(problem.effective_scale());

    let pairs = problem.scores_len();
    let mut out = Reference {
        output: vec![0.0; d.batch * d.num_heads * d.seq_len_q * d.head_dim_v],
        lse: vec![f64::NEG_INFINITY; d.batch * d.num_heads * d.seq_len_q],
        stats: vec![NOTHING_SEEN; d.batch * d.num_heads * d.seq_len_q],
        raw: vec![f64::NEG_INFINITY; pairs],
        capped: vec![f64::NEG_INFINITY; pairs],
        masked: vec![f64::NEG_INFINITY; pairs],
        weights: vec![0.0; pairs],
    };

    for b in 0..d.batch {
        let (item, first_q, rows) = if varlen {
            let (q0, q1) = (inputs.cu_seqlens_q[b] as usize, inputs.cu_seqlens_q[b + 1] as usize);
            (0, q0, q1 - q0)
        } else {
            (b, 0, d.seq_len_q)
        };
        let keys = if problem.paged.is_some() {
            inputs.kv_lengths[b] as usize
        } else if varlen {
            (inputs.cu_seqlens_kv[b + 1] - inputs.cu_seqlens_kv[b]) as usize
        } else {
            d.seq_len_kv
        };
        let length = if v.kv_lengths { inputs.kv_lengths[b] as usize } else { keys };
        let offset = match v.alignment {
            None | Some(Alignment::TopLeft) => 0,
            Some(Alignment::BottomRight) => length as i64 - rows as i64,
            Some(Alignment::Offset(offset)) => i64::from(offset),
        };
        for h in 0..d.num_heads {
            let kv_head = h / (d.num_heads / d.num_kv_heads);
            for i in 0..rows {
                let p = i as i64 + offset;
                let row = (b * d.num_heads + h) * d.seq_len_q + i;
                let q = &query[((item * d.num_heads + h) * tokens_q + first_q + i) * d.head_dim..][..d.head_dim];
                for j in 0..keys {
                    let at = row * d.seq_len_kv + j;
                    let k = &key[key_row(problem, inputs, b, kv_head, j) * d.head_dim..][..d.head_dim];
                    let dot: f64 = q.iter().zip(k).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                    let distance = j as i64 - p;

                    let cap = |score: f64| problem.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
                    // The biases are added in this order, each sum rounded to f32.
                    let mut biases = Vec::new();
                    if let Some(shape) = problem.bias {
                        biases.push(inputs.bias[broadcast(shape, [b, h, i, j])]);
                    }
                    if let Some(alibi) = problem.alibi {
                        let slope = inputs.alibi_slopes[h];
                        biases.push(match alibi {
                            Alibi::Signed => slope * distance as f32,
                            Alibi::Symmetric => -slope * distance.abs() as f32,
                        });
                    }
                    if let Some(max) = problem.relative_bias_max_distance {
                        let max = i64::from(max);
                        let column = (-distance).clamp(-max, max) + max;
                        biases.push(inputs.relative_bias[h * (2 * max as usize + 1) + column as usize]);
                    }
                    // A sum that f32 cannot hold is infinite with or without biases.
                    let held = |sum: f64| if (sum as f32).is_infinite() { f64::from(sum as f32) } else { sum };
                    let biased_from = |score: f64| held(biases.iter().fold(score, |sum, &bias| f64::from(sum as f32 + bias)));
                    let score = scale * dot;
                    out.raw[at] = score;
                    out.capped[at] = if problem.score_order == ScoreOrder::SoftcapThenBias { cap(score) } else { score };
                    let sum = biased_from(out.capped[at]);
                    let biased = if problem.score_order == ScoreOrder::SoftcapThenBias { sum } else { cap(sum) };

                    let mut visible = j < length;
                    if v.causal {
                        let in_prefix = v.prefix_lengths && j < inputs.prefix_lengths[b] as usize;
                        visible &= j as i64 <= p || in_prefix;
                    }
                    if let Some(left) = v.window_left {
                        visible &= p - i64::from(left) <= j as i64;
                    }
                    if let Some(right) = v.window_right {
                        visible &= j as i64 <= p + i64::from(right);
                    }
                    if let Some(size) = v.chunk.map(i64::from) {
                        visible &= (j as i64).div_euclid(size) == p.div_euclid(size);
                    }
                    if let Some(size) = v.block_causal.map(i64::from) {
                        visible &= (j as i64) < (p.div_euclid(size) + 1) * size;
                    }
                    if v.segments {
                        visible &= inputs.segment_ids_q[b * d.seq_len_q + i] == inputs.segment_ids_kv[b * d.seq_len_kv + j];
                    }
                    if let Some(shape) = v.mask {
                        visible &= inputs.mask[broadcast(shape, [b, h, i, j])];
                    }
                    // A bias of -inf masks the pair, whatever it is added to, and so does a sum that overflows to -inf.
                    visible &= !biases.contains(&f32::NEG_INFINITY) && sum != f64::NEG_INFINITY;
                    if visible {
                        out.masked[at] = biased;
                    }
                    out.weights[at] = f64::from(u8::from(visible)); // for now: 1 where visible
                }

                // Softmax over the visible keys; the sink is one more term of the denominator.
                let keys_of_row = row * d.seq_len_kv..row * d.seq_len_kv + keys;
                let seen: Vec<usize> = keys_of_row.filter(|&at| out.weights[at] == 1.0).collect();
                let sink = problem.sinks.then(|| f64::from(inputs.sinks[h]));
                let max = seen.iter().map(|&at| out.masked[at]).chain(sink).fold(f64::NEG_INFINITY, f64::max);
                if max == f64::NEG_INFINITY && seen.iter().all(|&at| !out.masked[at].is_nan()) {
                    seen.iter().for_each(|&at| out.weights[at] = 0.0);
                    continue;
                }
                let sum: f64 = seen.iter().map(|&at| out.masked[at]).chain(sink).map(|score| (score - max).exp()).sum();
                out.lse[row] = max + sum.ln();
                out.stats[row] = [max, sum];
                for &at in &seen {
                    let weight = (out.masked[at] - max).exp() / sum;
                    out.weights[at] = weight;
                    let j = at - row * d.seq_len_kv;
                    let from = key_row(problem, inputs, b, kv_head, j) * d.head_dim_v;
                    let kept = dropout_scale(problem, inputs, [b, h, i, j]);
                    for e in 0..d.head_dim_v {
                        out.output[row * d.head_dim_v + e] += kept * weight * f64::from(value[from + e]);
                    }
                }
            }
        }
    }
    Ok(out)
}

impl Reference {
    /// Rounds the results and stores them as the problem describes.
    pub fn into_outputs(self, problem: &Problem, inputs: &Inputs<'_>) -> Outputs {
        let d = problem.dims;
        let varlen = problem.varlen.is_some();
        let tokens = problem.varlen.map_or(d.seq_len_q, |p| p.tokens_q);
        let items = if varlen { 1 } else { d.batch };
        let strides = problem.output.strides([items, d.num_heads, tokens, d.head_dim_v]);
        let mut output = vec![0.0f32; problem.output_len()];
        let mut lse = vec![f32::NEG_INFINITY; problem.lse_len()];
        let mut stats = vec![NOTHING_SEEN.map(|x| x as f32); problem.lse_len()];
        for b in 0..d.batch {
            let (item, first, rows) = if varlen {
                (0, inputs.cu_seqlens_q[b] as usize, (inputs.cu_seqlens_q[b + 1] - inputs.cu_seqlens_q[b]) as usize)
            } else {
                (b, 0, d.seq_len_q)
            };
            for h in 0..d.num_heads {
                for i in 0..rows {
                    let row = (b * d.num_heads + h) * d.seq_len_q + i;
                    let at = problem.output.offset + item * strides.batch + h * strides.head + (first + i) * strides.seq;
                    for e in 0..d.head_dim_v {
                        output[at + e * strides.dim] = self.output[row * d.head_dim_v + e] as f32;
                    }
                    let place = if varlen { (first + i) * d.num_heads + h } else { row };
                    lse[place] = self.lse[row] as f32;
                    // l is rescaled to the rounded m.
                    let [max, sum] = self.stats[row];
                    let kept = max as f32;
                    stats[place] = [kept, if max == f64::from(kept) { sum } else { sum * (max - f64::from(kept)).exp() } as f32];
                }
            }
        }
        let narrow = |data: &[f64]| data.iter().map(|&x| x as f32).collect::<Vec<_>>();
        Outputs {
            output: HostVec::from_f32(problem.output.dtype, &output),
            lse: problem.want.lse.then_some(lse),
            stats: problem.want.stats.then_some(stats),
            scores: problem.want.scores.map(|stage| match stage {
                ScoreStage::Raw => narrow(&self.raw),
                ScoreStage::Capped => narrow(&self.capped),
                ScoreStage::Masked => narrow(&self.masked),
            }),
            weights: problem.want.weights.then(|| narrow(&self.weights)),
        }
    }
}

/// Row of key j of item b in the gathered keys and values.
pub(crate) fn key_row(problem: &Problem, inputs: &Inputs<'_>, b: usize, kv_head: usize, j: usize) -> usize {
    let heads = problem.dims.num_kv_heads;
    if let Some(paged) = problem.paged {
        let page = inputs.page_table[b * paged.pages_per_item + j / paged.page_size] as usize;
        return (page * heads + kv_head) * paged.page_size + j % paged.page_size;
    }
    match problem.varlen {
        Some(varlen) => kv_head * varlen.tokens_kv + inputs.cu_seqlens_kv[b] as usize + j,
        None => (b * heads + kv_head) * problem.dims.seq_len_kv + j,
    }
}

/// Dropout factor of the weight of [b, h, i, j]: 0, or 1 / (1 - probability).
pub(super) fn dropout_scale(problem: &Problem, inputs: &Inputs<'_>, [b, h, i, j]: [usize; 4]) -> f64 {
    let Some(probability) = problem.dropout else { return 1.0 };
    let word = inputs.dropout.words(b * problem.dims.num_heads + h, i, j / 4)[j % 4];
    if f64::from(word) < f64::from(probability) * 2f64.powi(32) { 0.0 } else { 1.0 / (1.0 - f64::from(probability)) }
}

/// Index of [b, h, i, j] in a tensor some of whose axes are 1.
pub(super) fn broadcast(shape: BroadcastShape, index: [usize; 4]) -> usize {
    let mut at = 0;
    for (extent, index) in shape.0.into_iter().zip(index) {
        at = at * extent + if extent == 1 { 0 } else { index };
    }
    at
}
