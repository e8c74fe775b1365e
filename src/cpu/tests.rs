//! Tests of the fast path against the oracle, with every instruction set that this machine supports. Problems, data and
//! tolerances are those of [`crate::verify`], whose own tests show that its comparison finds errors.

use std::ops::ControlFlow;

use rayon::ThreadPoolBuilder;

use super::kernel::Isa;
use super::{backward, tiled::attention_on};
use crate::custom::Term;
use crate::error::{Error, Result};
use crate::numbers::{DType, HostSlice, HostVec, Random};
use crate::problem::{Alibi, Alignment, BroadcastShape, Dims, Inputs, Layout, Outputs, Problem, ScoreOrder, ScoreStage, Strides};
use crate::progress::Progress;
use crate::verify::{
    Candidate, Case, Data, Expected, ExpectedGradients, Extreme, Fill, Row, Verdict, check_against, check_backward_against, random,
    random_large_of, run_generated,
};

/// Fill that poisons nothing, for data that a test changes.
const PLAIN: Fill = Fill { poison: false, ..Fill::seed(7) };

const WIDE: Dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 70, seq_len_kv: 150, head_dim: 20, head_dim_v: 24 };

/// Fast path on an instruction set.
fn on(isa: Isa) -> impl Fn(&Problem, &Inputs<'_>) -> Result<Outputs> {
    move |problem, inputs| {
        let mut outputs = Outputs::default();
        attention_on(isa, problem, inputs, &mut outputs, &mut Progress::default()).map(|()| outputs)
    }
}

fn case(problem: Problem, fill: Fill) -> Case {
    Case::new("targeted", problem, fill).expect("the problem is valid")
}

/// Compares all outputs on every instruction set.
fn compare(case: &Case) {
    let expected = Expected::of(&case.problem, &case.data.inputs()).expect("the problem is valid");
    for isa in Isa::available() {
        let verdict = check_against(case, &expected, &on(isa));
        assert!(verdict == Verdict::Passed, "{} on {isa:?} {verdict}\n{:#?}\n{:?}", case.name, case.problem, case.fill);
    }
}

fn check(problem: Problem) {
    compare(&case(problem, Fill::seed(7)));
}

#[test]
fn lengths() {
    for seq_len_q in [0, 1, 2, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257] {
        for seq_len_kv in [0, 1, 3, 13, 63, 64, 65, 127, 128, 129, 257] {
            let problem = Problem::new(Dims { seq_len_q, seq_len_kv, ..Dims::self_attention(1, 2, 0, 16) }).with_lse().with_stats();
            [problem.clone(), problem.aligned(Alignment::BottomRight).causal()].into_iter().for_each(check);
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
            check(Problem::new(dims).aligned(Alignment::BottomRight).causal().sinks().with_lse().with_stats());
        }
    }
    check(Problem::new(Dims { seq_len_q: 1, ..Dims::self_attention(1, 1, 5000, 64) }).with_lse());
}

/// Answers are right in a pool of any size; with many threads the keys are split.
#[test]
fn threads() {
    let decode = Dims { seq_len_q: 3, num_kv_heads: 1, ..Dims::self_attention(1, 4, 9000, 64) };
    let few = Dims { seq_len_q: 20, ..Dims::self_attention(1, 1, 9000, 32) };
    let pools = [1, 2, 8].map(|threads| ThreadPoolBuilder::new().num_threads(threads).build().expect("threads can be started"));
    let compare_in_pools = |case: &Case| pools.iter().for_each(|pool| pool.install(|| compare(case)));
    for dims in [decode, few, Dims::self_attention(2, 3, 300, 64)] {
        let problem = Problem::new(dims).sinks().with_lse().with_stats();
        compare_in_pools(&case(problem.clone(), PLAIN));
        let problem = problem.aligned(Alignment::BottomRight).causal().window(Some(7000), None);
        // Keys outside the window are poisoned. In the first problem, one NaN is in a visible value, key or query.
        for (nan, seed) in [(false, 7), (true, 5), (true, 9), (true, 12)] {
            compare_in_pools(&case(problem.clone(), Fill { nan, ..Fill::seed(seed) }));
        }
    }
}

