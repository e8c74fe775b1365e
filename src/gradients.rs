//! What a backward pass takes besides the problem and its inputs, and what it gives.

use crate::problem::Operand;
use crate::{DType, Error, HostSlice, HostVec, Problem, Result, TensorSpec};

/// Which gradients are wanted. The default is those of query, key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WantGradients {
    /// dQ.
    pub query: bool,
    /// dK.
    pub key: bool,
    /// dV.
    pub value: bool,
    /// Of the additive bias, summed over the axes along which it is broadcast. The problem must have one.
    pub bias: bool,
    /// Of the table of relative biases. The problem must have one.
    pub relative_bias: bool,
    /// Of the sinks. The problem must have them.
    pub sinks: bool,
    /// How dQ, dK and dV are stored; `None` is as their operands. The others are always f32.
    pub dtype: Option<DType>,
}

impl Default for WantGradients {
    fn default() -> Self {
        Self { query: true, key: true, value: true, bias: false, relative_bias: false, sinks: false, dtype: None }
    }
}

impl WantGradients {
    /// All that the problem has.
    pub fn all(problem: &Problem) -> Self {
        Self { bias: problem.bias.is_some(), relative_bias: problem.relative_bias.is_some(), sinks: problem.sinks, ..Self::default() }
    }

    /// How the gradient of an operand is stored.
    pub(crate) fn dtype(&self, problem: &Problem, operand: Operand) -> DType {
        self.dtype.unwrap_or(problem.spec(operand).dtype)
    }

    /// Finds every contradiction between what is wanted and the problem, and what no backward pass does.
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        for (argument, wanted, there) in [
            ("bias", self.bias, problem.bias.is_some()),
            ("relative_bias", self.relative_bias, problem.relative_bias.is_some()),
            ("sinks", self.sinks, problem.sinks),
        ] {
            if wanted && !there {
                return Err(Error::invalid(argument, "its gradient is wanted, but the problem does not have it"));
            }
        }
        if problem.paged.is_some() {
            return Err(Error::unsupported("gradients of keys in pages, which items share", "train on padded or packed sequences"));
        }
        if Operand::ALL.iter().any(|&operand| problem.spec(operand).dtype.is_blocks()) || self.dtype.is_some_and(DType::is_blocks) {
            return Err(Error::unsupported("gradients in or of quantised storage", "train on f32, f16 or bf16"));
        }
        for (operand, wanted) in [(Operand::Query, self.query), (Operand::Key, self.key), (Operand::Value, self.value)] {
            let shape = problem.shape(operand);
            if wanted && problem.spec(operand).check_no_overlap(operand.name(), shape).is_err() {
                return Err(Error::unsupported(
                    format!("the gradient of a {} of which two elements share a place", operand.name()),
                    "give every element a place of its own, and sum the gradients of those that are the same",
                ));
            }
        }
        Ok(())
    }
}

/// What the forward pass gave, and the gradient that comes back.
#[derive(Clone, Copy, Debug)]
pub struct BackwardInputs<'a> {
    /// The forward pass's output, as [`Problem::output`] describes.
    pub output: HostSlice<'a>,
    /// The forward pass's [`crate::Outputs::stats`]: [`Problem::lse_len`] pairs. `None` where there are none: then the backward pass
    /// makes them first, of all keys of this problem and its sinks.
    ///
    /// Those of a larger whole, of which the problem has some of the keys, give this part's share of the gradients.
    pub stats: Option<&'a [[f32; 2]]>,
    /// The gradient of the loss by the output, stored as the output is.
    pub d_output: HostSlice<'a>,
}

impl BackwardInputs<'_> {
    /// Compares the data with the problem, which has been checked.
    pub(crate) fn check(&self, problem: &Problem) -> Result<()> {
        let TensorSpec { dtype, .. } = problem.output;
        for (argument, slice) in [("output", self.output), ("d_output", self.d_output)] {
            if slice.dtype() != dtype {
                return Err(Error::invalid(argument, format!("the data is {}, the problem says {dtype}", slice.dtype())));
            }
            problem.output.check_len(argument, problem.shape(Operand::Output), slice.len())?;
        }
        match self.stats {
            Some(stats) if stats.len() != problem.lse_len() => {
                Err(Error::invalid("stats", format!("has {} pairs, the problem needs {}", stats.len(), problem.lse_len())))
            }
            _ => Ok(()),
        }
    }
}

/// The gradients of a loss, in host memory. What was not wanted is `None`.
///
/// For a row i with weights p, output o, the gradient do of its output and the dropout mask m (0 or 1 / (1 - probability); 1 without
/// dropout):
///
/// ```text
/// dp_j       = m_j * dot(do, value_j)
/// delta      = dot(do, o)                                     = sum_j p_j * dp_j
/// dbiased_j  = p_j * (dp_j - delta)                           p_j = exp(biased_j - m) / l
/// dsink      = -exp(sink - m) / l * delta
/// dscore_j   = dbiased_j * (1 - tanh²)                        if there is a softcap; dbias_j is taken before or after, by the order
/// dquery     = scale * sum_j dscore_j * key_j
/// dkey_j    += scale * dscore_j * query
/// dvalue_j  += m_j * p_j * do
/// ```
///
/// A hidden pair adds nothing anywhere and is never read; a row that sees nothing has gradient 0.
/// NaN or infinity in the gradient of a row's output reaches what the row sees, and only that.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// dQ, laid out as [`Problem::query`] describes; places between strided elements are 0, as in the next two.
    pub query: Option<HostVec>,
    /// dK, laid out as [`Problem::key`] describes, summed over the query heads that share a key.
    pub key: Option<HostVec>,
    /// dV, laid out as [`Problem::value`] describes, likewise.
    pub value: Option<HostVec>,
    /// In the shape of the bias.
    pub bias: Option<Vec<f32>>,
    /// [num_heads, 2 * max_distance + 1].
    pub relative_bias: Option<Vec<f32>>,
    /// `[num_heads]`.
    pub sinks: Option<Vec<f32>>,
}
