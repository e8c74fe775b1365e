//! Expected outputs of a problem, in the layout of [`Outputs`], with the tolerance of answers in f32 arithmetic.
//!
//! The tolerance is an error bound of the computation, derived from the data. With u = 2^-23 (the epsilon of f32, the
//! type of all arithmetic), e the epsilon of the output's storage type and S the safety factor:
//!
//! ```text
//! magnitude(i,j) = |scale| * sum_d |q_d| |k_d| + |biases|              rounding errors of a score are relative to it
//! chain(n)       = max(sqrt(n), n / 16)      errors of a sum are a random walk; with equal terms they have one sign
//! score error    = S u ((chain(head_dim) + 4) * magnitude + 4 softcap)
//! weight error   = exp(2 * the row's largest score error) - 1 + S u (sqrt(seq_len_kv) + 16)     relative; weight <= 1
//! output error   = (weight error + b) * sum_j weight(i,j) |value_j| + e |output|     at most twice the largest |value|
//! m error        = the row's largest score error
//! l error        = l * weight error
//! lse error      = the row's largest score error + S u (sqrt(seq_len_kv) + 16 + |lse|)
//! key sum error  = sum_i weight(i,j) * (weight error + S u (sqrt(terms) + 16))      over its terms: rows, and heads of a group
//! ```
//!
//! b is 2^-8 where weights may be rounded to bf16 and values are bf16, else 0.
//!
//! Some rows have equal scores however they are rounded, because all keys are equal or a huge bias absorbs the scores.
//! Such a row is a mean, and its weight error is fixed: 1e-5, or 3e-5 above 8192 keys.
//!
//! A weight or a value below the smallest normal number may be flushed to 0, which adds that number to the error of each
//! key and row.
//!
//! The 16 covers exp, which a GPU may get wrong by some units in the last place, and the rescaling of a running sum.

use crate::custom::Term;
use crate::error::Result;
use crate::numbers::{DType, HostSlice, HostVec};
use crate::oracle::{self, Reference};
use crate::problem::{Alibi, Inputs, Operand, Outputs, PageTable, Problem, ScoreOrder, ScoreStage, TensorSpec, gather};
use crate::verify::case::{QueryRow, rows, scatter};
use crate::verify::rounding::{self, SAFETY, at_most};

/// Smallest normal number. Anything below it may be flushed to 0.
pub(super) const TINY: f64 = f32::MIN_POSITIVE as f64;

/// Expected tensor, and how far an answer may be from it: `|got - value| <= allowed`, element by element.
///
/// NaN must meet NaN and +inf must meet +inf; where -inf is expected, anything up to `minus_infinity` passes.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedTensor {
    /// Shape.
    pub shape: Vec<usize>,
    /// Elements, contiguous.
    pub values: Vec<f64>,
    /// Allowed error of each element. Never NaN: where the bound is unknown, any error is allowed.
    pub allowed: Vec<f64>,
    /// Largest answer that passes for -inf: -inf itself, or -1e30 in case files.
    pub minus_infinity: f64,
    /// Largest finite value of the storage type. An answer that may exceed it may be infinite.
    pub largest: f64,
    /// Elements that may be anything, because rounding may turn what they depend on; empty if there are none.
    pub exempt: Vec<bool>,
}

impl ExpectedTensor {
    /// Creates a tensor of f32 elements. Each may be off by its error in `errors` and by `relative * |value|`.
    pub fn new(shape: impl Into<Vec<usize>>, values: Vec<f64>, errors: Vec<f64>, relative: f64) -> Self {
        let allowed = |(error, value): (f64, &f64)| match error + relative * value.abs() {
            unknown if unknown.is_nan() => f64::INFINITY,
            allowed => allowed.max(0.0),
        };
        let allowed = errors.into_iter().zip(&values).map(allowed).collect();
        Self { shape: shape.into(), values, allowed, minus_infinity: f64::NEG_INFINITY, largest: f32::MAX.into(), exempt: vec![] }
    }