#[test]
fn biases_and_caps() {
    let plain = Problem::new(WIDE).with_lse();
    for score_order in [ScoreOrder::SoftcapThenBias, ScoreOrder::BiasThenSoftcap] {
        for softcap in [None, Some(0.7), Some(50.0)] {
            let problem = Problem { softcap, score_order, ..plain.clone() };
            check(problem.clone());
            for shape in [[2, 4, 70, 150], [1, 4, 1, 150], [2, 1, 70, 1], [1, 1, 1, 1]] {
                check(problem.clone().bias(BroadcastShape(shape)));
            }
            let placed = problem.aligned(Alignment::BottomRight);
            check(placed.clone().alibi(Alibi::Signed));
            check(placed.alibi(Alibi::Symmetric).relative_bias(9).sinks());
        }
    }
    check(plain.clone().scale(-3.0));
    check(plain.scale(0.0));
}

#[test]
fn masked_pairs() {
    for alignment in [Alignment::TopLeft, Alignment::BottomRight, Alignment::Offset(-40), Alignment::Offset(200)] {
        let plain = Problem::new(WIDE).with_lse().aligned(alignment);
        let padded = plain.clone().causal().prefix_lengths().kv_lengths();
        let problem = padded.clone().segments().mask(BroadcastShape([2, 1, 70, 150]));
        [plain.clone().causal(), plain.clone().causal().prefix_lengths(), padded, problem.clone()].into_iter().for_each(check);
        // Segments in any order, as no layout of sequences has them.
        let (mut unordered, mut random) = (case(problem, PLAIN), Random::new(7));
        let Data { segment_ids_q, segment_ids_kv, .. } = &mut unordered.data;
        segment_ids_q.iter_mut().chain(segment_ids_kv).for_each(|id| *id = random.below(3) as i32);
        compare(&unordered);
        for (left, right) in [(Some(0), Some(0)), (Some(10), None), (None, Some(3)), (Some(33), Some(20))] {
            check(plain.clone().window(left, right));
        }
    }
}

#[test]
fn storage_and_layout() {
    for dtype in DType::FLOATS {
        for layout in [Layout::Bhsd, Layout::Bshd, Layout::Strided(Strides { batch: 40_000, head: 65, seq: 260, dim: 3 })] {
            let mut problem = Problem::new(Dims { num_kv_heads: 4, head_dim_v: 20, ..WIDE }).with_lse().stored(dtype, layout);
            check(problem.clone());
            (problem.query.offset, problem.key.offset, problem.output.offset) = (3, 5, 7);
            (problem.key.dtype, problem.output.dtype) = (DType::F16, DType::BF16);
            check(problem);
        }
    }
}

#[test]
fn scores_and_weights() {
    for stage in [ScoreStage::Raw, ScoreStage::Capped, ScoreStage::Masked] {
        for score_order in [ScoreOrder::SoftcapThenBias, ScoreOrder::BiasThenSoftcap] {
            let problem = Problem { score_order, ..Problem::new(WIDE).softcap(1.5).sinks().with_scores(stage).with_weights() };
            check(problem.clone().bias(BroadcastShape([1, 4, 70, 150])));
            check(problem.aligned(Alignment::BottomRight).causal());
        }
    }
}

