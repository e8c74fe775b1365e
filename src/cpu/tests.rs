//! Tests of the fast path against the oracle, with every instruction set that this machine supports.

use fastrand::Rng;

use super::naive::{self, Reference};
use super::simd::Isa;
use super::tiled::attention_on;
use crate::problem::Operand;
use crate::{
    Alibi, Alignment, BroadcastShape, DType, Dims, Error, HostSlice, HostVec, Inputs, Layout, Outputs, Paged, Problem, Progress,
    ScoreOrder, ScoreStage, Strides, TensorSpec, Varlen, gather,
};

/// Owned data for every input that a problem may have.
#[derive(Clone, Debug)]
struct Data {
    query: HostVec,
    key: HostVec,
    value: HostVec,
    mask: Vec<bool>,
    bias: Vec<f32>,
    slopes: Vec<f32>,
    relative: Vec<f32>,
    sinks: Vec<f32>,
    kv_lengths: Vec<u32>,
    prefixes: Vec<u32>,
    segment_ids_q: Vec<i32>,
    segment_ids_kv: Vec<i32>,
    cu_q: Vec<u32>,
    cu_kv: Vec<u32>,
    page_table: Vec<u32>,
}

/// Draws an operand in -1..1, with NaN in all places that its shape does not reach.
fn operand(problem: &Problem, operand: Operand, rng: &mut Rng) -> HostVec {
    let (spec, shape) = (problem.spec(operand), problem.shape(operand));
    let strides = spec.strides(shape);
    let mut data = vec![f32::NAN; problem.operand_len(operand)];
    for b in 0..shape[0] {
        for h in 0..shape[1] {
            for s in 0..shape[2] {
                for e in 0..shape[3] {
                    data[spec.offset + b * strides.batch + h * strides.head + s * strides.seq + e * strides.dim] = rng.f32() * 2.0 - 1.0;
                }
            }
        }
    }
    HostVec::from_f32(spec.dtype, &data)
}

impl Data {
    fn new(problem: &Problem, rng: &mut Rng) -> Self {
        let d = problem.dims;
        let v = problem.visibility;
        let when = |wanted: bool, len: usize| if wanted { len } else { 0 };
        let elements = |shape: Option<BroadcastShape>| shape.and_then(BroadcastShape::elements).unwrap_or(0);
        let mut cut = |tokens: usize, longest: usize| {
            let mut ends = vec![0u32];
            for item in 0..d.batch {
                let start = ends[item] as usize;
                let rest = tokens - start;
                let later = (d.batch - item - 1) * longest;
                ends.push((start + rng.usize(rest.saturating_sub(later)..=rest.min(longest))) as u32);
            }
            ends
        };
        let (cu_q, cu_kv) = match problem.varlen {
            Some(varlen) if problem.paged.is_some() => (cut(varlen.tokens_q, d.seq_len_q), Vec::new()),
            Some(varlen) => (cut(varlen.tokens_q, d.seq_len_q), cut(varlen.tokens_kv, d.seq_len_kv)),
            None => (Vec::new(), Vec::new()),
        };
        let pages = problem.paged.map_or(0, |paged| d.batch * paged.pages_per_item);
        let mut page_table: Vec<u32> = (0..pages as u32).collect();
        rng.shuffle(&mut page_table);
        Self {
            query: operand(problem, Operand::Query, rng),
            key: operand(problem, Operand::Key, rng),
            value: operand(problem, Operand::Value, rng),
            mask: (0..elements(v.mask)).map(|_| rng.u8(..) < 180).collect(),
            bias: (0..elements(problem.bias)).map(|_| if rng.u8(..) < 25 { f32::NEG_INFINITY } else { rng.f32() * 4.0 - 2.0 }).collect(),
            slopes: (0..when(problem.alibi.is_some(), d.num_heads)).map(|h| 0.5f32.powi(h as i32 + 1)).collect(),
            relative: (0..problem.relative_bias_max_distance.map_or(0, |max| d.num_heads * (2 * max as usize + 1)))
                .map(|_| rng.f32())
                .collect(),
            sinks: (0..when(problem.sinks, d.num_heads)).map(|_| rng.f32() * 4.0 - 2.0).collect(),
            kv_lengths: (0..when(v.kv_lengths, d.batch)).map(|_| rng.u32(0..=d.seq_len_kv as u32)).collect(),
            prefixes: (0..when(v.prefix_lengths, d.batch)).map(|_| rng.u32(0..=d.seq_len_kv as u32)).collect(),
            segment_ids_q: (0..when(v.segments, d.batch * d.seq_len_q)).map(|_| rng.i32(0..3)).collect(),
            segment_ids_kv: (0..when(v.segments, d.batch * d.seq_len_kv)).map(|_| rng.i32(0..3)).collect(),
            cu_q,
            cu_kv,
            page_table,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            mask: &self.mask,
            bias: &self.bias,
            alibi_slopes: &self.slopes,
            relative_bias: &self.relative,
            sinks: &self.sinks,
            kv_lengths: &self.kv_lengths,
            prefix_lengths: &self.prefixes,
            segment_ids_q: &self.segment_ids_q,
            segment_ids_kv: &self.segment_ids_kv,
            cu_seqlens_q: &self.cu_q,
            cu_seqlens_kv: &self.cu_kv,
            page_table: &self.page_table,
            ..Inputs::new(self.query.as_slice(), self.key.as_slice(), self.value.as_slice())
        }
    }

