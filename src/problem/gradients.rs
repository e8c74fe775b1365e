//! Inputs of a backward pass besides the problem's own, and its results.

use crate::error::{Error, Result};
use crate::numbers::{DType, HostSlice, HostVec};
use crate::problem::{Operand, Problem, TensorSpec};

/// Selection of gradients. The default is dQ, dK and dV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WantGradients {
    /// dQ.
    pub query: bool,
    /// dK.
    pub key: bool,
    /// dV.
    pub value: bool,
    /// Gradient of the additive bias, summed over its broadcast axes. The problem must have one.
    pub bias: bool,
    /// Gradient of the table of relative biases. The problem must have one.
    pub relative_bias: bool,
    /// Gradient of the sinks. The problem must have them.
    pub sinks: bool,
    /// Gradients of the tables that the user's terms read, of those that have an owner ([`crate::Table::owner`]). The problem
    /// must have one.
    pub term_tables: bool,
    /// The loss also depends on the lse, and its gradient is an input ([`BackwardInputs::d_lse`]): gates and merges of
    /// partial results are differentiated through it.
    pub through_lse: bool,
    /// Storage type of dQ, dK and dV; `None` is their operand's type. The other gradients are always f32.
    pub dtype: Option<DType>,
}

impl Default for WantGradients {
    fn default() -> Self {
        Self {
            query: true,
            key: true,
            value: true,
            bias: false,
            relative_bias: false,
            sinks: false,
            term_tables: false,
            through_lse: false,
            dtype: None,
        }
    }
}

impl WantGradients {
    /// Selects every gradient that the problem has, of a loss that does not depend on the lse.
    pub fn all(problem: &Problem) -> Self {
        Self {
            bias: problem.bias.is_some(),
            relative_bias: problem.relative_bias_max_distance.is_some(),
            sinks: problem.sinks,
            term_tables: problem.owned_tables().next().is_some(),
            ..Self::default()
        }
    }

    /// Storage type of an operand's gradient.
    pub(crate) fn dtype(&self, problem: &Problem, operand: Operand) -> DType {
        self.dtype.unwrap_or(problem.spec(operand).dtype)
    }

    /// Refuses gradients of what the problem does not have, and of what no backward pass supports.
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        for (argument, wanted, there) in [
            ("bias", self.bias, problem.bias.is_some()),
            ("relative_bias", self.relative_bias, problem.relative_bias_max_distance.is_some()),
            ("sinks", self.sinks, problem.sinks),
        ] {
            if wanted && !there {
                return Err(Error::invalid(argument, "its gradient is wanted, but the problem does not have it"));
            }
        }
        if self.term_tables {
            problem.check_owned_tables()?;
        }
        if problem.paged.is_some() {
            return Err(Error::unsupported("gradients of keys in pages, which items share", "train on padded or varlen sequences"));
        }
        if Operand::ALL.iter().any(|&operand| problem.spec(operand).dtype.is_quantised()) || self.dtype.is_some_and(DType::is_quantised) {
            return Err(Error::unsupported("gradients in or of quantised storage", "train on f32, f16 or bf16"));
        }
        problem.check_not_rotated()?;
        problem.user_terms.iter().try_for_each(|term| term.check_slope())?;
        for (operand, wanted) in [(Operand::Query, self.query), (Operand::Key, self.key), (Operand::Value, self.value)] {
            let shape = problem.shape(operand);
            if wanted && problem.spec(operand).check_no_overlap(operand.name(), shape).is_err() {
                return Err(Error::unsupported(
                    format!("the gradient of a {} whose elements share places", operand.name()),
                    "give every element a place of its own, and sum the gradients of those that are the same",
                ));
            }
        }
        Ok(())
    }
}

impl Problem {
    /// Refuses keys and values that are stored rotated, of which no gradient is computed.
    pub(crate) fn check_not_rotated(&self) -> Result<()> {
        if self.key_hadamard || self.value_hadamard {
            return Err(Error::unsupported("gradients of keys or values that are stored rotated", "train on rows that are not"));
        }
        Ok(())
    }
}

