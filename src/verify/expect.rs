//! Expected answer to a problem, in the layout of [`Outputs`], with the tolerance of answers in f32 arithmetic.
//!
//! The tolerance is an error bound of the computation, derived from the data. With u = 2^-23 (the epsilon of f32, the
//! type of all arithmetic), e the epsilon of the output's storage type and S the safety factor:
//!
//! ```text
//! magnitude(i,j) = |scale| * sum_d |q_d| |k_d| + |biases|              rounding errors of a score are relative to it
//! chain(n)       = max(sqrt(n), n / 16)      errors of a sum are a random walk; with equal terms they have one sign
//! score error    = S u ((chain(head_dim) + 4) * magnitude + 4 softcap)
//! weight error   = exp(2 * the row's largest score error) - 1 + S u (sqrt(seq_len_kv) + 16)     relative; weight <= 1
//! output error   = weight error * sum_j weight(i,j) |value_j| + e |output|           at most twice the largest |value|
//! m error        = the row's largest score error
//! l error        = l * weight error
//! lse error      = the row's largest score error + S u (sqrt(seq_len_kv) + 16 + |lse|)
//! ```
//!
//! Some rows have equal scores however they are rounded, because all keys are equal or a huge bias absorbs the scores.
//! Such a row is a mean, and its weight error is fixed: 1e-5, or 3e-5 above 8192 keys.
//!
//! A weight or a value below the smallest normal number may be flushed to 0, which adds that number to the error of each key and row.
//!
//! The 16 covers exp, which a GPU may get wrong by some units in the last place, and the rescaling of a running sum.

use crate::error::Result;
use crate::numbers::{DType, HostSlice, HostVec};
use crate::oracle::{self, Reference};
use crate::problem::{Alibi, Inputs, Operand, Outputs, Problem, ScoreOrder, ScoreStage};
use crate::verify::compare::Tolerance;

/// Safety factor on every bound.
pub(super) const SAFETY: f64 = 2.0;
/// Smallest normal number. Anything below it may be flushed to 0.
pub(super) const TINY: f64 = f32::MIN_POSITIVE as f64;

/// Expected tensor with its tolerance.
#[derive(Clone, Debug)]
pub struct ExpectedTensor {
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements, contiguous.
    pub values: Vec<f64>,
    /// Tolerance of an answer.
    pub tolerance: Tolerance,
}

/// Expected answer. Outputs that the problem does not ask for are `None`.
#[derive(Clone, Debug)]
pub struct Expected {
    /// [batch, num_heads, seq_len_q, head_dim_v]; varlen: [1, num_heads, tokens, head_dim_v].
    pub output: ExpectedTensor,
    /// [batch, num_heads, seq_len_q]; varlen: [tokens, num_heads].
    pub lse: Option<ExpectedTensor>,
    /// Shape of the lse, with m and l along one more axis.
    pub stats: Option<ExpectedTensor>,
    /// [batch, num_heads, seq_len_q, seq_len_kv].
    pub scores: Option<ExpectedTensor>,
    /// [batch, num_heads, seq_len_q, seq_len_kv].
    pub weights: Option<ExpectedTensor>,
}

