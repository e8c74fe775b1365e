//! Inputs of benchmark problems, and checks of the answers.

use wgpu_attention::verify::{Expected, compare};
use wgpu_attention::{Alignment, DType, Dims, Gradients, HostVec, Inputs, Layout, Problem, Visibility};

use super::task::{bytes, shape_text};
use crate::failure::Failure;
use crate::random::Random;
use crate::terminal::ProgressBar;

/// Inputs of a problem, and the gradient of its output.
pub(crate) struct Tensors {
    pub(super) query: HostVec,
    pub(super) key: HostVec,
    pub(super) value: HostVec,
    /// Gradient of the output.
    pub(super) d_output: HostVec,
}

impl Tensors {
    pub(crate) fn inputs(&self) -> Inputs<'_> {
        Inputs::new(self.query.as_slice(), self.key.as_slice(), self.value.as_slice())
    }
}

/// Draws the tensors uniformly from [-1, 1) with a fixed seed.
pub(crate) fn tensors(problem: &Problem) -> Result<Tensors, Failure> {
    // Drawn as f32, then narrowed: both copies exist for a moment.
    let needed = 3.0 * bytes(problem) * 4.0 / problem.query.dtype.bytes(1) as f64;
    if let Some(free) = free_memory()
        && needed > free
    {
        return Err(Failure::input(format!(
            "--shape {}: needs about {:.1} GB of memory, {:.1} GB are free",
            shape_text(&problem.dims),
            needed / 1e9,
            free / 1e9
        )));
    }
    let mut random = Random::new(1);
    let mut tensor = |len: usize| {
        let mut numbers = Vec::new();
        numbers.try_reserve_exact(len).map_err(|_| Failure::input(format!("{}: does not fit in memory", shape_text(&problem.dims))))?;
        numbers.extend((0..len).map(|_| random.unit()));
        Ok::<_, Failure>(match problem.query.dtype {
            DType::F32 => HostVec::F32(numbers),
            other => HostVec::from_f32(other, &numbers),
        })
    };
    Ok(Tensors {
        query: tensor(problem.query_len())?,
        key: tensor(problem.key_len())?,
        value: tensor(problem.value_len())?,
        d_output: tensor(problem.output_len())?,
    })
}

/// Returns the available memory in bytes, if the system reports it.
fn free_memory() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

/// Maximum number of rows that are checked against the oracle.
const SAMPLED_ROWS: usize = 32;

/// Checks rows against the oracle, each as a problem of one query row: all, or the first, the last and random ones.
pub(super) fn check(problem: &Problem, tensors: &Tensors, output: &HostVec, progress: &mut ProgressBar) -> Result<(), String> {
    let d = &problem.dims;
    let rows = d.batch * d.num_heads * d.seq_len_q;
    let mut random = Random::new(2);
    let picked: Vec<usize> = if rows <= SAMPLED_ROWS {
        (0..rows).collect()
    } else {
        [0, rows - 1].into_iter().chain((2..SAMPLED_ROWS).map(|_| random.below(rows))).collect()
    };
    let count = picked.len();
    for (done, row) in picked.into_iter().enumerate() {
        progress.report(done as f64 / count as f64);
        let (head, i) = (row / d.seq_len_q, row % d.seq_len_q);
        let kv_head = head / d.num_heads * d.num_kv_heads + head % d.num_heads / d.group();
        let dims = Dims { batch: 1, num_heads: 1, num_kv_heads: 1, seq_len_q: 1, ..*d };
        let mut one = Problem { dims, ..*problem }.stored(DType::F32, Layout::Bhsd);
        one.output.dtype = problem.output.dtype;
        let position = i as i64 + Alignment::BottomRight.offset(d.seq_len_q, d.seq_len_kv);
        let aligned = Alignment::Offset(i32::try_from(position).map_err(|error| error.to_string())?);
        one.visibility = Visibility { alignment: problem.visibility.alignment.map(|_| aligned), ..problem.visibility };
        let part = |tensor: &HostVec, at: usize, len: usize| (at..at + len).map(|at| tensor.as_slice().get(at)).collect::<Vec<f32>>();
        let keys = d.seq_len_kv * d.head_dim;
        let query = part(&tensors.query, row * d.head_dim, d.head_dim);
        let (key, value) = (part(&tensors.key, kv_head * keys, keys), part(&tensors.value, kv_head * keys, keys));
        let expected = Expected::of(&one, &Inputs::new(&query, &key, &value)).map_err(|error| error.to_string())?.output;
        let got = part(output, row * d.head_dim, d.head_dim);
        compare(&expected.shape, &got, &expected.shape, &expected.values, &expected.tolerance)
            .map_err(|mismatch| format!("query {i} of head {head}, counted over the batch: {mismatch}"))?;
    }
    Ok(())
}

