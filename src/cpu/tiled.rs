//! The CPU path.

use crate::{Control, Inputs, Outputs, Problem, Result};

/// Computes `problem` on the host.
pub fn attention(problem: &Problem, inputs: &Inputs<'_>, _control: &mut Control<'_>) -> Result<Outputs> {
    super::naive::attention(problem, inputs).map(|reference| reference.into_outputs(problem, inputs))
}
