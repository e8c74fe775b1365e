//! Tensors that the caller of a plan binds, and dummies for those that kernels declare and the problem lacks.

use super::cache_words::CacheWords;
use super::step::{BufferRef, Step};
use super::tensor::{TensorExport, VectorExport};
use crate::problem::{BroadcastShape, Operand, Problem, TableVector, Tables, TensorSpec, WantGradients};

/// Arguments that a forward or a backward pass reads, and those that it writes.
const fn arguments(is_backward: bool) -> [&'static [BufferRef]; 2] {
    use BufferRef::*;
    if is_backward {
        let read = &[Query, Key, Value, Output, DOutput, DLse, Stats, Tables, Bias, Mask];
        [read, &[DQuery, DKey, DValue, DBias, DRelativeBias, DSinks, DTermTables]]
    } else {
        [&[Query, Key, Value, Cache, Tables, Bias, Mask], &[Output, Lse, Stats, Scores, Weights, KeySums]]
    }
}

/// Returns the tensors of attention, or of the wanted gradients, that the problem has: first those that are read. Keys and
/// values may be in a cache.
pub(super) fn of(
    problem: &Problem,
    want: Option<&WantGradients>,
    table_words: u32,
    cache: Option<CacheWords>,
) -> Vec<(BufferRef, TensorExport)> {
    let [read, written] = arguments(want.is_some()).map(|places| places.iter().copied());
    let in_tables = cache.map(|words| words.in_tables(problem));
    let tensor = |written: bool, place: BufferRef| {
        let tensor = match (place, cache) {
            (BufferRef::Key, Some(_)) => Some(stored(problem, Operand::Key, "cache_key")),
            (BufferRef::Value, Some(_)) => Some(stored(problem, Operand::Value, "cache_value")),
            (BufferRef::Cache, words) => words.map(|words| TensorExport::contiguous(place.name(), "u32", 4, &[words.state as usize])),
            (BufferRef::KeySums, Some(words)) => problem.want.key_sums.map(|_| {
                let [heads, _] = words.kv_heads(problem);
                TensorExport::contiguous(place.name(), "f32", 4, &[problem.dims.batch, heads, problem.dims.seq_len_kv])
            }),
            (BufferRef::Tables, _) => (table_words > 0).then(|| tables(in_tables.as_ref().unwrap_or(problem), table_words)),
            _ => tensor(problem, want, place),
        };
        Some((place, TensorExport { written, ..tensor? }))
    };
    read.filter_map(|place| tensor(false, place)).chain(written.filter_map(|place| tensor(true, place))).collect()
}

/// Returns query, key, value or output as a tensor that is read.
fn stored(problem: &Problem, operand: Operand, name: &'static str) -> TensorExport {
    TensorExport::stored(name, problem.spec(operand), problem.shape(operand))
}

/// Returns a tensor as one that is read; `None` if the problem does not have it.
fn tensor(p: &Problem, want: Option<&WantGradients>, place: BufferRef) -> Option<TensorExport> {
    let floats = |wanted: bool, shape: &[usize]| wanted.then(|| TensorExport::contiguous(place.name(), "f32", 4, shape));
    let operand = |operand: Operand| Some(stored(p, operand, place.name()));
    let wants = |wants: fn(&WantGradients) -> bool| want.filter(|want| wants(want));
    let gradient = |wanted, operand: Operand| {
        wants(wanted).map(|want| {
            let spec = TensorSpec { dtype: want.dtype(p, operand), ..*p.spec(operand) };
            TensorExport::stored(place.name(), &spec, p.shape(operand))
        })
    };
    let scores = p.dims.scores_shape();
    let rows = p.varlen.map_or_else(|| scores[..3].to_vec(), |varlen| vec![varlen.tokens_q, p.dims.num_heads]);
    match place {
        BufferRef::Query => operand(Operand::Query),
        BufferRef::Key => operand(Operand::Key),
        BufferRef::Value => operand(Operand::Value),
        BufferRef::Output | BufferRef::DOutput => operand(Operand::Output),
        BufferRef::Lse => floats(p.want.lse, &rows),
        BufferRef::Stats => floats(p.want.stats || want.is_some(), &[&rows[..], &[2]].concat()),
        BufferRef::Bias => p.bias.and_then(|BroadcastShape(shape)| floats(true, &shape)),
        BufferRef::Mask => p.visibility.mask.map(|BroadcastShape(shape)| TensorExport::contiguous(place.name(), "u8", 1, &shape)),
        BufferRef::Scores => floats(p.want.scores.is_some(), &scores),
        BufferRef::Weights => floats(p.want.weights, &scores),
        BufferRef::KeySums => floats(p.want.key_sums.is_some(), &[p.dims.batch, p.dims.num_kv_heads, p.dims.seq_len_kv]),
        BufferRef::DLse => floats(wants(|want| want.through_lse).is_some(), &rows),
        BufferRef::DQuery => gradient(|want| want.query, Operand::Query),
        BufferRef::DKey => gradient(|want| want.key, Operand::Key),
        BufferRef::DValue => gradient(|want| want.value, Operand::Value),
        BufferRef::DBias => p.bias.and_then(|BroadcastShape(shape)| floats(wants(|want| want.bias).is_some(), &shape)),
        BufferRef::DRelativeBias => floats(wants(|want| want.relative_bias).is_some(), &[p.dims.num_heads, p.relative_bias_columns()]),
        BufferRef::DSinks => floats(wants(|want| want.sinks).is_some(), &[p.dims.num_heads]),
        BufferRef::DTermTables => floats(wants(|want| want.term_tables).is_some(), &[p.d_term_tables_len()]),
        BufferRef::Tables | BufferRef::Cache | BufferRef::Scratch(_) | BufferRef::Dummy(_) => None,
    }
}

/// Returns the tables buffer.
fn tables(problem: &Problem, words: u32) -> TensorExport {
    let tables = Tables::new(problem);
    let of = |vector: TableVector| {
        let words = tables.words(vector)?;
        let (name, dtype) = vector.name_and_type();
        Some(VectorExport { name, dtype, offset: 4 * u64::from(words.start), len: words.len() as u64 })
    };
    let vectors = TableVector::ALL.into_iter().filter_map(of).collect();
    TensorExport { vectors, ..TensorExport::contiguous(BufferRef::Tables.name(), "u32", 4, &[words as usize]) }
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
