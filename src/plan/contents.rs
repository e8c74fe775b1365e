//! Contents of the tensors that the caller of a plan binds, from and to the types of this crate.

use std::collections::BTreeMap;

use super::export::PlanExport;
use crate::numbers::{DType, HostVec};
use crate::problem::{BackwardInputs, Gradients, Inputs, Operand, Outputs, Problem, WantGradients, table_bytes};

/// Bytes of tensors, by the names that a [`PlanExport`] gives them.
pub type TensorBytes = BTreeMap<&'static str, Vec<u8>>;

impl PlanExport {
    /// Bytes of the tensors that the plan reads. `backward`, with statistics, has those of gradients. Everything has been
    /// checked against the problem.
    pub fn contents(&self, problem: &Problem, inputs: &Inputs<'_>, backward: Option<&BackwardInputs<'_>>) -> TensorBytes {
        let mut contents = TensorBytes::new();
        for tensor in self.tensors.iter().filter(|tensor| !tensor.written) {
            let bytes: Option<&[u8]> = match tensor.name {
                "query" => Some(inputs.query.bytes()),
                "key" => Some(inputs.key.bytes()),
                "value" => Some(inputs.value.bytes()),
                "bias" => Some(bytemuck::cast_slice(inputs.bias)),
                "mask" => Some(bytemuck::cast_slice(inputs.mask)),
                "tables" => None,
                "output" => backward.map(|backward| backward.output.bytes()),
                "d_output" => backward.map(|backward| backward.d_output.bytes()),
                "d_lse" => backward.and_then(|backward| backward.d_lse).map(bytemuck::cast_slice),
                "stats" => backward.and_then(|backward| backward.stats).map(bytemuck::cast_slice),
                other => unreachable!("no plan reads `{other}`"),
            };
            let mut bytes = bytes.map_or_else(|| table_bytes(problem, inputs), <[u8]>::to_vec);
            // Data may be longer than what is used of it.
            bytes.truncate(tensor.bytes as usize);
            contents.insert(tensor.name, bytes);
        }
        contents
    }
}

/// Outputs of attention in the bytes that its plan has written.
pub fn outputs_of(problem: &Problem, written: &TensorBytes) -> Outputs {
    Outputs {
        output: stored(problem.output.dtype, written, "output", problem.output_len()).unwrap_or_else(|| Outputs::default().output),
        lse: elements(written, "lse"),
        stats: elements(written, "stats"),
        scores: elements(written, "scores"),
        weights: elements(written, "weights"),
        key_sums: elements(written, "key_sums"),
    }
}

/// Gradients in the bytes that their plan has written.
pub fn gradients_of(problem: &Problem, want: &WantGradients, written: &TensorBytes) -> Gradients {
    let operand = |name, operand| stored(want.dtype(problem, operand), written, name, problem.operand_len(operand));
    Gradients {
        query: operand("d_query", Operand::Query),
        key: operand("d_key", Operand::Key),
        value: operand("d_value", Operand::Value),
        bias: elements(written, "d_bias"),
        relative_bias: elements(written, "d_relative_bias"),
        sinks: elements(written, "d_sinks"),
        term_tables: elements(written, "d_term_tables"),
    }
}

/// First `len` elements of a tensor; its buffer may be longer.
fn stored(dtype: DType, written: &TensorBytes, name: &str, len: usize) -> Option<HostVec> {
    let bytes = written.get(name)?;
    Some(HostVec::from_bytes(dtype, &bytes[..dtype.bytes(len).min(bytes.len())]))
}

fn elements<T: bytemuck::Pod>(written: &TensorBytes, name: &str) -> Option<Vec<T>> {
    written.get(name).map(|bytes| bytemuck::pod_collect_to_vec(bytes))
}
