//! Expected gradients of a problem, with the tolerance of gradients in f32 arithmetic.
//!
//! As in `expect.rs`, the tolerance is an error bound of the computation, derived from the data. With u, e, S, score
//! error and weight error as defined there, for a pair (i, j):
//!
//! ```text
//! dp error       = S u (chain(head_dim_v) + 4) * sum_e |d_output_e| |value_e|
//! delta error    = S u (chain(head_dim_v) + 4) * sum_e |d_output_e| |output_e| + sum_e |d_output_e| * output error_e
//! dbias error    = weight error * p (|dp| + |delta|) + p (dp error + delta error)
//! dscore error   = dbias error * slope + p (|dp| + |delta|) * slope error
//! slope error    = 2 |tanh| (score error / softcap + 4 S u) + 4 S u           with a softcap; else slope = 1, error 0
//! ```
//!
//! A weight is at most 1, which caps the errors where scores are too large for these bounds.
//!
//! Errors of gradients are sums of these errors, as gradients are sums of dbias, dscore and p, with |query|, |key| and
//! |d_output|. For the summing itself, each term adds S u (sqrt(seq_len_kv) + 16) times p (|dp| + |delta|), or times p
//! for dV. Gradients may be computed from any output that passes.

use crate::error::Result;
use crate::numbers::{DType, HostSlice, HostVec, Random};
use crate::oracle::{self, Operands, Pairs, ReferenceGradients as Reference};
use crate::problem::{BackwardInputs, Gradients, Inputs, Operand, Outputs, Problem, Returns, ScoreOrder, WantGradients};
use crate::verify::case::{Case, Fill, QueryRow, rows, scatter};
use crate::verify::expect::{Bounds, ExpectedTensor, TINY, absolute, chain, dropout_factor, storage_floor, summing};
use crate::verify::rounding::{self, SAFETY, at_most};

/// Expected gradients, with what they are computed from.
#[derive(Clone, Debug)]
pub struct ExpectedGradients {
    /// Gradient of the query, in its shape in the problem.
    pub query: ExpectedTensor,
    /// Gradient of the key, in its shape in the problem.
    pub key: ExpectedTensor,
    /// Gradient of the value, in its shape in the problem.
    pub value: ExpectedTensor,
    /// Gradient of the bias in its shape, if there is one.
    pub bias: Option<ExpectedTensor>,
    /// [num_heads, 2 * max_distance + 1], if there is a table.
    pub relative_bias: Option<ExpectedTensor>,
    /// `[num_heads]`, if there are sinks.
    pub sinks: Option<ExpectedTensor>,
    /// Elements of the tables of the user's terms that have an owner, if there are any.
    pub term_tables: Option<ExpectedTensor>,
    /// Outputs of the forward pass, rounded to their storage types.
    pub forward: Outputs,
    /// Gradient of the output.
    pub d_output: HostVec,
    /// Gradient of the lse, in half of the cases.
    pub d_lse: Option<Vec<f32>>,
}

/// Function that computes gradients: an engine, the oracle, or a kernel under test.
pub type AttendBackward<'a> = dyn Fn(&Problem, &Inputs<'_>, &BackwardInputs<'_>, &WantGradients) -> Result<Gradients> + 'a;

/// Runs the oracle's backward pass like an engine's.
pub fn backward_oracle(problem: &Problem, inputs: &Inputs<'_>, backward: &BackwardInputs<'_>, want: &WantGradients) -> Result<Gradients> {
    want.check(problem)?;
    oracle::gradients(problem, inputs, backward.d_output, backward.d_lse).map(|oracle| oracle.into_gradients(problem, want))
}

impl ExpectedGradients {
    /// Draws gradients of output and lse, and runs the oracle for the gradients and for the sums of their errors.
    pub fn of(case: &Case) -> Result<Self> {
        let problem = &Problem { want: Returns::default(), ..case.problem.clone() };
        let inputs = &case.data.inputs();
        let forward = oracle::attention(problem, inputs)?;
        let stored = draw_d_output(problem, inputs, &forward, case.fill);
        let d_output = stored.as_slice();
        let d_lse = (case.fill.seed / 2).is_multiple_of(2).then(|| draw_d_lse(problem, inputs, &forward, case.fill));
        let operands = Operands::gather(problem, inputs, d_output);
        let pairs = oracle::pairs(problem, inputs, &forward, &operands, d_lse.as_deref());
        let reference = oracle::sums(problem, inputs, &pairs, &operands);
        let (errors, doubts) = errors(problem, inputs, &forward, d_output, d_lse.as_deref(), &pairs)?;
        let heads = problem.dims.num_heads;
        let unit = SAFETY * DType::F32.epsilon();
        let judged = |tensor, of: fn(&Reference) -> &[f64]| {
            let exempt = doubts.as_ref().map_or(vec![], |sums| of(sums).iter().map(|&pairs| pairs > 0.0).collect());
            ExpectedTensor { exempt, ..tensor }
        };
        let operand = |operand, values, errors| ExpectedTensor::stored(problem, operand, values, errors, unit);
        let vector = |shape: &[usize], values: Vec<f64>, errors: Vec<f64>| {
            ExpectedTensor::new(shape, values, errors.into_iter().map(|error| error + TINY).collect(), unit)
        };
        let table = [heads, problem.relative_bias_columns()];
        let has_table = problem.relative_bias_max_distance.is_some();
        Ok(Self {
            query: judged(operand(Operand::Query, reference.query, errors.query), |doubts| &doubts.query),
            key: judged(operand(Operand::Key, reference.key, errors.key), |doubts| &doubts.key),
            value: operand(Operand::Value, reference.value, errors.value),
            bias: problem.bias.map(|shape| judged(vector(&shape.0, reference.bias, errors.bias), |doubts| &doubts.bias)),
            relative_bias: has_table
                .then(|| judged(vector(&table, reference.relative_bias, errors.relative_bias), |doubts| &doubts.relative_bias)),
            sinks: problem.sinks.then(|| vector(&[heads], reference.sinks, errors.sinks)),
            term_tables: WantGradients::all(problem)
                .term_tables
                .then(|| vector(&[reference.term_tables.len()], reference.term_tables, errors.term_tables))
                .map(|tables| judged(tables, |doubts| &doubts.term_tables)),
            forward: forward.into_outputs(problem, inputs),
            d_output: stored,
            d_lse,
        })
    }