    /// Creates a tensor that is stored like `operand`: the errors grow by the rounding of its storage type.
    pub(super) fn stored(problem: &Problem, operand: Operand, values: Vec<f64>, mut errors: Vec<f64>, relative: f64) -> Self {
        let dtype = problem.spec(operand).dtype;
        errors.iter_mut().for_each(|error| *error += storage_floor(dtype));
        let largest = if dtype == DType::F16 { half::f16::MAX.into() } else { f32::MAX.into() };
        Self { largest, ..Self::new(problem.shape(operand), values, errors, dtype.epsilon() + relative) }
    }
}

/// Expected outputs. Those that the problem does not ask for are `None`.
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
    /// [batch, num_kv_heads, seq_len_kv].
    pub key_sums: Option<ExpectedTensor>,
    /// Number of rows that are not judged, because rounding may turn what a user's term shows them.
    pub unsure_rows: usize,
}

impl Expected {
    /// Runs the oracle three times: for the answer, the magnitudes of the scores, and the weighted sum of |value|.
    pub fn of(problem: &Problem, inputs: &Inputs<'_>) -> Result<Self> {
        let answer = oracle::attention(problem, inputs)?;
        let bounds = Bounds::new(problem, inputs, &answer)?;
        let (d, want) = (problem.dims, problem.want);
        let rows = rows(problem, inputs);
        let arrange_output = |from: &[f64]| arrange(&rows, from, d.head_dim_v, |row| row.place);
        let lse_shape = problem.varlen.map_or_else(|| d.scores_shape()[..3].to_vec(), |varlen| vec![varlen.tokens_q, d.num_heads]);
        let arrange_lse = |from: &[f64], width: usize| arrange(&rows, from, width, |row| row.of_lse);

        let output_errors: Vec<f64> = (0..answer.output.len()).map(|at| bounds.output_error(problem, at)).collect();
        let lse = || {
            let errors: Vec<f64> = bounds.score.iter().map(|error| error + summing(problem)).collect();
            let unit = SAFETY * DType::F32.epsilon();
            ExpectedTensor::new(lse_shape.clone(), arrange_lse(&answer.lse, 1), arrange_lse(&errors, 1), unit)
        };
        let stats = || {
            let l_error = |l: f64, weight_error: f64| l * weight_error + d.seq_len_kv as f64 * TINY;
            let rows = answer.stats.iter().zip(bounds.score.iter().zip(&bounds.weight));
            let errors: Vec<f64> = rows.flat_map(|(&[_, l], (&m_error, &weight))| [m_error, l_error(l, weight)]).collect();
            let values = arrange_lse(answer.stats.as_flattened(), 2);
            ExpectedTensor::new([&lse_shape[..], &[2]].concat(), values, arrange_lse(&errors, 2), 0.0)
        };
        let pairs = |values: &[f64], error: &dyn Fn(usize) -> f64| {
            ExpectedTensor::new(d.scores_shape(), values.to_vec(), (0..values.len()).map(error).collect(), 0.0)
        };
        let scores = |stage| {
            let (values, errors) = match stage {
                ScoreStage::Raw => (&answer.raw, &bounds.before_terms),
                ScoreStage::Capped => (&answer.capped, &bounds.before_terms),
                ScoreStage::Masked => (&answer.masked, &bounds.scores),
            };
            pairs(values, &|at| errors[at] + TINY)
        };
        let weight_error = |at: usize| at_most(bounds.weight[at / d.seq_len_kv] * answer.weights[at] + TINY, 1.0);
        let mut expected = Self {
            output: ExpectedTensor::stored(problem, Operand::Output, arrange_output(&answer.output), arrange_output(&output_errors), 0.0),
            lse: want.lse.then(lse),
            stats: want.stats.then(stats),
            scores: want.scores.map(scores),
            weights: want.weights.then(|| pairs(&answer.weights, &weight_error)),
            key_sums: want.key_sums.map(|_| {
                let errors = Reference { weights: (0..answer.weights.len()).map(weight_error).collect(), ..answer.clone() };
                let summing = SAFETY * DType::F32.epsilon() * (((d.seq_len_q * d.group()) as f64).sqrt() + 16.0);
                let shape = [d.batch, d.num_kv_heads, d.seq_len_kv];
                ExpectedTensor::new(shape, answer.key_sums(problem, inputs), errors.key_sums(problem, inputs), summing)
            }),
            unsure_rows: 0,
        };
        let unsure = unsure_rows(problem, inputs);
        expected.unsure_rows = unsure.iter().filter(|&&row| row == 1.0).count();
        if expected.unsure_rows > 0 {
            let wide = |width: usize| unsure.iter().flat_map(|&row| std::iter::repeat_n(row, width)).collect::<Vec<f64>>();
            let exempt = |tensor: &mut ExpectedTensor, rows: Vec<f64>| tensor.exempt = rows.into_iter().map(|row| row == 1.0).collect();
            exempt(&mut expected.output, arrange_output(&wide(d.head_dim_v)));
            expected.lse.iter_mut().for_each(|lse| exempt(lse, arrange_lse(&unsure, 1)));
            expected.stats.iter_mut().for_each(|stats| exempt(stats, arrange_lse(&wide(2), 2)));
            expected.scores.iter_mut().chain(&mut expected.weights).for_each(|pairs| exempt(pairs, wide(d.seq_len_kv)));
            if let Some(sums) = &mut expected.key_sums {
                let of_rows = Reference { weights: wide(d.seq_len_kv), ..answer };
                sums.exempt = of_rows.key_sums(problem, inputs).into_iter().map(|rows| rows > 0.0).collect();
            }
        }
        Ok(expected)
    }
}