    /// Writes `x` to random places of the keys or of the values.
    fn poison(&mut self, rng: &mut Rng, x: f32) {
        let data = if rng.bool() { &mut self.key } else { &mut self.value };
        let (dtype, mut numbers) = (data.as_slice().dtype(), data.to_f32());
        for _ in 0..=numbers.len() / 64 {
            let at = rng.usize(..numbers.len());
            numbers[at] = x;
        }
        *data = HostVec::from_f32(dtype, &numbers);
    }
}

/// Error bound of an output, for queries, keys and values of magnitude up to 1.
///
/// A score sums head_dim rounded products to at most `scale * head_dim`, and its error is the weight's relative error.
/// The output is a mean of values up to 1, whose sum and running rescaling round once per key. Roundings are taken as
/// independent, with a safety factor of 4; the caller adds the output's own rounding.
fn tolerance(problem: &Problem) -> f64 {
    let d = &problem.dims;
    let eps = DType::F32.epsilon();
    let dim = d.head_dim as f64;
    let score = f64::from(problem.effective_scale().abs()) * dim + 8.0 * d.seq_len_kv as f64 * f64::from(u8::from(problem.alibi.is_some()));
    4.0 * eps * (score * dim.sqrt() + score + 4.0 + (d.seq_len_kv as f64).sqrt())
}

/// True if NaN meets NaN, infinity meets infinity, and anything else is within `tolerance`.
fn same(got: f32, want: f64, tolerance: f64) -> bool {
    if want.is_nan() { got.is_nan() } else { f64::from(got) == want || (f64::from(got) - want).abs() <= tolerance * want.abs().max(1.0) }
}