/// Checks identities that gradients satisfy in every head, whatever the shape. The rows of dV add up to those of the
/// output's gradient, because weights add up to 1. Both sum(query * dQ) and sum(key * dK) equal sum(score * dscore).
pub(super) fn check_gradients(problem: &Problem, tensors: &Tensors, gradients: &Gradients) -> Result<(), String> {
    let d = &problem.dims;
    let wide = |gradient: &Option<HostVec>, name: &str| gradient.as_ref().map(HostVec::to_f32).ok_or_else(|| format!("{name} is missing"));
    let (query, key, value) = (wide(&gradients.query, "dQ")?, wide(&gradients.key, "dK")?, wide(&gradients.value, "dV")?);
    let error = problem.query.dtype.epsilon() + 2e-5;
    let seen: Vec<usize> = problem.interval_lengths().collect();
    for kv_head in 0..d.batch * d.num_kv_heads {
        let rows = kv_head * d.group() * d.seq_len_q..(kv_head + 1) * d.group() * d.seq_len_q;
        let keys = kv_head * d.seq_len_kv..(kv_head + 1) * d.seq_len_kv;
        // Sum of the products, and sum of their magnitudes.
        let dot = |tensor: &HostVec, gradient: &[f32], of: &std::ops::Range<usize>| {
            let products =
                (of.start * d.head_dim..of.end * d.head_dim).map(|at| f64::from(tensor.as_slice().get(at)) * f64::from(gradient[at]));
            products.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
        };
        let ((by_rows, rows_size), (by_keys, keys_size)) = (dot(&tensors.query, &query, &rows), dot(&tensors.key, &key, &keys));
        let is_close = |a: f64, b: f64, size: f64| (a - b).abs() <= error * size;
        if !is_close(by_rows, by_keys, rows_size + keys_size) {
            return Err(format!("key head {kv_head}: query * dQ adds up to {by_rows}, key * dK to {by_keys}"));
        }
        for e in 0..d.head_dim_v {
            let sum = |numbers: &mut dyn Iterator<Item = f64>| numbers.fold((0.0, 0.0), |(sum, size), x: f64| (sum + x, size + x.abs()));
            // Rows without a visible key have no weights.
            let sees = |row: usize| seen[row % d.seq_len_q] > 0;
            let d_output = |row: usize| f64::from(tensors.d_output.as_slice().get(row * d.head_dim_v + e));
            let (outputs, outputs_size) = sum(&mut rows.clone().filter(|&row| sees(row)).map(d_output));
            let (values, values_size) = sum(&mut keys.clone().map(|key| f64::from(value[key * d.head_dim_v + e])));
            if !is_close(outputs, values, outputs_size + values_size) {
                return Err(format!("key head {kv_head}, column {e}: dV adds up to {values}, the output's gradient to {outputs}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_gradients_are_not_timed() {
        let problem = Problem::new(Dims { num_kv_heads: 2, ..Dims::self_attention(2, 4, 40, 8) }).aligned(Alignment::BottomRight).causal();
        let tensors = tensors(&problem).expect("small");
        let oracle = wgpu_attention::oracle::gradients(&problem, &tensors.inputs(), tensors.d_output.as_slice());
        let right = oracle.expect("valid").into_gradients(&problem, &Default::default());
        assert_eq!(check_gradients(&problem, &tensors, &right), Ok(()));
        let scaled = |gradient: &Option<HostVec>, by: f32| {
            gradient.as_ref().map(|gradient| HostVec::F32(gradient.to_f32().iter().map(|x| x * by).collect()))
        };
        let spoils: [&dyn Fn(&mut Gradients); 5] = [
            &|wrong| wrong.query = scaled(&right.query, 0.99),
            &|wrong| wrong.key = scaled(&right.key, 1.01),
            &|wrong| wrong.value = scaled(&right.value, 0.5),
            &|wrong| wrong.value = None,
            &|wrong| wrong.query = scaled(&right.query, f32::NAN),
        ];
        for spoil in spoils {
            let mut wrong = right.clone();
            spoil(&mut wrong);
            assert!(check_gradients(&problem, &tensors, &wrong).is_err());
        }
    }

    #[test]
    fn a_wrong_answer_is_not_timed() {
        let problem = Problem::new(Dims { num_kv_heads: 2, ..Dims::self_attention(2, 4, 40, 8) }).aligned(Alignment::BottomRight).causal();
        let tensors = tensors(&problem).expect("small");
        let mut progress = ProgressBar::new("");
        let oracle = wgpu_attention::oracle::attention(&problem, &tensors.inputs()).expect("valid");
        let right: Vec<f32> = oracle.output.iter().map(|&x| x as f32).collect();
        let mut verdict = |output: Vec<f32>| check(&problem, &tensors, &HostVec::F32(output), &mut progress);
        assert_eq!(verdict(right.clone()), Ok(()));
        for wrong in [right[7] * 1.001 + 1e-4, f32::NAN] {
            let mut output = right.clone();
            output[7] = wrong;
            assert!(verdict(output).is_err());
        }
        let head = 40 * 8;
        let mut swapped = right.clone();
        swapped.rotate_left(head);
        assert!(verdict(swapped).is_err());
        assert!(verdict(vec![0.0; right.len()]).is_err());
    }
}