/// Elements that matrix products cannot take, beside others that they can: in one key, one query, one value, or all.
#[test]
fn elements_out_of_range() {
    let dims = Dims { seq_len_q: 150, seq_len_kv: 300, num_kv_heads: 1, ..Dims::self_attention(1, 2, 0, 33) };
    for (dtype, x) in [DType::F32, DType::BF16].into_iter().flat_map(|dtype| [1e-30, 3e25, 1e-39].map(|x| (dtype, x))) {
        let problem = Problem::new(dims).stored(dtype, Layout::Bhsd).with_lse().with_weights();
        for operand in 0..3 {
            for at in [0, 140 * 33 + 5] {
                let mut case = case(problem.clone(), PLAIN);
                let Data { query, key, value, .. } = &mut case.data;
                let data = [query, key, value].into_iter().nth(operand).expect("three operands");
                let mut elements = data.to_f32();
                // A large element would decide the softmax by itself.
                elements[at] = if operand == 2 { x } else { x.min(1.0) };
                *data = HostVec::from_f32(dtype, &elements);
                compare(&case);
            }
        }
        compare(&case(problem, Fill { extreme: Extreme::Values(x), ..PLAIN }));
    }
}

/// Weights rounded to bf16 change the answers of matrix products, within the bound, and only for bf16 values.
#[test]
fn weights_rounded_to_bf16() {
    for dtype in DType::FLOATS {
        let problem =
            Problem { scale: Some(0.3), ..Problem::new(WIDE) }.stored(dtype, Layout::Bhsd).aligned(Alignment::BottomRight).causal();
        let [plain, rounded] = [problem.clone(), problem.allow_bf16_weights()].map(|problem| case(problem, PLAIN));
        compare(&plain);
        compare(&rounded);
        for isa in Isa::available() {
            let [plain, rounded] = [&plain, &rounded].map(|case| on(isa)(&case.problem, &case.data.inputs()).expect("valid"));
            let differs = plain.output != rounded.output;
            assert_eq!(differs, isa.engine().is_some() && dtype == DType::BF16, "{isa:?} {dtype}");
        }
    }
}

/// Scores that grow with the key, by little or from nothing to thousands: steps of the softmax are loose, or must not be.
#[test]
fn growing_scores() {
    let dims = Dims { seq_len_q: 70, seq_len_kv: 700, ..Dims::self_attention(1, 1, 0, 16) };
    for (dtype, growth) in DType::FLOATS.into_iter().flat_map(|dtype| [1e-3f32, 0.02, 0.3, -0.3, 3.0].map(|growth| (dtype, growth))) {
        for scale in [0.25, -0.3] {
            let problem = Problem { scale: Some(scale), ..Problem::new(dims) }.stored(dtype, Layout::Bhsd);
            for problem in [problem.clone().allow_bf16_weights(), problem.clone(), problem.with_lse()] {
                let mut case = case(problem, PLAIN);
                let mut key = case.data.key.to_f32();
                for (j, row) in key.chunks_exact_mut(16).enumerate() {
                    row.iter_mut().for_each(|x| *x *= 1.0 + growth.abs() * if growth < 0.0 { 700 - j } else { j } as f32);
                }
                case.data.key = HostVec::from_f32(dtype, &key);
                compare(&case);
            }
        }
    }
}

/// Instruction sets have names of their own, and tests alone use the twin of the tiles.
#[test]
fn instruction_sets() {
    let all: Vec<Isa> = Isa::available().collect();
    let mut names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all.len());
    assert!(all.len() > 1 && all[0] == Isa::Twin && all[all.len() - 1] != Isa::Twin);
}

/// Lowest finite bias, which masks nothing: where every key has it, the softmax is uniform.
#[test]
fn lowest_finite_bias() {
    let dims = Dims { seq_len_q: 3, ..Dims::self_attention(1, 1, 8, 4) };
    let mut case = case(Problem::new(dims).bias(BroadcastShape([1, 1, 3, 8])), PLAIN);
    case.data.bias.fill(f32::MIN);
    compare(&case);
    case.data.bias[5] = 0.0;
    case.data.bias[8..].fill(f32::NEG_INFINITY);
    // One key has all the weight in the first row, none has any in the others. Tolerances are too wide for such scores.
    let right = [&case.data.value.to_f32()[5 * 4..6 * 4], &[0.0; 8]].concat();
    for isa in Isa::available() {
        assert_eq!(on(isa)(&case.problem, &case.data.inputs()).map(|outputs| outputs.output), Ok(HostVec::F32(right.clone())), "{isa:?}");
    }
}