/// Describes the first element that differs from the oracle's.
fn difference(problem: &Problem, inputs: &Inputs<'_>, outputs: &Outputs, reference: &Reference) -> Option<String> {
    let d = problem.dims;
    let tolerance = tolerance(problem);
    let stored = problem.output.dtype.epsilon();
    let output = gather(outputs.output.as_slice(), &problem.output, problem.shape(Operand::Output));
    let tokens = problem.varlen.map_or(d.seq_len_q, |varlen| varlen.tokens_q);
    for b in 0..d.batch {
        let (first, rows, item) = match problem.varlen {
            Some(_) => (inputs.cu_seqlens_q[b] as usize, (inputs.cu_seqlens_q[b + 1] - inputs.cu_seqlens_q[b]) as usize, 0),
            None => (0, d.seq_len_q, b),
        };
        for h in 0..d.num_heads {
            for i in 0..rows {
                let row = (b * d.num_heads + h) * d.seq_len_q + i;
                for e in 0..d.head_dim_v {
                    let got = output[((item * d.num_heads + h) * tokens + first + i) * d.head_dim_v + e];
                    let want = reference.output[row * d.head_dim_v + e];
                    if !same(got, want, tolerance + stored) {
                        return Some(format!("output[{b}, {h}, {i}, {e}] is {got}, not {want} (+- {:e})", tolerance + stored));
                    }
                }
                if let Some(lse) = &outputs.lse {
                    let got = lse[if problem.varlen.is_some() { (first + i) * d.num_heads + h } else { row }];
                    if !same(got, reference.lse[row], tolerance) {
                        return Some(format!("lse[{b}, {h}, {i}] is {got}, not {}", reference.lse[row]));
                    }
                }
            }
        }
    }
    let scores = match problem.want.scores {
        Some(ScoreStage::Raw) => &reference.raw,
        Some(ScoreStage::Capped) => &reference.capped,
        _ => &reference.masked,
    };
    for (name, got, want) in [("scores", &outputs.scores, scores), ("weights", &outputs.weights, &reference.weights)] {
        let Some(got) = got else { continue };
        if let Some(at) = (0..want.len()).find(|&at| !same(got[at], want[at], tolerance)) {
            return Some(format!("{name}[{at}] is {}, not {}", got[at], want[at]));
        }
    }
    None
}

/// Compares the fast path with the oracle, for every instruction set.
fn compare(problem: &Problem, data: &Data) {
    let inputs = data.inputs();
    let reference = naive::attention(problem, &inputs).unwrap_or_else(|error| panic!("{error}: {problem:?}"));
    for isa in Isa::available() {
        let outputs = attention_on(isa, problem, &inputs, &mut Progress::default()).unwrap_or_else(|error| panic!("{error}: {problem:?}"));
        if let Some(difference) = difference(problem, &inputs, &outputs, &reference) {
            panic!("{isa:?}: {difference}\n{problem:#?}");
        }
    }
}

fn check(problem: Problem) {
    compare(&problem, &Data::new(&problem, &mut Rng::with_seed(7)));
}

const WIDE: Dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 70, seq_len_kv: 150, head_dim: 20, head_dim_v: 24 };

#[test]
fn lengths() {
    for seq_len_q in [0, 1, 2, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257] {
        for seq_len_kv in [0, 1, 3, 13, 63, 64, 65, 127, 128, 129, 257] {
            let dims = Dims { seq_len_q, seq_len_kv, ..Dims::self_attention(1, 2, 0, 16) };
            check(Problem::new(dims).with_lse());
            check(Problem::new(dims).with_lse().aligned(Alignment::BottomRight).causal());
        }
    }
}

#[test]
fn head_dims() {
    for head_dim in [1, 2, 3, 5, 8, 16, 31, 40, 64, 65, 80, 96, 128, 192, 256, 576] {
        check(Problem::new(Dims { seq_len_q: 19, ..Dims::self_attention(1, 1, 140, head_dim) }).with_lse());
        check(Problem::new(Dims { seq_len_q: 3, head_dim_v: 7, ..Dims::self_attention(1, 1, 40, head_dim) }));
        check(Problem::new(Dims { seq_len_q: 1, head_dim: 7, ..Dims::self_attention(2, 2, 40, head_dim) }));
    }
}

#[test]
fn grouped_heads_and_split_keys() {
    for (num_heads, num_kv_heads) in [(1, 1), (4, 4), (4, 2), (6, 2), (8, 1), (5, 1), (32, 8)] {
        for seq_len_q in [1, 2, 4, 9] {
            let dims = Dims { num_kv_heads, seq_len_q, ..Dims::self_attention(2, num_heads, 1030, 12) };
            check(Problem { sinks: true, ..Problem::new(dims).with_lse().aligned(Alignment::BottomRight).causal() });
        }
    }
    check(Problem::new(Dims { seq_len_q: 1, ..Dims::self_attention(1, 1, 5000, 64) }).with_lse());
}

