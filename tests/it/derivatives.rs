//! Derivatives of users' scores against differences: what is noticed, what is left out, and how often.

use wgpu_attention::verify::{
    Case, Derivative, Expected, Fill, Verdict, check, check_derivatives, oracle, random, random_text_of, run_derivatives, run_generated,
};
use wgpu_attention::{Dims, Inputs, Problem, Progress, Term};

fn case(text: &str, seed: u64) -> Case {
    let dims = Dims { seq_len_kv: 23, ..Dims::self_attention(2, 2, 9, 8) };
    let term = Term::wgsl(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    Case::new("derivative", Problem::new(dims).with_term(term), Fill::seed(seed)).expect("valid")
}

fn derivative(text: &str) -> Derivative {
    check_derivatives(&case(text, 3)).expect("it has one").remove(0).expect("it has a score")
}

#[test]
fn a_wrong_slope_is_noticed() {
    for (score, right, wrong) in [
        ("0.5 * x * x - x", "x - 1.0", "x"),
        ("3.0 * tanh(x / 3.0)", "1.0 - y * y / 9.0", "1.001 - y * y / 9.0"),
        ("x + 0.25 * f32(at.key)", "1.0", "1.00001"),
        ("select(x, 2.0 * x, at.key == 7)", "select(1.0, 2.0, at.key == 7)", "1.0"),
        ("sin(300.0 * x)", "300.0 * cos(300.0 * x)", "-300.0 * cos(300.0 * x)"),
        ("max(x, 0.0)", "select(0.0, 1.0, x > 0.0)", "select(1.0, 0.0, x > 0.0)"),
        ("x", "1.0", "2.0"),
    ] {
        let with = |slope: &str| {
            let text = format!("fn score(x: f32, at: Pair) -> f32 {{ return {score}; }}");
            derivative(&format!("{text} fn slope(x: f32, y: f32, at: Pair) -> f32 {{ return {slope}; }}"))
        };
        let derived = derivative(&format!("fn score(x: f32, at: Pair) -> f32 {{ return {score}; }}"));
        for right in [derived, with(right)] {
            assert!(right.wrong.is_none() && right.held >= 50, "{score}: {right:?}");
        }
        let told = with(wrong).wrong.unwrap_or_else(|| panic!("{wrong} passes as the slope of {score}")).to_string();
        for part in ["slope", "x = ", "head", score, wrong] {
            assert!(told.contains(part), "`{part}` is not in: {told}");
        }
    }
}

/// Points whose score jumps or has a kink within a step say nothing; all others are held.
#[test]
fn points_near_a_branch_are_counted() {
    for (score, all) in [
        // The argument is a multiple of a quarter, as kinks are.
        ("max(floor(4.0 * x) / 4.0 - x + x, 0.0)", false),
        ("select(x, 2.0 * x, x > 1e30)", false),
        ("abs(x - x)", false),
        ("max(x - floor(x) - 2.0, 0.0) + 1e9 * floor(1e9 * x)", true),
    ] {
        let found = derivative(&format!("fn score(x: f32, at: Pair) -> f32 {{ return {score}; }}"));
        assert!(found.wrong.is_none(), "{score}: {found:?}");
        assert_eq!(found.skipped > 32, all, "{score}: {found:?}");
        let least = if all { 0 } else { 50 };
        assert!(found.held >= least && found.held + found.skipped == 64, "{score}: {found:?}");
    }
}

#[test]
fn a_score_without_a_derivative_is_skipped_with_its_reason() {
    let text = "fn score(x: f32, at: Pair) -> f32 { return x + f32(bitcast<u32>(x) & 1u) + bitcast<f32>(bitcast<u32>(x)); }";
    let rows = run_derivatives(&case(text, 1)).expect("an answer");
    assert!(matches!(&rows[..], [row] if matches!(&row.verdict, Verdict::Skipped(why) if why.contains("bitcast"))), "{rows:?}");
    assert_eq!(run_derivatives(&case("fn visible(at: Pair) -> bool { return at.key != 3; }", 1)), Ok(vec![]));
}

/// Every term that the generator draws is held, and few points are near a branch.
#[test]
fn derivatives_of_drawn_terms() {
    let (mut terms, mut all) = (0, Derivative::default());
    for seed in 0..600 {
        let case = random(seed).expect("a valid case");
        let Ok(found) = check_derivatives(&case) else { continue };
        for Derivative { held, skipped, wrong } in found.into_iter().flatten() {
            assert_eq!(wrong, None, "{}: {}", case.name, wrong.as_ref().map_or_else(String::new, ToString::to_string));
            (terms, all.held, all.skipped) = (terms + 1, all.held + held, all.skipped + skipped);
        }
    }
    println!("{terms} terms: {} points held, {} near a branch", all.held, all.skipped);
    assert!(terms > 40 && 20 * all.skipped <= all.held, "{terms} terms: {all:?}");
}

/// The suite that `attn verify` runs has a row for each.
#[test]
fn the_suite_holds_them() {
    let rows = run_generated(&[], 1, 60, "random", &mut Progress::default()).expect("it runs");
    let rows: Vec<_> = rows.iter().filter(|row| row.suite == "derivatives").collect();
    assert!(rows.len() >= 3 && rows.iter().all(|row| !matches!(row.verdict, Verdict::Failed(_))), "{rows:?}");
}

/// A mask that compares floats may show another key after rounding: rows in which it may are not judged, and few.
#[test]
fn masks_that_rounding_may_turn() {
    let dims = Dims { seq_len_kv: 40, ..Dims::self_attention(1, 2, 40, 8) };
    let case = |text: &str| {
        let term = Term::wgsl(text).expect("valid");
        Case::new("rounded", Problem::new(dims).with_lse().with_term(term), Fill::seed(5)).expect("valid")
    };
    let unsure = |case: &Case| Expected::of(&case.problem, &case.data.inputs()).expect("valid").unsure_rows;
    // 0.7 of 10, 20 and 30 are whole numbers but for rounding.
    let ties = case("fn visible(at: Pair) -> bool { return f32(at.key) < 0.7 * f32(at.row); }");
    assert_eq!(unsure(&ties), 2 * 3, "rows 10, 20 and 30 of both heads");
    assert_eq!(check(&ties, &oracle), Verdict::Passed);
    let wrong = |problem: &Problem, inputs: &Inputs<'_>| oracle(&Problem { user_terms: vec![], ..problem.clone() }, inputs);
    assert!(matches!(check(&ties, &wrong), Verdict::Failed(_)), "the other rows are judged");
    assert_eq!(unsure(&case("fn visible(at: Pair) -> bool { return f32(at.key) < 0.75 * f32(at.row); }")), 0, "0.75 is exact");
    let (mut rows, mut not_judged) = (0, 0);
    for seed in 0..300 {
        let Ok(case) = random_text_of(seed, seed, false).expect("valid") else { continue };
        (rows, not_judged) = (rows + case.problem.lse_len(), not_judged + unsure(&case));
    }
    println!("{not_judged} of {rows} rows of random texts are not judged");
    assert!(100 * not_judged <= rows, "{not_judged} of {rows}");
}
