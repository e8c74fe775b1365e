//! A user's score of -inf hides a pair as a bias of -inf does, and as `visible` does: forward and backward, on each engine.

use crate::common::every_engine;
use wgpu_attention::verify::{Case, Data, Expected, ExpectedGradients, Extreme, Fill, Verdict, check_against, check_backward_against};
use wgpu_attention::{Algorithm, Alignment, BroadcastShape, Dims, HostVec, Problem, Table, Term, Varlen};

const DIMS: Dims = Dims { batch: 2, num_heads: 4, num_kv_heads: 2, seq_len_q: 19, seq_len_kv: 75, head_dim: 8, head_dim_v: 8 };
/// Row 5 sees nothing, and every eleventh key is seen by no row.
const HIDDEN: &str = "fn hidden(at: Pair) -> bool { return (at.row + 2 * at.key) % 3 == 0 || at.row == 5 || at.key % 11 == 4; }\n";

fn is_hidden(row: usize, key: usize) -> bool {
    (row + 2 * key).is_multiple_of(3) || row == 5 || key % 11 == 4
}

/// Cases that hide the same pairs by a bias, by scores and by `visible`, with equal data: values that no row sees are NaN or
/// infinite. (Their keys are finite: a NaN score stays NaN whatever a user's function makes of it.)
fn cases(plain: &Problem) -> [Case; 4] {
    let visible = "fn visible(at: Pair) -> bool { return !hidden(at); }";
    let selected = "fn score(x: f32, at: Pair) -> f32 { return select(x, bitcast<f32>(0xff800000u), hidden(at)); }";
    let added = "fn score(x: f32, at: Pair) -> f32 { return x + biases[75 * at.row + at.key]; }";
    let term = |text: &str| Term::wgsl(&format!("{HIDDEN}{text}")).unwrap_or_else(|error| panic!("{text}: {error}"));
    let fill = Fill { poison: false, ..Fill::seed(20) };
    let mut by_visible = Case::new("visible", plain.clone().with_term(term(visible)), fill).expect("valid");
    let HostVec::F32(value) = &mut by_visible.data.value else { panic!("stored as f32") };
    // Items lie one after the other, varlen ones too, because they are whole.
    for (at, row) in value.chunks_exact_mut(DIMS.head_dim_v).enumerate().filter(|(at, _)| at % DIMS.seq_len_kv % 11 == 4) {
        row.fill(if at % 2 == 0 { f32::NAN } else { f32::INFINITY });
    }
    let with = |name: &str, problem: Problem, bias: &[f32], tables: &[f32]| {
        let (bias, term_tables) = (bias.to_vec(), tables.iter().map(|x| x.to_bits()).collect());
        let data = Data { bias, term_tables, ..by_visible.data.clone() };
        Case { name: name.into(), problem, fill: by_visible.fill, data }
    };
    let shape = BroadcastShape([1, 1, DIMS.seq_len_q, DIMS.seq_len_kv]);
    let pairs = (0..DIMS.seq_len_q).flat_map(|row| (0..DIMS.seq_len_kv).map(move |key| (row, key)));
    let bias: Vec<f32> = pairs.map(|(row, key)| if is_hidden(row, key) { f32::NEG_INFINITY } else { 0.0 }).collect();
    let added = Term::with_tables(added, &[Table::f32("biases", bias.len())]).expect("valid");
    [
        with("bias", Problem { bias: Some(shape), ..plain.clone() }, &bias, &[]),
        with("selected", plain.clone().with_term(term(selected)), &[], &[]),
        with("added", plain.clone().with_term(added), &[], &bias),
        by_visible,
    ]
}