/// A visible score of -inf has weight 0, alone or among others; a score of +inf makes its row NaN, unless it is capped.
#[test]
fn infinite_scores() {
    let problem = Problem::new(Dims { seq_len_q: 20, ..Dims::self_attention(1, 1, 40, 1) }).with_lse();
    for (x, softcap) in [f32::NEG_INFINITY, f32::INFINITY, f32::NAN].into_iter().flat_map(|x| [(x, None), (x, Some(2.0))]) {
        for mut key in [vec![0.1; 40], vec![x; 40]] {
            key[17] = x;
            let mut case = case(Problem { softcap, ..problem.clone() }, PLAIN);
            (case.data.query, case.data.key) = (HostVec::F32([0.5, -0.25].repeat(10)), HostVec::F32(key));
            compare(&case);
        }
    }
}

/// Fixed table and random problems; a failing one is shrunk.
#[test]
fn table_and_random_problems() {
    let all: Vec<_> = Isa::available().map(|isa| (format!("{isa:?}"), on(isa))).collect();
    let candidates: Vec<_> = all.iter().map(|(name, attend)| Candidate { name, attend, engine: None }).collect();
    let rows = run_generated(&candidates, 0, 3000, "", &mut Progress::default()).expect("every problem is valid");
    // A score may be smooth nowhere, as far as differences tell.
    let is_left_out = |row: &Row| row.suite == "derivatives" && matches!(row.verdict, Verdict::Skipped(_));
    let failed: Vec<_> = rows.iter().filter(|row| row.verdict != Verdict::Passed && !is_left_out(row)).collect();
    assert!(failed.is_empty() && rows.len() > 3000 * all.len(), "{failed:#?}");
}