    /// Inputs of a backward pass, without statistics: scores in the thousands need statistics of its own arithmetic.
    pub fn inputs(&self) -> BackwardInputs<'_> {
        BackwardInputs { d_lse: self.d_lse.as_deref(), ..BackwardInputs::new(&self.forward.output, &self.d_output) }
    }
}

/// Error bounds of all gradients: the oracle's sums over the errors of the pairs. Also returns, where there are any, the
/// number of pairs in each sum that are NaN unless rounding makes a slope beside it 0.
fn errors(
    problem: &Problem,
    inputs: &Inputs<'_>,
    forward: &oracle::Reference,
    d_output: HostSlice<'_>,
    d_lse: Option<&[f32]>,
    pairs: &Pairs,
) -> Result<(Reference, Option<Reference>)> {
    let d = &problem.dims;
    let unit = SAFETY * DType::F32.epsilon();
    let bounds = Bounds::new(problem, inputs, forward)?;
    let (query, key, value, d_output) = (absolute(inputs.query), absolute(inputs.key), absolute(inputs.value), absolute(d_output));
    let unsigned = Inputs { query: query.as_slice(), key: key.as_slice(), value: value.as_slice(), ..*inputs };
    let operands = Operands::gather(problem, &unsigned, d_output.as_slice());
    let wide = chain(d.head_dim_v) + 4.0;
    let (summing, kept) = (summing(problem), dropout_factor(problem));

    let mut errors = pairs.clone();
    let mut pair_of = vec![[0; 9]; if errors.d_tables.is_empty() { 0 } else { problem.scores_len() }];
    if !pair_of.is_empty() {
        oracle::pairs_of(problem, inputs).for_each(|(at, pair)| pair_of[at] = pair);
    }
    // By a table's first element: rounding may decide which element a pair reads, and none is judged.
    let mut is_unsure = vec![false; problem.d_term_tables_len()];
    let width = d.head_dim_v;
    for QueryRow { index: row, item, head, place, of_lse } in rows(problem, inputs) {
        let weight_error = bounds.weight[row];
        let d_output = &operands.d_output[place * width..][..width];
        let d_lse = d_lse.map_or(0.0, |d_lse| f64::from(d_lse[of_lse]).abs());
        let (mut delta, mut delta_error) = (d_lse, unit * d_lse);
        for (at, &d_output) in (row * width..).zip(d_output) {
            let (output, dtype) = (forward.output[at].abs(), problem.output.dtype);
            let output_error = bounds.output_error(problem, at) + dtype.epsilon() * output + storage_floor(dtype);
            delta += f64::from(d_output) * bounds.weighted_values[at];
            delta_error += f64::from(d_output) * (unit * wide * output + output_error);
        }
        let product = |j: usize| -> f64 {
            let value = &operands.value[oracle::key_row(problem, inputs, item, head / d.group(), j) * width..][..width];
            d_output.iter().zip(value).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        };
        let keys = (0..d.seq_len_kv).map(|j| (j, row * d.seq_len_kv + j)).filter(|&(_, at)| pairs.seen[at]);
        let seen: Vec<(usize, f64)> = keys.map(|(j, at)| (at, kept * product(j))).collect();
        let largest = seen.iter().map(|&(_, product)| product).fold(0.0, f64::max);
        for &(at, product) in &seen {
            let weight = forward.weights[at];
            let size = weight * (product + delta);
            // A tiny weight may be flushed to 0.
            let d_biased = TINY * (product + delta) + weight_error * size + weight * (unit * wide * product + delta_error) + unit * size;
            // Weights are at most 1, however wrong they are.
            let d_masked = at_most(d_biased, 2.0 * (product + largest + d_lse) + unit * wide * product + delta_error);
            let capped = if problem.score_order == ScoreOrder::SoftcapThenBias { forward.capped[at] } else { forward.before_terms[at] };
            let (slope, slope_error) = problem.softcap.map_or((1.0, 0.0), |softcap| {
                let t = capped / f64::from(softcap);
                (1.0 - t * t, 2.0 * t.abs() * (bounds.before_terms[at] / f64::from(softcap) + 4.0 * unit) + 4.0 * unit)
            });
            for (table, of_table) in problem.owned_tables().zip(&mut errors.d_tables) {
                let (x, places) = ((forward.before_terms[at], bounds.before_terms[at]), pair_of[at]);
                let (element, slope) = rounding::of_table(problem, inputs, &table, x, places);
                let (slope, slope_error) = slope.unwrap_or((0.0, f64::INFINITY));
                let slope = slope.abs();
                let error = (d_masked + summing * size) * (slope + slope_error) + size * slope_error;
                is_unsure[table.range.start] |= element.is_none();
                of_table[at] = element.map(|element| (element, error));
            }
            // The user's terms multiply by their slope.
            let (user, user_error) = (forward.slopes[at].abs(), bounds.slopes[at]);
            let d_biased = d_masked * (user + user_error) + size * user_error;
            let size = size * user;
            let summed = summing * size;
            errors.d_score[at] = (d_biased + summed) * slope + size * slope_error;
            errors.d_bias[at] = if problem.score_order == ScoreOrder::SoftcapThenBias { d_biased + summed } else { errors.d_score[at] };
            errors.weights[at] = at_most(pairs.weights[at] * (weight_error + summing) + TINY * kept, kept * (1.0 + summing));
        }
        if problem.sinks {
            let [max, sum] = forward.stats[row];
            let weight = (f64::from(inputs.sinks[head]) - max).exp() / sum;
            errors.d_sink[row] =
                at_most(weight * ((weight_error + summing) * delta + delta_error) + TINY * delta, 2.0 * (largest + d_lse) + delta_error);
        }
    }
    let scale = Some(problem.effective_scale().abs());
    let mut sums = oracle::sums(&Problem { scale, ..problem.clone() }, &unsigned, &errors, &operands);
    for table in problem.owned_tables().filter(|table| is_unsure[table.range.start]) {
        sums.term_tables[table.range].fill(f64::INFINITY);
    }
    Ok((sums, doubts(problem, inputs, pairs, &bounds, operands)))
}