/// 1 for each row of [batch, num_heads, seq_len_q] in which rounding may turn what a user's term shows, else 0.
pub(super) fn unsure_rows(problem: &Problem, inputs: &Inputs<'_>) -> Vec<f64> {
    let d = problem.dims;
    let mut rows = vec![0.0; d.batch * d.num_heads * d.seq_len_q];
    if problem.user_terms.iter().any(Term::has_visible) {
        let unsure = oracle::pairs_of(problem, inputs).filter(|&(_, pair)| !rounding::is_sure(problem, inputs, pair));
        unsure.for_each(|(at, _)| rows[at / d.seq_len_kv] = 1.0);
    }
    rows
}

/// Runs the oracle like an engine, and rounds its answer to the storage type.
pub fn oracle(problem: &Problem, inputs: &Inputs<'_>) -> Result<Outputs> {
    oracle::attention(problem, inputs).map(|reference| reference.into_outputs(problem, inputs))
}

/// Rearranges rows of `width` elements from the oracle's order to the places that `place` names.
fn arrange(rows: &[QueryRow], from: &[f64], width: usize, place: impl Fn(&QueryRow) -> usize) -> Vec<f64> {
    let mut to = vec![0.0; rows.len() * width];
    for row in rows {
        to[place(row) * width..][..width].copy_from_slice(&from[row.index * width..][..width]);
    }
    to
}

/// Error bounds of a forward pass, before its outputs are stored.
pub(super) struct Bounds {
    /// Error of each pair's score before the user's terms, and after them.
    pub(super) before_terms: Vec<f64>,
    pub(super) scores: Vec<f64>,
    /// Error of the derivative of each pair's score by what it was before the user's terms.
    pub(super) slopes: Vec<f64>,
    /// Largest score error among the visible keys of each row of [batch, num_heads, seq_len_q].
    pub(super) score: Vec<f64>,
    /// Relative error of each row's weights.
    pub(super) weight: Vec<f64>,
    /// `sum_j weight(i,j) |value_j|`, in the shape of the oracle's output.
    pub(super) weighted_values: Vec<f64>,
    /// Largest finite |value|.
    largest_value: f64,
}