impl Expected {
    /// Runs the oracle three times: for the answer, the magnitudes of the scores, and the weighted sum of |value|.
    pub fn of(problem: &Problem, inputs: &Inputs<'_>) -> Result<Self> {
        let answer = oracle::attention(problem, inputs)?;
        let magnitudes = magnitudes(problem, inputs)?;
        let value = absolute(inputs.value);
        let weighted_values = oracle::attention(problem, &Inputs { value: value.as_slice(), ..*inputs })?.output;

        let d = &problem.dims;
        let unit = SAFETY * DType::F32.epsilon();
        let errors = Errors::new(problem, &answer, &magnitudes);
        let values = ValueSize::of(value.as_slice());
        let output_error: Vec<f64> = weighted_values
            .iter()
            .enumerate()
            .map(|(at, &sum)| values.output_error(problem, errors.weight[at / d.head_dim_v], sum) + storage_floor(problem.output.dtype))
            .collect();
        let scores_shape = d.scores_shape().to_vec();
        let scores = |stage| {
            let values = stage_of(&answer, stage).to_vec();
            let absolute = (0..values.len()).map(|at| score_error(problem, magnitudes[at]) + TINY).collect();
            ExpectedTensor { shape: scores_shape.clone(), values, tolerance: per_element(absolute, 0.0) }
        };
        let weights = || {
            let values = answer.weights.clone();
            let absolute = values.iter().enumerate().map(|(at, &w)| at_most(errors.weight[at / d.seq_len_kv] * w + TINY, 1.0)).collect();
            ExpectedTensor { shape: scores_shape.clone(), values, tolerance: per_element(absolute, 0.0) }
        };
        let lse_error: Vec<f64> = errors.score.iter().map(|&error| error + summing(problem)).collect();
        let lse_shape = match problem.varlen {
            Some(varlen) => vec![varlen.tokens_q, d.num_heads],
            None => vec![d.batch, d.num_heads, d.seq_len_q],
        };
        let stats = || {
            let pair = |m: Vec<f64>, l: Vec<f64>| m.into_iter().zip(l).flat_map(|(m, l)| [m, l]).collect();
            let [m, l] = [0, 1].map(|which| answer.stats.iter().map(|row| row[which]).collect::<Vec<_>>());
            let l_error: Vec<f64> = l.iter().zip(&errors.weight).map(|(l, error)| l * error + d.seq_len_kv as f64 * TINY).collect();
            let arrange = |numbers: &[f64]| arrange_lse(problem, inputs, numbers);
            ExpectedTensor {
                shape: [&lse_shape[..], &[2]].concat(),
                values: pair(arrange(&m), arrange(&l)),
                tolerance: per_element(pair(arrange(&errors.score), arrange(&l_error)), 0.0),
            }
        };
        Ok(Self {
            output: ExpectedTensor {
                shape: problem.shape(Operand::Output).to_vec(),
                values: arrange_output(problem, inputs, &answer.output),
                tolerance: stored_as(problem.output.dtype, arrange_output(problem, inputs, &output_error), problem.output.dtype.epsilon()),
            },
            lse: problem.want.lse.then(|| ExpectedTensor {
                shape: lse_shape.clone(),
                values: arrange_lse(problem, inputs, &answer.lse),
                tolerance: per_element(arrange_lse(problem, inputs, &lse_error), unit),
            }),
            stats: problem.want.stats.then(stats),
            scores: problem.want.scores.map(scores),
            weights: problem.want.weights.then(weights),
        })
    }
}

/// Runs the oracle like an engine, and rounds its answer to the storage type.
pub fn oracle(problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
    oracle::attention(problem, inputs).map(|reference| reference.into_outputs(problem, inputs))
}

/// Index in the output's buffer of each element, in [batch, heads, seq, dim] order.
pub(crate) fn output_places(problem: &Problem) -> impl Iterator<Item = usize> {
    let shape = problem.shape(Operand::Output);
    let strides = problem.output.strides(shape);
    let offset = problem.output.offset;
    let [batch, heads, seq, dim] = shape;
    (0..batch * heads * seq * dim).map(move |flat| {
        let (e, i, h, b) = (flat % dim, flat / dim % seq, flat / (dim * seq) % heads, flat / (dim * seq * heads));
        offset + b * strides.batch + h * strides.head + i * strides.seq + e * strides.dim
    })
}

fn stage_of(answer: &Reference, stage: ScoreStage) -> &[f64] {
    match stage {
        ScoreStage::Raw => &answer.raw,
        ScoreStage::Capped => &answer.capped,
        ScoreStage::Masked => &answer.masked,
    }
}