/// Results of the forward pass, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct BackwardInputs<'a> {
    /// Output of the forward pass, as [`Problem::output`] describes.
    pub output: HostSlice<'a>,
    /// Softmax statistics of the forward pass ([`crate::Outputs::stats`]), [`Problem::lse_len`] pairs. If `None`, the
    /// backward pass first computes them from all keys of this problem and its sinks.
    ///
    /// Statistics of a larger problem that includes this one's keys yield this one's share of the gradients.
    pub stats: Option<&'a [[f32; 2]]>,
    /// Gradient of the loss with respect to the output, stored as the output is.
    pub d_output: HostSlice<'a>,
    /// Gradient of the loss with respect to the lse, in the order of [`crate::Outputs::lse`], if
    /// [`WantGradients::through_lse`] is set. What it holds for a row with neither a visible key nor a sink is ignored.
    pub d_lse: Option<&'a [f32]>,
}

impl<'a> BackwardInputs<'a> {
    /// Creates inputs with the output and its gradient only.
    pub fn new(output: impl Into<HostSlice<'a>>, d_output: impl Into<HostSlice<'a>>) -> Self {
        Self { output: output.into(), stats: None, d_output: d_output.into(), d_lse: None }
    }

    /// Checks the data against the problem and the wanted gradients, which have been checked.
    pub(crate) fn check(&self, problem: &Problem, want: &WantGradients) -> Result<()> {
        let TensorSpec { dtype, .. } = problem.output;
        for (argument, slice) in [("output", self.output), ("d_output", self.d_output)] {
            if slice.dtype() != dtype {
                return Err(Error::invalid(argument, format!("the data is {}, the problem says {dtype}", slice.dtype())));
            }
            problem.output.check_len(argument, problem.shape(Operand::Output), slice.len())?;
        }
        let rows = problem.lse_len();
        if let Some(stats) = self.stats.filter(|stats| stats.len() != rows) {
            return Err(Error::invalid("stats", format!("has {} pairs, the problem needs {rows}", stats.len())));
        }
        match self.d_lse {
            Some(d_lse) if d_lse.len() != rows => {
                Err(Error::invalid("d_lse", format!("has {} numbers, the problem needs {rows}", d_lse.len())))
            }
            Some(_) if !want.through_lse => Err(Error::invalid("d_lse", "is given; set `WantGradients::through_lse` too")),
            None if want.through_lse => Err(Error::invalid("d_lse", "is missing; `WantGradients::through_lse` is set")),
            _ => Ok(()),
        }
    }
}

/// Gradients of a loss, in host memory. Gradients that were not wanted are `None`.
///
/// For a row with weights p, output o, gradients do of the output and dlse of the lse (0 if it is not given), and
/// dropout factors r (0 or 1 / (1 - probability); 1 without dropout), where m and l are the row's statistics
/// ([`crate::Outputs::stats`]):
///
/// ```text
/// dp_j       = r_j * dot(do, value_j)
/// delta      = dot(do, o) - dlse                              = sum_j p_j * dp_j - dlse
/// dbiased_j  = p_j * (dp_j - delta)                           p_j = exp(biased_j - m) / l
/// dsink      = -exp(sink - m) / l * delta
/// dscore_j   = dbiased_j * (1 - tanh²)                        with a softcap; dbias_j is before or after, by the score order
/// dquery     = scale * sum_j dscore_j * key_j
/// dkey_j    += scale * dscore_j * query
/// dvalue_j  += r_j * p_j * do
/// dtable_e   = sum of p_j * (dp_j - delta) * d score_j / d table_e       over the pairs that read element e of a user's table
/// ```
///
/// A masked pair contributes nothing and is never read; a row with no visible key adds only dlse to the gradient of its
/// sink. NaN or infinity in the gradient of a row's output or lse reaches what is visible to the row, and only that.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Gradients {
    /// dQ, laid out as [`Problem::query`] describes. Gaps between strided elements are 0, as in dK and dV.
    pub query: Option<HostVec>,
    /// dK, laid out as [`Problem::key`] describes, summed over the query heads that share a key.
    pub key: Option<HostVec>,
    /// dV, laid out as [`Problem::value`] describes, summed over the query heads that share a value.
    pub value: Option<HostVec>,
    /// Gradient of the additive bias, in its shape.
    pub bias: Option<Vec<f32>>,
    /// Gradient of the table of relative biases, [num_heads, 2 * max_distance + 1].
    pub relative_bias: Option<Vec<f32>>,
    /// Gradient of the sinks, `[num_heads]`.
    pub sinks: Option<Vec<f32>>,
    /// Gradients of the tables that have an owner, one after the other: [`Problem::d_term_table`] finds one by its name. An
    /// element that no visible pair reads has 0.
    pub term_tables: Option<Vec<f32>>,
}