#[test]
fn minus_infinity_hides_as_a_bias_does() {
    let plain = Problem::new(DIMS).with_lse();
    let mut sinking = plain.clone().aligned(Alignment::BottomRight).causal();
    sinking.sinks = true;
    let varlen = Varlen { tokens_q: 2 * DIMS.seq_len_q, tokens_kv: 2 * DIMS.seq_len_kv };
    let engines = every_engine();
    for plain in [sinking, Problem { varlen: Some(varlen), ..plain }] {
        let all = cases(&plain);
        let expected = Expected::of(&all[0].problem, &all[0].data.inputs()).expect("valid");
        let gradients = ExpectedGradients::of(&all[0]).expect("valid");
        let sees_nothing = expected.lse.as_ref().expect("asked for").values.iter().filter(|&&lse| lse == f64::NEG_INFINITY).count();
        assert_eq!(sees_nothing, if plain.sinks { 0 } else { 8 }, "row 5 of each head");
        for case in &all {
            let of_biases = case.name == "bias";
            let gradients = ExpectedGradients { bias: gradients.bias.clone().filter(|_| of_biases), ..gradients.clone() };
            // Every text compiles kernels of its own, so that only one problem takes every adapter and both algorithms.
            for engine in engines.iter().take(if plain.sinks { engines.len() } else { 3 }) {
                let what = format!("{} on {}", case.name, engine.chosen());
                for algorithm in [Algorithm::Fused, Algorithm::Staged].into_iter().take(if plain.sinks { 2 } else { 1 }) {
                    let engine = engine.clone().with_algorithm(algorithm);
                    let verdict = check_against(case, &expected, &|problem, inputs| engine.attention(problem, inputs));
                    assert_eq!(verdict, Verdict::Passed, "{what}, {algorithm:?}");
                }
                let verdict =
                    check_backward_against(case, &gradients, &|problem, inputs, given, want| engine.backward(problem, inputs, given, want));
                assert_eq!(verdict, Verdict::Passed, "gradients of {what}");
            }
        }
    }
}

#[test]
fn a_product_that_overflows_hides_whatever_a_function_makes_of_it() {
    let term = Term::wgsl("fn score(x: f32, at: Pair) -> f32 { return max(x, -5.0); }").expect("valid");
    let fill = Fill { extreme: Extreme::Overflow, ..Fill::seed(20) };
    let case = Case::new("overflow", Problem::new(DIMS).with_lse().with_term(term), fill).expect("valid");
    let expected = Expected::of(&case.problem, &case.data.inputs()).expect("valid");
    for engine in every_engine() {
        for algorithm in [Algorithm::Fused, Algorithm::Staged] {
            let engine = engine.clone().with_algorithm(algorithm);
            let verdict = check_against(&case, &expected, &|problem, inputs| engine.attention(problem, inputs));
            assert_eq!(verdict, Verdict::Passed, "{algorithm:?} on {}", engine.chosen());
        }
    }
}

/// The slope of the first term is 1e-8, or 0 where f32 rounds the tanh to 1: a NaN of the second is then hidden, or is not.
/// Neither is judged, and everything else is.
#[test]
fn a_slope_that_rounding_makes_0_may_hide_a_nan() {
    let saturated = "fn score(x: f32, at: Pair) -> f32 { return select(x, tanh(x + 10), at.row == 2); }";
    let nan = "fn score(x: f32, at: Pair) -> f32 { return x; }
        fn slope(x: f32, y: f32, at: Pair) -> f32 { return select(1, bitcast<f32>(0x7fc00000u), at.row == 2 && at.key == 3); }";
    let term = |text: &str| Term::wgsl(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let problem = Problem::new(Dims::self_attention(1, 1, 6, 8)).with_term(term(saturated)).with_term(term(nan));
    let mut case = Case::new("saturated", problem, Fill { poison: false, ..Fill::seed(21) }).expect("valid");
    // Small scores, so that it is the tanh that saturates.
    case.data.query = HostVec::F32(case.data.query.into_f32().iter().map(|x| x * 0.1).collect());
    let expected = ExpectedGradients::of(&case).expect("valid");
    let [d_query, d_key] = [&expected.query, &expected.key];
    assert!(d_query.values[2 * 8].is_nan() && d_key.values[3 * 8].is_nan(), "in f64 the slope is not 0");
    assert_eq!(d_query.exempt.iter().filter(|&&exempt| exempt).count(), 8, "row 2");
    assert_eq!(d_key.exempt.iter().filter(|&&exempt| exempt).count(), 8, "key 3");
    for engine in every_engine() {
        let verdict =
            check_backward_against(&case, &expected, &|problem, inputs, backward, want| engine.backward(problem, inputs, backward, want));
        assert_eq!(verdict, Verdict::Passed, "{}", engine.chosen());
        let wrong = check_backward_against(&case, &expected, &|problem, inputs, backward, want| {
            let mut gradients = engine.backward(problem, inputs, backward, want)?;
            let Some(HostVec::F32(query)) = &mut gradients.query else { panic!("asked for, and stored as f32") };
            query[8] = f32::NAN;
            Ok(gradients)
        });
        assert!(matches!(wrong, Verdict::Failed(_)), "a NaN in row 1 is noticed");
    }
}
