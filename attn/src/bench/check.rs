//! Inputs of benchmark problems, and checks of the answers.

use fastrand::Rng;
use wgpu_attention::verify::{Expected, Mismatch};
use wgpu_attention::{Alignment, BroadcastShape, DType, Dims, Gradients, HostVec, Inputs, Layout, Problem, WantGradients};

use super::machine;
use super::task::{Task, bytes, shape_text};
use crate::failure::Failure;
use crate::terminal::ProgressBar;
use crate::user_terms;

/// Inputs of a problem, and the gradient of its output.
pub(crate) struct Tensors {
    pub(super) query: HostVec,
    pub(super) key: HostVec,
    pub(super) value: HostVec,
    /// Gradient of the output.
    pub(super) d_output: HostVec,
    pub(super) bias: Vec<f32>,
    pub(super) kv_lengths: Vec<u32>,
    /// Tables of terms in WGSL.
    pub(super) term_tables: Vec<u32>,
}

impl Tensors {
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        let inputs = Inputs::new(self.query.as_slice(), self.key.as_slice(), self.value.as_slice());
        Inputs { bias: &self.bias, kv_lengths: &self.kv_lengths, term_tables: &self.term_tables, ..inputs }
    }
}

/// Draws uniformly from [-1, 1).
pub(crate) fn unit(random: &mut Rng) -> f32 {
    2.0 * random.f32() - 1.0
}

/// Draws elements. Errors name the `option` that asked for so many.
pub(super) fn draw(random: &mut Rng, len: usize, option: impl std::fmt::Display) -> Result<Vec<f32>, Failure> {
    let mut elements = Vec::new();
    elements.try_reserve_exact(len).map_err(|_| Failure::at(option, "does not fit in memory"))?;
    elements.extend((0..len).map(|_| unit(random)));
    Ok(elements)
}

/// Narrows elements to their storage type.
pub(super) fn stored(dtype: DType, elements: Vec<f32>) -> HostVec {
    if dtype == DType::F32 { HostVec::F32(elements) } else { HostVec::from_f32(dtype, &elements) }
}

/// Draws the tensors of a task.
pub(crate) fn tensors_of(task: &Task) -> Result<Tensors, Failure> {
    let (term_tables, kv_lengths) = (task.term_tables.clone(), task.kv_lengths.clone());
    Ok(Tensors { term_tables, kv_lengths, ..tensors(&task.problem)? })
}

/// Draws the tensors uniformly from [-1, 1) with a fixed seed.
pub(super) fn tensors(problem: &Problem) -> Result<Tensors, Failure> {
    // Drawn as f32, then narrowed: both copies exist for a moment.
    let bias = problem.bias.and_then(BroadcastShape::elements).unwrap_or(0);
    let needed = 3.0 * bytes(problem) * 4.0 / problem.query.dtype.bytes(1) as f64 + 4.0 * bias as f64;
    let free = machine::free_bytes().map_or(f64::INFINITY, |free| free as f64);
    let option = format!("--shape {}", shape_text(&problem.dims));
    if needed > free {
        let (needed, free) = (needed / 1e9, free / 1e9);
        return Err(Failure::at(option, format!("needs about {needed:.1} GB of memory, {free:.1} GB are free: time a smaller one")));
    }
    let mut random = Rng::with_seed(1);
    let bias = draw(&mut Rng::with_seed(3), bias, &option)?;
    let mut tensor = |len: usize| draw(&mut random, len, &option).map(|elements| stored(problem.query.dtype, elements));
    Ok(Tensors {
        query: tensor(problem.query_len())?,
        key: tensor(problem.key_len())?,
        value: tensor(problem.value_len())?,
        d_output: tensor(problem.output_len())?,
        bias,
        kv_lengths: Vec::new(),
        term_tables: Vec::new(),
    })
}

/// Maximum number of rows that are checked against the oracle.
const SAMPLED_ROWS: usize = 32;

/// Error of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Deviation {
    /// Largest error over its bound, at most 1 if the answer is right; infinite if something is not finite.
    pub(super) of_bound: f64,
    /// Description of the worst element, empty if the answer is right.
    pub(super) why: String,
}

impl Deviation {
    /// Compares an answer with the oracle's.
    pub(super) fn of(problem: &Problem, inputs: &Inputs<'_>, got: &[f32]) -> Result<Self, Failure> {
        let expected = Expected::of(problem, inputs)?.output;
        match expected.compare(got) {
            Ok(_) => Ok(Self::default()),
            Err(mismatch) => {
                let of_bound = if let Mismatch::Value(at) = &mismatch { (at.got - at.expected).abs() / at.allowed } else { f64::INFINITY };
                Ok(Self { of_bound, why: mismatch.to_string() })
            }
        }
    }
}