/// Answers are right in a pool of any size; with many threads the keys are split.
#[test]
fn threads() {
    let decode = Dims { seq_len_q: 3, num_kv_heads: 1, ..Dims::self_attention(1, 4, 9000, 64) };
    let few = Dims { seq_len_q: 20, ..Dims::self_attention(1, 1, 9000, 32) };
    for threads in [1, 2, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started");
        pool.install(|| {
            for dims in [decode, few, Dims::self_attention(2, 3, 300, 64)] {
                let problem = Problem { sinks: true, ..Problem::new(dims).with_lse() };
                check(problem);
                let mut problem = problem.aligned(Alignment::BottomRight).causal();
                problem.visibility.window_left = Some(7000);
                let rng = &mut Rng::with_seed(5);
                let mut data = Data::new(&problem, rng);
                data.poison(rng, f32::NAN);
                compare(&problem, &data);
            }
        });
    }
}

#[test]
fn biases_and_caps() {
    let plain = Problem::new(WIDE).with_lse();
    for score_order in [ScoreOrder::SoftcapThenBias, ScoreOrder::BiasThenSoftcap] {
        for softcap in [None, Some(0.7), Some(50.0)] {
            let problem = Problem { softcap, score_order, ..plain };
            check(problem);
            for shape in [[2, 4, 70, 150], [1, 4, 1, 150], [2, 1, 70, 1], [1, 1, 1, 1]] {
                check(Problem { bias: Some(BroadcastShape(shape)), ..problem });
            }
            let placed = problem.aligned(Alignment::BottomRight).window(None, None);
            check(Problem { alibi: Some(Alibi::Signed), ..placed });
            check(Problem { alibi: Some(Alibi::Symmetric), relative_bias_max_distance: Some(9), sinks: true, ..placed });
        }
    }
    check(Problem { scale: Some(-3.0), ..plain });
    check(Problem { scale: Some(0.0), ..plain });
}

#[test]
fn hidden_pairs() {
    for alignment in [Alignment::TopLeft, Alignment::BottomRight, Alignment::Offset(-40), Alignment::Offset(200)] {
        let mut problem = Problem::new(WIDE).with_lse().aligned(alignment).causal();
        check(problem);
        problem.visibility.prefix_lengths = true;
        check(problem);
        problem.visibility.kv_lengths = true;
        check(problem);
        problem.visibility.segments = true;
        problem.visibility.mask = Some(BroadcastShape([2, 1, 70, 150]));
        check(problem);
        for (left, right) in [(Some(0), Some(0)), (Some(10), None), (None, Some(3)), (Some(33), Some(20))] {
            check(Problem::new(WIDE).with_lse().aligned(alignment).window(left, right));
        }
    }
}

#[test]
fn storage_and_layout() {
    for dtype in DType::FLOATS {
        for layout in [Layout::Bhsd, Layout::Bshd, Layout::Strided(Strides { batch: 40_000, head: 65, seq: 260, dim: 3 })] {
            let mut problem = Problem::new(Dims { num_kv_heads: 4, head_dim: 20, head_dim_v: 20, ..WIDE }).stored(dtype, layout);
            check(problem);
            problem.query.offset = 3;
            problem.key.offset = 5;
            problem.output.offset = 7;
            problem.key.dtype = DType::F16;
            problem.output.dtype = DType::BF16;
            check(problem);
        }
    }
}

#[test]
fn scores_and_weights() {
    for stage in [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Masked] {
        for score_order in [ScoreOrder::SoftcapThenBias, ScoreOrder::BiasThenSoftcap] {
            let mut problem =
                Problem { bias: Some(BroadcastShape([1, 4, 70, 150])), softcap: Some(1.5), score_order, ..Problem::new(WIDE) };
            problem.want.scores = Some(stage);
            problem.want.weights = true;
            problem.sinks = true;
            check(problem);
            check(Problem { bias: None, ..problem.aligned(Alignment::BottomRight).causal() });
        }
    }
}