/// Counts, in each sum, the pairs that are NaN unless rounding makes a slope beside it 0; `None` if there are none.
fn doubts(problem: &Problem, inputs: &Inputs<'_>, pairs: &Pairs, bounds: &Bounds, mut operands: Operands) -> Option<Reference> {
    let is_doubtful = |at: usize| f64::from(pairs.d_score[at].is_nan() && !bounds.slopes[at].is_finite());
    let mut counted = pairs.clone();
    counted.d_score = (0..pairs.d_score.len()).map(is_doubtful).collect();
    if counted.d_score.iter().all(|&count| count == 0.0) {
        return None;
    }
    counted.d_bias.clone_from(&counted.d_score);
    for (at, read) in counted.d_tables.iter_mut().flat_map(|of_table| of_table.iter_mut().enumerate()) {
        *read = read.map(|(element, _)| (element, counted.d_score[at]));
    }
    for operand in [&mut operands.query, &mut operands.key] {
        operand.fill(1.0);
    }
    Some(oracle::sums(&Problem { scale: Some(1.0), ..problem.clone() }, inputs, &counted, &operands))
}

/// Draws a gradient of the lse. With poison, it is NaN for rows with neither visible keys nor a sink.
fn draw_d_lse(problem: &Problem, inputs: &Inputs<'_>, forward: &oracle::Reference, fill: Fill) -> Vec<f32> {
    let mut random = Random::new(fill.seed ^ 0x6c73_6500);
    let mut d_lse: Vec<f32> = (0..problem.lse_len()).map(|_| random.normal()).collect();
    for row in rows(problem, inputs).iter().filter(|row| fill.poison && forward.lse[row.index] == f64::NEG_INFINITY) {
        d_lse[row.of_lse] = f32::NAN;
    }
    d_lse
}

/// Draws a gradient of the output, stored like the output. With poison, rows without visible keys and gaps hold NaN.
fn draw_d_output(problem: &Problem, inputs: &Inputs<'_>, forward: &oracle::Reference, fill: Fill) -> HostVec {
    let d = &problem.dims;
    let shape = problem.shape(Operand::Output);
    let mut random = Random::new(fill.seed ^ 0x6472_6177);
    let mut dense: Vec<f32> = (0..shape.iter().product()).map(|_| random.normal()).collect();
    for row in rows(problem, inputs) {
        let keys = &forward.masked[row.index * d.seq_len_kv..][..d.seq_len_kv];
        if fill.poison && keys.iter().all(|&score| score == f64::NEG_INFINITY) {
            dense[row.place * shape[3]..][..shape[3]].fill(f32::NAN);
        }
    }
    scatter(&problem.output, shape, &dense, if fill.poison { f32::NAN } else { 0.0 })
}