/// Compares rows with the oracle, each as a problem of one query row: all, or the first, the last and random ones.
pub(super) fn deviation(problem: &Problem, tensors: &Tensors, output: &HostVec, progress: &mut ProgressBar) -> Result<Deviation, Failure> {
    let d = &problem.dims;
    let rows = d.batch * d.num_heads * d.seq_len_q;
    let mut random = Rng::with_seed(2);
    let picked: Vec<usize> = if rows <= SAMPLED_ROWS {
        (0..rows).collect()
    } else {
        [0, rows - 1].into_iter().chain((2..SAMPLED_ROWS).map(|_| random.usize(..rows))).collect()
    };
    let mut worst = Deviation::default();
    for (done, &row) in picked.iter().enumerate() {
        progress.report(done as f64 / picked.len() as f64);
        let (head, i) = (row / d.seq_len_q, row % d.seq_len_q);
        let kv_head = head / d.num_heads * d.num_kv_heads + head % d.num_heads / d.group();
        let dims = Dims { batch: 1, num_heads: 1, num_kv_heads: 1, seq_len_q: 1, ..*d };
        let mut one = Problem { dims, ..problem.clone() }.stored(DType::F32, Layout::Bhsd);
        one.output.dtype = problem.output.dtype;
        let lengths = tensors.kv_lengths.get(head / d.num_heads).map_or(&[][..], std::slice::from_ref);
        let keys = lengths.first().map_or(d.seq_len_kv, |&keys| keys as usize);
        let position = i as i64 + Alignment::BottomRight.offset(d.seq_len_q, keys);
        let aligned = Alignment::Offset(i32::try_from(position).map_err(|error| Failure::input(error.to_string()))?);
        one.visibility.alignment = problem.visibility.alignment.map(|_| aligned);
        let place = [head / d.num_heads, head % d.num_heads, head % d.num_heads / d.group(), i, d.seq_len_q];
        one.user_terms = problem.user_terms.iter().map(|term| user_terms::of_row(term, place)).collect::<Result<_, _>>()?;
        let part = |tensor: &HostVec, at: usize, len: usize| (at..at + len).map(|at| tensor.as_slice().get(at)).collect::<Vec<f32>>();
        let keys = d.seq_len_kv * d.head_dim;
        let query = part(&tensors.query, row * d.head_dim, d.head_dim);
        let (key, value) = (part(&tensors.key, kv_head * keys, keys), part(&tensors.value, kv_head * keys, keys));
        // The bound of bf16 weights depends on the type of the values.
        let value = stored(problem.value.dtype, value);
        one.value.dtype = problem.value.dtype;
        let bias = row_of_bias(problem, &tensors.bias, [place[0], place[1], i]);
        one.bias = problem.bias.map(|_| BroadcastShape([1, 1, 1, d.seq_len_kv]));
        let (term_tables, inputs) = (&tensors.term_tables, Inputs::new(&query, &key, value.as_slice()));
        let inputs = Inputs { bias: &bias, kv_lengths: lengths, term_tables, ..inputs };
        let found = Deviation::of(&one, &inputs, &part(output, row * d.head_dim, d.head_dim))?;
        if found.of_bound > worst.of_bound {
            worst = Deviation { why: format!("query {i} of head {head}, counted over the batch: {}", found.why), ..found };
        }
    }
    Ok(worst)
}

/// The bias of each key in the row of this item, head and query.
fn row_of_bias(problem: &Problem, bias: &[f32], [item, head, query]: [usize; 3]) -> Vec<f32> {
    let Some(shape) = problem.bias else { return Vec::new() };
    let [of_item, of_head, of_query, of_key] = shape.strides();
    let row = item * of_item + head * of_head + query * of_query;
    (0..problem.dims.seq_len_kv).map(|key| bias[row + key * of_key]).collect()
}