/// The lowest finite bias masks nothing: where every key has it, the softmax is uniform.
#[test]
fn lowest_finite_bias() {
    let problem =
        Problem { bias: Some(BroadcastShape([1, 1, 3, 8])), ..Problem::new(Dims { seq_len_q: 3, ..Dims::self_attention(1, 1, 8, 4) }) };
    let mut data = Data::new(&problem, &mut Rng::with_seed(1));
    data.bias.fill(f32::MIN);
    compare(&problem, &data);
    data.bias[5] = 0.0;
    data.bias[8..].fill(f32::NEG_INFINITY);
    compare(&problem, &data);
}

/// A visible score of -inf has weight 0, alone or among others; a score of +inf makes its row NaN.
#[test]
fn infinite_scores() {
    let problem = Problem::new(Dims { seq_len_q: 20, ..Dims::self_attention(1, 1, 40, 1) }).with_lse();
    for x in [f32::NEG_INFINITY, f32::INFINITY, f32::NAN] {
        let mut data = Data::new(&problem, &mut Rng::with_seed(1));
        data.query = HostVec::F32((0..20).map(|i| if i % 2 == 0 { 0.5 } else { -0.25 }).collect());
        data.key = HostVec::F32((0..40).map(|j| if j == 17 { x } else { 0.1 }).collect());
        compare(&problem, &data);
        data.key = HostVec::F32(vec![x; 40]);
        compare(&problem, &data);
    }
}

/// Draws a small problem with any combination of options, often with NaN or infinity somewhere.
fn random(rng: &mut Rng) -> (Problem, Data) {
    let num_kv_heads = rng.usize(1..=3);
    let dims = Dims {
        batch: rng.usize(1..=3),
        num_heads: num_kv_heads * rng.usize(1..=3),
        num_kv_heads,
        seq_len_q: if rng.bool() { rng.usize(0..=4) } else { rng.usize(0..=80) },
        seq_len_kv: rng.usize(0..=150),
        head_dim: rng.usize(1..=24),
        head_dim_v: rng.usize(1..=24),
    };
    let mut problem = Problem::new(dims);
    let full = dims.scores_shape();
    let shape = |rng: &mut Rng| BroadcastShape(full.map(|extent| if rng.bool() { extent } else { 1 }));
    let maybe = |rng: &mut Rng| rng.u8(..) < 80;
    problem.softcap = maybe(rng).then(|| rng.f32() * 5.0 + 0.1);
    problem.score_order = if rng.bool() { ScoreOrder::SoftcapThenBias } else { ScoreOrder::BiasThenSoftcap };
    let alignments = [Alignment::TopLeft, Alignment::BottomRight, Alignment::Offset(rng.i32(-50..50))];
    let v = &mut problem.visibility;
    v.alignment = Some(alignments[rng.usize(..3)]);
    v.causal = maybe(rng);
    v.window_left = maybe(rng).then(|| rng.u32(0..40));
    v.window_right = maybe(rng).then(|| rng.u32(0..40));
    v.prefix_lengths = v.causal && maybe(rng);
    v.mask = maybe(rng).then(|| shape(rng));
    problem.bias = maybe(rng).then(|| shape(rng));
    problem.alibi = maybe(rng).then(|| if rng.bool() { Alibi::Signed } else { Alibi::Symmetric });
    problem.relative_bias_max_distance = maybe(rng).then(|| rng.u32(0..20));
    problem.sinks = maybe(rng);
    if maybe(rng) {
        let tokens = |rng: &mut Rng, longest: usize| longest + rng.usize(0..=(dims.batch - 1) * longest);
        problem.varlen = Some(Varlen { tokens_q: tokens(rng, dims.seq_len_q), tokens_kv: tokens(rng, dims.seq_len_kv) });
    } else {
        problem.visibility.kv_lengths = maybe(rng);
        problem.visibility.segments = maybe(rng);
    }
    if maybe(rng) && !problem.visibility.segments {
        let page_size = rng.usize(1..=80);
        let pages_per_item = dims.seq_len_kv.div_ceil(page_size);
        problem.paged = Some(Paged { page_size, pages: dims.batch * pages_per_item, pages_per_item });
        problem.visibility.kv_lengths = true;
        problem.varlen = problem.varlen.map(|varlen| Varlen { tokens_kv: 0, ..varlen });
    }
    let spec = |rng: &mut Rng, shape: [usize; 4]| {
        let dim = rng.usize(1..=2);
        let seq = dim * shape[3] + rng.usize(0..3);
        let head = seq * shape[2].max(1) + rng.usize(0..3);
        let layouts = [Layout::Bhsd, Layout::Bshd, Layout::Strided(Strides { batch: head * shape[1], head, seq, dim })];
        TensorSpec { dtype: DType::FLOATS[rng.usize(..3)], layout: layouts[rng.usize(..3)], offset: rng.usize(0..4) }
    };
    problem.query = spec(rng, problem.shape(Operand::Query));
    problem.key = spec(rng, problem.shape(Operand::Key));
    problem.value = spec(rng, problem.shape(Operand::Value));
    problem.output = spec(rng, problem.shape(Operand::Output));
    problem.want.lse = rng.bool();
    problem.want.scores = maybe(rng).then(|| [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Masked][rng.usize(..3)]);
    problem.want.weights = maybe(rng);
    let mut data = Data::new(&problem, rng);
    if rng.bool() && dims.seq_len_kv > 0 {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][rng.usize(..3)];
        data.poison(rng, x);
    }
    (problem, data)
}