impl Bounds {
    pub(super) fn new(problem: &Problem, inputs: &Inputs<'_>, answer: &Reference) -> Result<Self> {
        let d = &problem.dims;
        let magnitudes = magnitudes(problem, inputs)?;
        let before_terms: Vec<f64> = magnitudes.into_iter().map(|magnitude| score_error(problem, magnitude)).collect();
        let (scores, slopes) = after_terms(problem, inputs, answer, &before_terms);
        let (mut score, mut weight) = (Vec::new(), Vec::new());
        for row in 0..d.batch * d.num_heads * d.seq_len_q {
            // Infinite and NaN scores are not a matter of tolerance.
            let keys = row * d.seq_len_kv..(row + 1) * d.seq_len_kv;
            let seen: Vec<usize> = keys.filter(|&at| answer.masked[at].is_finite()).collect();
            let error = seen.iter().map(|&at| scores[at]).fold(0.0, f64::max);
            score.push(error);
            weight.push(match is_even(problem, answer, &seen) {
                true if seen.len() <= 8192 => 1e-5,
                true => 3e-5,
                false => (2.0 * error).exp_m1() + summing(problem),
            });
        }
        let mut unsigned = problem.clone();
        let value = unsigned_operand(&mut unsigned, Operand::Value, inputs.value);
        let weighted_values = oracle::attention(&unsigned, &Inputs { value: value.as_slice(), ..*inputs })?.output;
        let largest_value = value.to_f32().into_iter().filter(|x| x.is_finite()).fold(0.0, f32::max).into();
        Ok(Self { before_terms, scores, slopes, score, weight, weighted_values, largest_value })
    }

    /// Error bound of an element of the oracle's output.
    pub(super) fn output_error(&self, problem: &Problem, at: usize) -> f64 {
        let kept = dropout_factor(problem);
        // Weights and values may be flushed.
        let flushed = TINY * (problem.dims.seq_len_kv as f64 * self.largest_value + kept);
        let error = (self.weight[at / problem.dims.head_dim_v] + rounded_weights(problem)) * self.weighted_values[at] + flushed;
        at_most(error, 2.0 * kept * self.largest_value * (1.0 + summing(problem)))
    }
}

/// Errors of the scores and of their derivatives after the user's terms; infinite where rounding may turn a branch.
fn after_terms(problem: &Problem, inputs: &Inputs<'_>, answer: &Reference, before: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let mut errors = (before.to_vec(), vec![0.0; before.len()]);
    if problem.user_terms.is_empty() {
        return errors;
    }
    for (at, pair) in oracle::pairs_of(problem, inputs).filter(|&(at, _)| answer.masked[at] != f64::NEG_INFINITY) {
        let after = rounding::of_terms(problem, inputs, (answer.before_terms[at], before[at]), pair);
        (errors.0[at], errors.1[at]) = after.map_or((f64::INFINITY, f64::INFINITY), |after| (after.score.1, after.slope.1));
    }
    errors
}

/// Relative error of weights that may be rounded to bf16.
fn rounded_weights(problem: &Problem) -> f64 {
    if problem.allow_bf16_weights && problem.value.dtype == DType::BF16 { 2f64.powi(-8) } else { 0.0 }
}

/// Factor on the weights that dropout keeps.
pub(super) fn dropout_factor(problem: &Problem) -> f64 {
    problem.dropout.map_or(1.0, |probability| 1.0 / (1.0 - f64::from(probability)))
}