/// Checks identities that gradients satisfy in every head, whatever the shape. The rows of dV add up to those of the
/// output's gradient, because weights add up to 1. Both sum(query * dQ) and sum(key * dK) equal sum(score * dscore). The
/// gradients of a row's scores add up to 0, and so do those of the bias.
pub(super) fn check_gradients(
    problem: &Problem,
    tensors: &Tensors,
    output: &HostVec,
    (gradients, want): (&Gradients, &WantGradients),
) -> Result<(), String> {
    let d = &problem.dims;
    let wide = |gradient: &Option<HostVec>, name: &str| gradient.as_ref().map(HostVec::to_f32).ok_or_else(|| format!("{name} is missing"));
    let (query, key, value) = (wide(&gradients.query, "dQ")?, wide(&gradients.key, "dK")?, wide(&gradients.value, "dV")?);
    let error = problem.query.dtype.epsilon() + 2e-5;
    if let Some(shape) = problem.bias.filter(|_| want.bias) {
        let bias = gradients.bias.as_deref().filter(|bias| Some(bias.len()) == shape.elements()).ok_or("dBias is missing")?;
        let (all, size) = sum(bias.iter().map(|&x| f64::from(x)));
        if !(size > 0.0 && all.abs() <= error * size) {
            return Err(format!("dBias adds up to {all}, its magnitudes to {size}"));
        }
    }
    let is_close = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0).abs() <= error * (a.1 + b.1);
    // Sum, and sum of the magnitudes.
    fn sum(terms: impl Iterator<Item = f64>) -> (f64, f64) {
        terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
    }
    let intervals: Vec<bool> = problem.interval_lengths().map(|keys| keys > 0).collect();
    // A row that a term in WGSL or a length leaves without a key has the answer 0, which has been checked.
    let is_answered = |row: usize| (row * d.head_dim_v..(row + 1) * d.head_dim_v).any(|at| output.as_slice().get(at) != 0.0);
    let sees =
        |row: usize| intervals[row % d.seq_len_q] && (problem.user_terms.is_empty() && tensors.kv_lengths.is_empty() || is_answered(row));
    for kv_head in 0..d.batch * d.num_kv_heads {
        let rows = kv_head * d.group() * d.seq_len_q..(kv_head + 1) * d.group() * d.seq_len_q;
        let keys = kv_head * d.seq_len_kv..(kv_head + 1) * d.seq_len_kv;
        let dot = |tensor: &HostVec, gradient: &[f32], of: &std::ops::Range<usize>| {
            let elements = of.start * d.head_dim..of.end * d.head_dim;
            sum(elements.map(|at| f64::from(tensor.as_slice().get(at)) * f64::from(gradient[at])))
        };
        let (by_rows, by_keys) = (dot(&tensors.query, &query, &rows), dot(&tensors.key, &key, &keys));
        if !is_close(by_rows, by_keys) {
            return Err(format!("key head {kv_head}: query * dQ adds up to {}, key * dK to {}", by_rows.0, by_keys.0));
        }
        for e in 0..d.head_dim_v {
            // Rows without a visible key have no weights.
            let seeing = rows.clone().filter(|&row| sees(row));
            let outputs = sum(seeing.map(|row| f64::from(tensors.d_output.as_slice().get(row * d.head_dim_v + e))));
            let values = sum(keys.clone().map(|key| f64::from(value[key * d.head_dim_v + e])));
            if !is_close(outputs, values) {
                let why = format!("dV adds up to {}, the output's gradient to {}", values.0, outputs.0);
                return Err(format!("key head {kv_head}, column {e}: {why}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> (Problem, Tensors) {
        let problem = Problem::new(Dims { num_kv_heads: 2, ..Dims::self_attention(2, 4, 40, 8) }).aligned(Alignment::BottomRight).causal();
        let problem = Problem { bias: Some(BroadcastShape([2, 1, 40, 40])), ..problem };
        let tensors = tensors(&problem).expect("small");
        (problem, tensors)
    }

    #[test]
    fn wrong_gradients_are_not_timed() {
        let (problem, tensors) = case();
        let want = WantGradients { bias: true, ..Default::default() };
        let oracle = wgpu_attention::oracle::gradients(&problem, &tensors.inputs(), tensors.d_output.as_slice(), None);
        let right = oracle.expect("valid").into_gradients(&problem, &want);
        let output = HostVec::F32(Vec::new());
        assert_eq!(check_gradients(&problem, &tensors, &output, (&right, &want)), Ok(()));
        let scaled =
            |gradient: &Option<HostVec>, by: f32| gradient.as_ref().map(|g| HostVec::F32(g.to_f32().iter().map(|x| x * by).collect()));
        let spoils: [&dyn Fn(&mut Gradients); 7] = [
            &|wrong| wrong.query = scaled(&right.query, 0.99),
            &|wrong| wrong.key = scaled(&right.key, 1.01),
            &|wrong| wrong.value = scaled(&right.value, 0.5),
            &|wrong| wrong.value = None,
            &|wrong| wrong.bias = None,
            &|wrong| wrong.bias.as_mut().expect("asked for")[1] += 0.1,
            &|wrong| wrong.query = scaled(&right.query, f32::NAN),
        ];
        for spoil in spoils {
            let mut wrong = right.clone();
            spoil(&mut wrong);
            assert!(check_gradients(&problem, &tensors, &output, (&wrong, &want)).is_err());
        }
    }

    #[test]
    fn answers_are_measured_by_their_bound() {
        let (problem, tensors) = case();
        let oracle = wgpu_attention::oracle::attention(&problem, &tensors.inputs()).expect("valid");
        let right: Vec<f32> = oracle.output.iter().map(|&x| x as f32).collect();
        let of_bound =
            |output: Vec<f32>| deviation(&problem, &tensors, &HostVec::F32(output), &mut ProgressBar::new("")).expect("checked").of_bound;
        assert_eq!(of_bound(right.clone()), 0.0);
        let with = |wrong: f32| [&right[..7], &[wrong], &right[8..]].concat();
        assert!(of_bound(with(right[7] * 1.001 + 1e-4)) > 8.0);
        assert_eq!(of_bound(with(f32::NAN)), f64::INFINITY);
        // Twice the error is twice the share.
        let [once, twice] = [1.0, 2.0].map(|by| of_bound(with(right[7] + by * 5e-6)));
        assert!(once > 1.0 && once < 8.0 && (twice / once - 2.0).abs() < 0.1, "{once} {twice}");
        let mut swapped = right.clone();
        swapped.rotate_left(40 * 8);
        assert!(of_bound(swapped) > 8.0 && of_bound(vec![0.0; right.len()]) > 8.0);
    }
}
