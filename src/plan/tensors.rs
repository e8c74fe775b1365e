//! Tensors that the caller of a plan binds, and dummies for those that kernels declare and the problem lacks.

use super::step::{BufferRef, Step};
use super::tensor::{TensorExport, VectorExport};
use crate::numbers::DType;
use crate::problem::{BroadcastShape, Operand, Problem, TableVector, Tables, WantGradients};

/// Arguments that a forward or a backward pass reads, and those that it writes.
const fn arguments(is_backward: bool) -> [&'static [BufferRef]; 2] {
    use BufferRef::*;
    if is_backward {
        let read = &[Query, Key, Value, Output, DOutput, DLse, Stats, Tables, Bias, Mask];
        [read, &[DQuery, DKey, DValue, DBias, DRelativeBias, DSinks, DTermTables]]
    } else {
        [&[Query, Key, Value, Tables, Bias, Mask], &[Output, Lse, Stats, Scores, Weights]]
    }
}

/// Returns the tensors of attention, or of the wanted gradients, that the problem has: first those that are read.
pub(super) fn of(problem: &Problem, want: Option<&WantGradients>, table_words: u32) -> Vec<(BufferRef, TensorExport)> {
    let [read, written] = arguments(want.is_some()).map(|places| places.iter().copied());
    let tensor = |written: bool, place: BufferRef| Some((place, TensorExport { written, ..tensor(problem, want, table_words, place)? }));
    read.filter_map(|place| tensor(false, place)).chain(written.filter_map(|place| tensor(true, place))).collect()
}

/// Returns a tensor as one that is read; `None` if the problem does not have it.
fn tensor(p: &Problem, want: Option<&WantGradients>, table_words: u32, place: BufferRef) -> Option<TensorExport> {
    let named = |dtype: &'static str, shape: &[usize], bytes: u64| TensorExport {
        name: place.name(),
        written: false,
        dtype,
        shape: shape.to_vec(),
        strides: contiguous(shape),
        offset: 0,
        bytes,
        vectors: Vec::new(),
    };
    let floats = |wanted: bool, shape: &[usize]| wanted.then(|| named("f32", shape, 4 * elements(shape)));
    let stored = |operand: Operand, dtype: DType| {
        let (spec, shape) = (p.spec(operand), p.shape(operand));
        let strides = spec.strides(shape);
        let strides = vec![strides.batch, strides.head, strides.seq, strides.dim];
        TensorExport { strides, offset: spec.offset, ..named(dtype.name(), &shape, dtype.bytes(p.operand_len(operand)) as u64) }
    };
    let operand = |operand: Operand| Some(stored(operand, p.spec(operand).dtype));
    let wants = |wants: fn(&WantGradients) -> bool| want.filter(|want| wants(want));
    let gradient = |wanted, operand: Operand| wants(wanted).map(|want| stored(operand, want.dtype(p, operand)));
    let scores = p.dims.scores_shape();
    let rows = p.varlen.map_or_else(|| scores[..3].to_vec(), |varlen| vec![varlen.tokens_q, p.dims.num_heads]);
    match place {
        BufferRef::Query => operand(Operand::Query),
        BufferRef::Key => operand(Operand::Key),
        BufferRef::Value => operand(Operand::Value),
        BufferRef::Output | BufferRef::DOutput => operand(Operand::Output),
        BufferRef::Lse => floats(p.want.lse, &rows),
        BufferRef::Stats => floats(p.want.stats || want.is_some(), &[&rows[..], &[2]].concat()),
        BufferRef::Tables => (table_words > 0)
            .then(|| TensorExport { vectors: vectors(p), ..named("u32", &[table_words as usize], 4 * u64::from(table_words)) }),
        BufferRef::Bias => p.bias.and_then(|BroadcastShape(shape)| floats(true, &shape)),
        BufferRef::Mask => p.visibility.mask.map(|BroadcastShape(shape)| named("u8", &shape, elements(&shape))),
        BufferRef::Scores => floats(p.want.scores.is_some(), &scores),
        BufferRef::Weights => floats(p.want.weights, &scores),
        BufferRef::DLse => floats(wants(|want| want.through_lse).is_some(), &rows),
        BufferRef::DQuery => gradient(|want| want.query, Operand::Query),
        BufferRef::DKey => gradient(|want| want.key, Operand::Key),
        BufferRef::DValue => gradient(|want| want.value, Operand::Value),
        BufferRef::DBias => p.bias.and_then(|BroadcastShape(shape)| floats(wants(|want| want.bias).is_some(), &shape)),
        BufferRef::DRelativeBias => floats(wants(|want| want.relative_bias).is_some(), &[p.dims.num_heads, p.relative_bias_columns()]),
        BufferRef::DSinks => floats(wants(|want| want.sinks).is_some(), &[p.dims.num_heads]),
        BufferRef::DTermTables => floats(wants(|want| want.term_tables).is_some(), &[p.d_term_tables_len()]),
        BufferRef::Cache | BufferRef::Scratch(_) | BufferRef::Dummy(_) => None,
    }
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&extent| extent as u64).product()
}

/// Vectors of the tables buffer.
fn vectors(problem: &Problem) -> Vec<VectorExport> {
    let tables = Tables::new(problem);
    let of = |vector: TableVector| {
        let words = tables.words(vector)?;
        let (name, dtype) = vector.name_and_type();
        Some(VectorExport { name, dtype, offset: 4 * u64::from(words.start), len: words.len() as u64 })
    };
    TableVector::ALL.into_iter().filter_map(of).collect()
}

/// Strides of a tensor without gaps.
fn contiguous(shape: &[usize]) -> Vec<usize> {
    (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect()
}

/// Replaces tensors that kernels declare and the problem lacks by dummies. Returns the sizes of those in bytes.
pub(super) fn add_dummies(problem: &Problem, tensors: &[(BufferRef, TensorExport)], steps: &mut [Step]) -> Vec<u64> {
    // Nothing of tables, bias and mask is read; an lse is written.
    let [mut read, mut lse] = [None; 2];
    let mut sizes = Vec::new();
    for (_, place) in steps.iter_mut().flat_map(|step| &mut step.places) {
        let (dummy, bytes) = match place {
            BufferRef::Lse => (&mut lse, 4 * problem.lse_len() as u64),
            BufferRef::Tables | BufferRef::Bias | BufferRef::Mask => (&mut read, 16),
            _ => continue,
        };
        if tensors.iter().all(|(own, _)| own != place) {
            *place = *dummy.get_or_insert_with(|| {
                sizes.push(bytes);
                BufferRef::Dummy(sizes.len() - 1)
            });
        }
    }
    sizes
}