/// `|scale| * sum_d |q_d| |k_d| + |biases|` for each pair: the oracle's score of the problem without signs and softcap.
pub(super) fn magnitudes(problem: &Problem, inputs: &Inputs<'_>) -> Result<Vec<f64>> {
    let mut unsigned = *problem;
    unsigned.scale = Some(problem.effective_scale().abs());
    unsigned.softcap = None;
    unsigned.score_order = ScoreOrder::SoftcapThenBias;
    unsigned.alibi = problem.alibi.map(|_| Alibi::Symmetric);
    let (query, key) = (absolute(inputs.query), absolute(inputs.key));
    let bias: Vec<f32> = inputs.bias.iter().map(|&x| if x == f32::NEG_INFINITY { x } else { x.abs() }).collect();
    let slopes: Vec<f32> = inputs.alibi_slopes.iter().map(|x| -x.abs()).collect();
    let relative: Vec<f32> = inputs.relative_bias.iter().map(|x| x.abs()).collect();
    let unsigned_inputs =
        Inputs { query: query.as_slice(), key: key.as_slice(), bias: &bias, alibi_slopes: &slopes, relative_bias: &relative, ..*inputs };
    let answer = oracle::attention(&unsigned, &unsigned_inputs)?;
    // A masked pair has no biased score, but its raw score is returned all the same. An infinite element makes an infinite
    // score, which has no rounding error, nor has its cap.
    let magnitude = |(&masked, raw): (&f64, f64)| match masked {
        _ if raw == f64::INFINITY => 0.0,
        f64::NEG_INFINITY => raw,
        _ => masked,
    };
    Ok(answer.masked.iter().zip(answer.raw).map(magnitude).collect())
}

pub(super) fn absolute(data: HostSlice<'_>) -> HostVec {
    let unsigned: Vec<f32> = (0..data.len()).map(|at| data.get(at).abs()).collect();
    HostVec::from_f32(data.dtype(), &unsigned)
}

/// Smaller of `error` and `most`; `most` if `error` is NaN.
pub(super) fn at_most(error: f64, most: f64) -> f64 {
    if error < most { error } else { most }
}

/// Error bound of a pair's score, from its magnitude.
pub(super) fn score_error(problem: &Problem, magnitude: f64) -> f64 {
    let capped = 4.0 * f64::from(problem.softcap.unwrap_or(0.0));
    SAFETY * DType::F32.epsilon() * ((chain(problem.dims.head_dim) + 4.0) * magnitude + capped)
}

/// Error of a sequential sum of `n` terms, in roundings. Measured with n equal terms: up to 0.107 n.
pub(super) fn chain(n: usize) -> f64 {
    (n as f64).sqrt().max(n as f64 / 16.0)
}

/// Relative error of a sum over the keys.
pub(super) fn summing(problem: &Problem) -> f64 {
    SAFETY * DType::F32.epsilon() * ((problem.dims.seq_len_kv as f64).sqrt() + 16.0)
}

/// Error bounds of scores and weights for each row of [batch, num_heads, seq_len_q].
pub(super) struct Errors {
    /// Largest score error among the row's visible keys.
    pub(super) score: Vec<f64>,
    /// Relative error of the row's weights.
    pub(super) weight: Vec<f64>,
}

impl Errors {
    pub(super) fn new(problem: &Problem, answer: &Reference, magnitudes: &[f64]) -> Self {
        let d = &problem.dims;
        let (mut score, mut weight) = (Vec::new(), Vec::new());
        for row in 0..d.batch * d.num_heads * d.seq_len_q {
            // Infinite and NaN scores are not a matter of tolerance.
            let keys = row * d.seq_len_kv..(row + 1) * d.seq_len_kv;
            let seen: Vec<usize> = keys.filter(|&at| answer.masked[at].is_finite()).collect();
            let error = seen.iter().map(|&at| score_error(problem, magnitudes[at])).fold(0.0, f64::max);
            score.push(error);
            weight.push(match is_even(problem, answer, &seen) {
                true if seen.len() <= 8192 => 1e-5,
                true => 3e-5,
                false => (2.0 * error).exp_m1() + summing(problem),
            });
        }
        Self { score, weight }
    }
}

/// True if the scores of a row are equal however they are rounded: all keys are equal, or a bias absorbs the scores.
fn is_even(problem: &Problem, answer: &Reference, seen: &[usize]) -> bool {
    let Some(&first) = seen.first() else { return false };
    let same = |of: &[f64]| seen.iter().all(|&at| of[at] == of[first]);
    if problem.sinks || !same(&answer.masked) {
        return false;
    }
    let biased = answer.masked[first] as f32;
    let spacing = f64::from(biased.abs()) - f64::from(f32::from_bits(biased.abs().to_bits().saturating_sub(1)));
    if problem.alibi.is_some() || problem.relative_bias_max_distance.is_some() {
        return false;
    }
    match problem.bias {
        None => same(&answer.raw),
        Some(_) => problem.softcap.is_none() && seen.iter().all(|&at| 8.0 * answer.raw[at].abs() < spacing),
    }
}