/// Random problems of any size, as drawn and then with NaN or infinity in keys or values, visible or not.
#[test]
fn random_problems_with_nan_and_infinity() {
    for seed in 3000..5000 {
        let drawn = if seed % 4 == 0 { random_large_of(seed, seed) } else { random(seed) }.expect("every problem is valid");
        compare(&drawn);
        // Scores are small, because a weight that f32 flushes to 0 makes NaN of what is infinite in the oracle.
        let mut problem = drawn.problem;
        if problem.dims.seq_len_kv > 100 {
            problem.alibi = None;
            problem.user_terms.clear();
        }
        let mut case = case(problem, Fill { amplitude: 0.5, nan: false, extreme: Extreme::Nothing, ..drawn.fill });
        let mut random = Random::new(seed);
        let x = random.pick(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
        let data = if random.one_in(2) { &mut case.data.key } else { &mut case.data.value };
        let (dtype, mut numbers) = (data.as_slice().dtype(), data.to_f32());
        for _ in 0..=random.below(numbers.len() / 64 + 1) {
            let at = random.below(numbers.len());
            numbers[at..].iter_mut().take(1).for_each(|number| *number = x);
        }
        *data = HostVec::from_f32(dtype, &numbers);
        compare(&case);
    }
}

/// Gradients of random problems.
#[test]
fn gradients() {
    for seed in 5000..5300 {
        let case = random(seed).expect("every problem is valid");
        let expected = ExpectedGradients::of(&case).expect("the problem is valid");
        for isa in Isa::available() {
            let verdict = check_backward_against(&case, &expected, &|problem, inputs, backward, want| {
                backward::attention_on(isa, problem, inputs, backward, want, &mut Progress::default())
            });
            assert!(!matches!(verdict, Verdict::Failed(_)), "seed {seed} on {isa:?} {verdict}");
        }
    }
}

fn term(visible: &str, score: &str) -> Term {
    Term::wgsl(&format!("fn visible(at: Pair) -> bool {{ return {visible}; }}\nfn score(x: f32, at: Pair) -> f32 {{ return {score}; }}"))
        .expect("valid")
}

/// Users' terms in tiles of all shapes: operations of rows, of keys, of both and of neither, and as results.
#[test]
fn users_terms() {
    let of_rows = "x + exp(-0.1 * f32(at.row)) + f32(at.head)";
    let of_pairs = "x * tanh(0.1 * f32(at.position - at.key)) + f32(at.key % 7) * f32(at.row % 3) * 0.1";
    let terms = [
        term("at.key % 5 != at.row % 3", of_rows),
        term("at.row % 4 != 1", "3.0 * tanh(x / 3.0)"),
        term("at.key / 100 % 2 == 0", of_pairs),
        term("at.len_kv > 9", "f32(at.key) * 0.01"),
        term("at.key <= at.position && at.position - at.key < 100 * (at.head + 1)", "f32(at.head - at.kv_head)"),
    ];
    let of = |seq_len_q, seq_len_kv, num_heads, num_kv_heads| Dims {
        num_kv_heads,
        seq_len_q,
        ..Dims { seq_len_kv, ..Dims::self_attention(1, num_heads, 0, 4) }
    };
    for dims in [of(1, 1300, 4, 2), of(3, 150, 2, 2), of(21, 150, 6, 2), of(130, 140, 2, 1)] {
        for (index, first) in terms.iter().enumerate() {
            let problem = Problem::new(dims).aligned(Alignment::BottomRight).with_lse().with_term(first.clone());
            let second = terms[(index + 1) % terms.len()].clone();
            for problem in [problem.clone(), problem.with_term(second)] {
                let case = case(problem, PLAIN);
                compare(&case);
                let expected = ExpectedGradients::of(&case).expect("the problem is valid");
                for isa in Isa::available() {
                    let verdict = check_backward_against(&case, &expected, &|problem, inputs, backward, want| {
                        backward::attention_on(isa, problem, inputs, backward, want, &mut Progress::default())
                    });
                    assert!(!matches!(verdict, Verdict::Failed(_)), "term {index} on {isa:?} {verdict}");
                }
            }
        }
    }
}

/// Skipping changes no bit: intervals do not follow the floats of the second mask.
#[test]
fn skipped_tiles_of_users() {
    let plain = Problem::new(Dims::self_attention(1, 2, 700, 16)).aligned(Alignment::BottomRight).with_lse();
    let masks = [
        ["at.key <= at.position", "f32(at.key) <= f32(at.position)"],
        ["abs(at.position - at.key) < 90", "abs(f32(at.position) - f32(at.key)) < 90.0"],
    ];
    for rows in [700, 2] {
        for masks in masks {
            let [followed, other] = masks.map(|mask| {
                let mut problem = plain.clone().with_term(term(mask, "x * 0.5"));
                problem.dims.seq_len_q = rows;
                let case = case(problem, PLAIN);
                on(Isa::best())(&case.problem, &case.data.inputs()).expect("the problem is valid")
            });
            assert_eq!(followed.output, other.output, "{masks:?}");
            assert_eq!(followed.lse, other.lse, "{masks:?}");
        }
    }
}

#[test]
fn progress_and_cancellation() {
    let case = case(Problem::new(Dims::self_attention(1, 64, 300, 16)), PLAIN);
    let run = |watch: &mut (dyn FnMut(f64) -> ControlFlow<()> + Send)| {
        attention_on(Isa::best(), &case.problem, &case.data.inputs(), &mut Outputs::default(), &mut Progress::new(watch))
    };
    let mut seen = Vec::new();
    run(&mut |done| {
        seen.push(done);
        ControlFlow::Continue(())
    })
    .expect("the problem is valid");
    assert!(seen.is_sorted() && seen.len() > 2 && seen.last() == Some(&1.0), "{seen:?}");
    assert_eq!(run(&mut |_| ControlFlow::Break(())), Err(Error::Cancelled));
}

#[test]
fn bad_input_is_refused() {
    let short = HostSlice::from(&[0.0f32; 3][..]);
    assert!(on(Isa::best())(&Problem::new(Dims::self_attention(1, 1, 4, 4)), &Inputs::new(short, short, short)).is_err());
}