/// `|scale| * sum_d |q_d| |k_d| + |biases|` for each pair: the oracle's score of the problem without signs and softcap.
fn magnitudes(problem: &Problem, inputs: &Inputs<'_>) -> Result<Vec<f64>> {
    let mut unsigned = problem.clone();
    unsigned.user_terms.clear();
    unsigned.scale = Some(problem.effective_scale().abs());
    unsigned.softcap = None;
    unsigned.score_order = ScoreOrder::SoftcapThenBias;
    unsigned.alibi = problem.alibi.map(|_| Alibi::Symmetric);
    let (query, key) = (unsigned_operand(&mut unsigned, Operand::Query, inputs.query), absolute(inputs.key));
    let unsigned_biases =
        |biases: &[f32]| -> Vec<f32> { biases.iter().map(|&x| if x == f32::NEG_INFINITY { x } else { x.abs() }).collect() };
    let (bias, relative) = (unsigned_biases(inputs.bias), unsigned_biases(inputs.relative_bias));
    let slopes: Vec<f32> = inputs.alibi_slopes.iter().map(|x| -x.abs()).collect();
    // Without the user's terms, keys on pages that are missing are visible.
    let page_table: Vec<u32> = inputs.page_table.iter().map(|&page| if page == PageTable::UNUSED { 0 } else { page }).collect();
    let unsigned_inputs = Inputs {
        query: query.as_slice(),
        key: key.as_slice(),
        bias: &bias,
        alibi_slopes: &slopes,
        relative_bias: &relative,
        term_tables: &[],
        page_table: &page_table,
        ..*inputs
    };
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

/// Magnitudes of the query or the value as it counts in scores or in the output: rotated, if the problem rotates it. Changes
/// the problem to one that takes them as they are.
///
/// Rotating rounds partial sums, which the root mean square of a block bounds where they cancel in the end.
fn unsigned_operand(problem: &mut Problem, operand: Operand, data: HostSlice<'_>) -> HostVec {
    let (shape, spec) = (problem.shape(operand), *problem.spec(operand));
    let rotation = if operand == Operand::Query { problem.query_rotation() } else { problem.output_rotation() };
    let Some(rotation) = rotation else { return absolute(data) };
    let dense = gather(data, &spec, shape);
    let magnitudes = dense.chunks_exact(rotation.block()).flat_map(|block| {
        let wide: Vec<f64> = block.iter().map(|&x| x.into()).collect();
        let root_mean_square = (wide.iter().map(|x| x * x).sum::<f64>() / wide.len() as f64).sqrt();
        oracle::hadamard(&wide).into_iter().map(move |x| (x.abs() + 2.0 * root_mean_square) as f32)
    });
    let magnitudes: Vec<f32> = magnitudes.collect();
    let spec = TensorSpec { dtype: DType::F32, ..spec };
    if operand == Operand::Query {
        (problem.query, problem.key_hadamard) = (spec, false);
    } else {
        (problem.value, problem.value_hadamard) = (spec, false);
    }
    scatter(&spec, shape, &magnitudes, 0.0)
}

pub(super) fn absolute(data: HostSlice<'_>) -> HostVec {
    let unsigned: Vec<f32> = (0..data.len()).map(|at| data.get(at).abs()).collect();
    HostVec::from_f32(data.dtype(), &unsigned)
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

/// True if the scores of a row are equal however they are rounded: all keys are equal, or a bias absorbs the scores.
fn is_even(problem: &Problem, answer: &Reference, seen: &[usize]) -> bool {
    let Some(&first) = seen.first() else { return false };
    let same = |of: &[f64]| seen.iter().all(|&at| of[at] == of[first]);
    if !problem.user_terms.is_empty()
        || problem.sinks
        || problem.alibi.is_some()
        || problem.relative_bias_max_distance.is_some()
        || !same(&answer.masked)
    {
        return false;
    }
    if problem.bias.is_none() {
        return same(&answer.raw);
    }
    let biased = (answer.masked[first] as f32).abs();
    let spacing = f64::from(biased) - f64::from(f32::from_bits(biased.to_bits().saturating_sub(1)));
    problem.softcap.is_none() && seen.iter().all(|&at| 8.0 * answer.raw[at].abs() < spacing)
}

/// Absolute error of the smallest values of a storage type, whose rounding errors are no longer relative.
pub(super) fn storage_floor(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-24),
        DType::F32 | DType::BF16 | DType::Q8 | DType::Q4 => TINY,
    }
}