/// Largest finite |value| of a problem.
pub(super) struct ValueSize(f64);

impl ValueSize {
    /// Takes the largest of the absolute values.
    pub(super) fn of(unsigned: HostSlice<'_>) -> Self {
        Self((0..unsigned.len()).map(|at| f64::from(unsigned.get(at))).filter(|x| x.is_finite()).fold(0.0, f64::max))
    }

    /// Error bound of an output before it is stored, from its row's weight error and its weighted sum of |value|.
    pub(super) fn output_error(&self, problem: &Problem, weight_error: f64, weighted: f64) -> f64 {
        let kept = problem.dropout.map_or(1.0, |probability| 1.0 / (1.0 - f64::from(probability)));
        // Weights and values may be flushed.
        let flushed = TINY * (problem.dims.seq_len_kv as f64 * self.0 + kept);
        at_most(weight_error * weighted + flushed, 2.0 * kept * self.0 * (1.0 + summing(problem)))
    }
}

pub(super) fn per_element(absolute: Vec<f64>, relative: f64) -> Tolerance {
    Tolerance { absolute, ..Tolerance::uniform(0.0, relative) }
}

/// Tolerance per element of a tensor in this storage type.
pub(super) fn stored_as(dtype: DType, absolute: Vec<f64>, relative: f64) -> Tolerance {
    let largest = if dtype == DType::F16 { f64::from(half::f16::MAX) } else { f64::from(f32::MAX) };
    Tolerance { largest, ..per_element(absolute, relative) }
}

/// Absolute error of the smallest values of a storage type, whose rounding errors are no longer relative.
pub(super) fn storage_floor(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-24),
        DType::F32 | DType::BF16 | DType::Q8 | DType::Q4 => TINY,
    }
}

/// Index of each existing row in the oracle's [batch, num_heads, seq_len_q], with its item, head and token.
pub(super) fn rows(problem: &Problem, inputs: &Inputs<'_>) -> Vec<(usize, [usize; 3])> {
    let d = problem.dims;
    let mut rows = Vec::with_capacity(problem.lse_len());
    for b in 0..d.batch {
        let (item, first, count) = match problem.varlen {
            Some(_) => (0, inputs.cu_seqlens_q[b] as usize, (inputs.cu_seqlens_q[b + 1] - inputs.cu_seqlens_q[b]) as usize),
            None => (b, 0, d.seq_len_q),
        };
        for h in 0..d.num_heads {
            rows.extend((0..count).map(|i| ((b * d.num_heads + h) * d.seq_len_q + i, [item, h, first + i])));
        }
    }
    rows
}

/// Rearranges the oracle's [batch, num_heads, seq_len_q, head_dim_v] to the shape of the problem's output.
fn arrange_output(problem: &Problem, inputs: &Inputs<'_>, from: &[f64]) -> Vec<f64> {
    let [items, heads, seq, dim] = problem.shape(Operand::Output);
    let mut to = vec![0.0; items * heads * seq * dim];
    for (row, [item, head, token]) in rows(problem, inputs) {
        let at = ((item * heads + head) * seq + token) * dim;
        to[at..at + dim].copy_from_slice(&from[row * dim..(row + 1) * dim]);
    }
    to
}

/// Rearranges the oracle's [batch, num_heads, seq_len_q] to the order of [`Outputs::lse`].
fn arrange_lse(problem: &Problem, inputs: &Inputs<'_>, from: &[f64]) -> Vec<f64> {
    if problem.varlen.is_none() {
        return from.to_vec();
    }
    let mut to = vec![0.0; problem.lse_len()];
    for (row, [_, head, token]) in rows(problem, inputs) {
        to[token * problem.dims.num_heads + head] = from[row];
    }
    to
}