#[test]
fn random_problems() {
    for seed in 0..3000 {
        let (problem, data) = random(&mut Rng::with_seed(seed));
        compare(&problem, &data);
    }
}

/// Test of the comparison itself: a wrong element, a NaN, zeros and swapped heads must not pass.
#[test]
fn comparison_finds_errors() {
    let problem = Problem::new(Dims::self_attention(1, 2, 9, 8)).with_lse();
    let data = Data::new(&problem, &mut Rng::with_seed(3));
    let inputs = data.inputs();
    let reference = naive::attention(&problem, &inputs).expect("the problem is valid");
    let right = attention_on(Isa::best(), &problem, &inputs, &mut Progress::default()).expect("the problem is valid");
    let output = right.output.to_f32();
    let found = |output: Vec<f32>| {
        let wrong = Outputs { output: HostVec::F32(output), ..right.clone() };
        difference(&problem, &inputs, &wrong, &reference).is_some()
    };
    let with = |at: usize, x: f32| output.iter().enumerate().map(|(i, &y)| if i == at { x } else { y }).collect::<Vec<_>>();
    assert!(!found(output.clone()));
    assert!(found(with(20, output[20] + 3.0 * (tolerance(&problem) + DType::F32.epsilon()) as f32)));
    assert!(found(with(143, f32::NAN)));
    assert!(found(vec![0.0; 144]));
    assert!(found([&output[72..], &output[..72]].concat()));
}

#[test]
fn progress_and_cancellation() {
    use std::ops::ControlFlow;
    let problem = Problem::new(Dims::self_attention(1, 8, 300, 16));
    let data = Data::new(&problem, &mut Rng::with_seed(3));
    let mut seen = Vec::new();
    let mut watch = |done: f64| {
        seen.push(done);
        ControlFlow::Continue(())
    };
    attention_on(Isa::best(), &problem, &data.inputs(), &mut Progress::new(&mut watch)).expect("the problem is valid");
    assert!(seen.is_sorted() && seen.len() > 2 && seen.last() == Some(&1.0), "{seen:?}");
    let mut stop = |_| ControlFlow::Break(());
    let stopped = attention_on(Isa::best(), &problem, &data.inputs(), &mut Progress::new(&mut stop));
    assert_eq!(stopped, Err(Error::Cancelled));
}

#[test]
fn bad_input_is_refused() {
    let problem = Problem::new(Dims::self_attention(1, 1, 4, 4));
    let short = [0.0f32; 3];
    let slice = HostSlice::from(&short[..]);
    assert!(attention_on(Isa::best(), &problem, &Inputs::new(slice, slice, slice), &mut Progress::default()).is_err());
}
