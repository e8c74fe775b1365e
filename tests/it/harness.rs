//! Mutation tests of the harness: it must reject answers spoilt on purpose and known mistakes of attention kernels.

use std::sync::LazyLock;

use crate::common::bugs::BUGS;
use crate::common::fails;
use wgpu_attention::verify::{
    Candidate, Case, Expected, ExpectedTensor, Fill, Mismatch, Verdict, check, check_against, minimise, oracle, random, run_generated,
    run_generated_async, table,
};
use wgpu_attention::{Backend, Dims, Error, HostVec, Inputs, Layout, Outputs, Problem, Progress, Result};

/// Returns the table with its answers: bounds, and outputs of the oracle.
fn cases() -> &'static [(Case, Expected, Outputs)] {
    static CASES: LazyLock<Vec<(Case, Expected, Outputs)>> = LazyLock::new(|| {
        let with_answers = |case: Case| {
            let expected = Expected::of(&case.problem, &case.data.inputs()).expect("the table is valid");
            let outputs = oracle(&case.problem, &case.data.inputs()).expect("the table is valid");
            (case, expected, outputs)
        };
        table().expect("the table is valid").into_iter().map(with_answers).collect()
    });
    &CASES
}

#[test]
fn the_oracle_passes_and_every_mistake_is_caught() {
    const ENOUGH: usize = 3;
    let mut caught = [0; BUGS.len()];
    for (case, expected, outputs) in cases() {
        assert_eq!(check_against(case, expected, &|_, _| Ok(outputs.clone())), Verdict::Passed, "{}", case.name);
        for (bug, caught) in BUGS.iter().zip(&mut caught).filter(|(_, caught)| **caught < ENOUGH) {
            *caught += usize::from(fails(&check_against(case, expected, &bug.attend)));
        }
    }
    for (bug, caught) in BUGS.iter().zip(caught) {
        println!("{:<44} caught by {caught} cases of the table, of which {ENOUGH} are enough", bug.name);
    }
    let missed: Vec<_> = BUGS.iter().zip(caught).filter(|&(_, caught)| caught == 0).map(|(bug, _)| bug.name).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn random_cases_catch_every_mistake_too() {
    let mut missing: Vec<_> = BUGS.iter().collect();
    for seed in 0..1500 {
        let case = random(seed).expect("random problems are valid");
        let expected = Expected::of(&case.problem, &case.data.inputs()).expect("random problems are valid");
        missing.retain(|bug| !fails(&check_against(&case, &expected, &bug.attend)));
    }
    let names: Vec<_> = missing.iter().map(|bug| bug.name).collect();
    // These need axes of equal length, which are rare in random cases, or thousands of keys.
    assert!(names.iter().all(|name| name.contains("wrong axis") || name.contains("over all keys")), "not caught: {names:?}");
}

/// Spoils the oracle's answers in every plainly stored case of the table. Returns the cases that did not notice.
fn unnoticed(spoil: impl Fn(&Case, &Expected, &mut [f32]) -> bool) -> Vec<String> {
    let mut unnoticed = Vec::new();
    let (mut tried, mut free) = (0, 0);
    for (case, expected, outputs) in cases() {
        let p = &case.problem;
        if p.output.layout != Layout::Bhsd || p.output.offset != 0 {
            continue;
        }
        // If scores overflow f32 or values are too small for it, any output may be right.
        let (right, allowed) = (&expected.output.values, &expected.output.allowed);
        if !right.is_empty() && right.iter().zip(allowed).all(|(right, &allowed)| right.abs() <= allowed) {
            free += 1;
            continue;
        }
        let mut output = outputs.output.to_f32();
        if !spoil(case, expected, &mut output) {
            continue;
        }
        tried += 1;
        let mut spoilt = outputs.clone();
        spoilt.output = HostVec::from_f32(p.output.dtype, &output);
        if !fails(&check_against(case, expected, &|_: &Problem, _: &Inputs<'_>| Ok(spoilt.clone()))) {
            unnoticed.push(case.name.clone());
        }
    }
    assert!(tried > 100 && free < 16, "{tried} cases were spoilt, in {free} anything is right");
    unnoticed
}

#[test]
fn one_element_off_by_three_tolerances_is_noticed() {
    let nothing = Vec::<String>::new();
    for share in [0.0, 0.5, 1.0] {
        let missed = unnoticed(|_, expected, output| {
            let Some(last) = output.len().checked_sub(1) else { return false };
            let at = (last as f64 * share) as usize;
            if expected.output.values[at].is_nan() {
                return false;
            }
            output[at] += 3.0 * expected.output.allowed[at] as f32;
            true
        });
        assert_eq!(missed, nothing);
    }
}

#[test]
fn one_nan_or_infinity_is_noticed() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let missed = unnoticed(|_, _, output| output.iter_mut().rfind(|x| x.is_finite()).map(|x| *x = bad).is_some());
        assert_eq!(missed, Vec::<String>::new());
    }
}

#[test]
fn swapped_heads_are_noticed() {
    let missed = unnoticed(|case, _, output| {
        let d = case.problem.dims;
        let head = d.seq_len_q * d.head_dim_v;
        let last = d.num_heads.saturating_sub(1) * head; // in another group than the first, if there are groups
        if d.num_heads < 2 || case.problem.varlen.is_some() || output[..head] == output[last..last + head] {
            return false;
        }
        let (first, rest) = output.split_at_mut(head);
        first.swap_with_slice(&mut rest[last - head..last]);
        true
    });
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn zeros_and_dropped_rows_are_noticed() {
    let missed = unnoticed(|_, _, output| {
        let before = output.iter().any(|&x| x != 0.0);
        output.fill(0.0);
        before
    });
    assert_eq!(missed, Vec::<String>::new());
    let missed = unnoticed(|case, _, output| {
        let from = output.len().saturating_sub(case.problem.dims.head_dim_v);
        let before = output[from..].iter().any(|&x| x != 0.0);
        output[from..].fill(0.0);
        before
    });
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn missing_and_surplus_parts_are_noticed() {
    let plain = Case::new("plain", Problem::new(Dims::self_attention(1, 2, 5, 8)), Fill::seed(1)).expect("valid");
    let with_lse = Case::new("lse", plain.problem.clone().with_lse(), Fill::seed(1)).expect("valid");
    let without = |p: &Problem, x: &Inputs<'_>| {
        let mut outputs = oracle(p, x)?;
        outputs.lse = None;
        Ok(outputs)
    };
    let always = |p: &Problem, x: &Inputs<'_>| oracle(&p.clone().with_lse(), x);
    assert!(fails(&check(&with_lse, &without)));
    assert!(fails(&check(&plain, &always)));
    let short = |p: &Problem, x: &Inputs<'_>| {
        let mut outputs = oracle(p, x)?;
        let mut output = outputs.output.to_f32();
        output.pop();
        outputs.output = HostVec::F32(output);
        Ok(outputs)
    };
    assert!(fails(&check(&plain, &short)));
    let gap = |p: &Problem, x: &Inputs<'_>| {
        let mut outputs = oracle(p, x)?;
        let mut output = outputs.output.to_f32();
        output[0] = 1.0;
        outputs.output = HostVec::F32(output);
        Ok(outputs)
    };
    let mut shifted = plain.problem;
    shifted.output.offset = 3;
    assert!(fails(&check(&Case::new("gap", shifted, Fill::seed(1)).expect("valid"), &gap)));
}

/// The suite has the same rows whether its answers are awaited or not.
#[test]
fn engines_are_awaited() {
    let engine = crate::common::open(Backend::Cpu);
    let attend = |problem: &Problem, inputs: &Inputs<'_>| engine.attention(problem, inputs);
    let candidate = Candidate { name: engine.chosen(), attend: &attend, engine: Some(&engine) };
    let now = run_generated(&[candidate], 3, 5, "random", &mut Progress::default()).expect("cases");
    let awaited = pollster::block_on(run_generated_async(&[&engine], 3, 5, "random", &mut Progress::default()));
    assert_eq!((now.len() > 5, awaited), (true, Ok(now)));
}

#[test]
fn unsupported_is_a_skip_and_other_errors_are_failures() {
    let case = random(3).expect("valid");
    let unsupported =
        |_: &Problem, _: &Inputs<'_>| -> Result<Outputs> { Err(Error::Unsupported { what: "this".into(), remedy: "that".into() }) };
    let lost = |_: &Problem, _: &Inputs<'_>| -> Result<Outputs> { Err(Error::Lost { why: "gone".into() }) };
    assert_eq!(check(&case, &unsupported), Verdict::Skipped("not supported: this; that".into()));
    assert!(fails(&check(&case, &lost)));
}

#[test]
fn comparison_looks_at_shape_then_kind_then_value() {
    let within = |expected: &[f64]| ExpectedTensor::new([expected.len()], expected.to_vec(), vec![0.1; expected.len()], 0.0);
    let against = |got: &[f32], expected: &[f64]| within(expected).compare(got);
    assert!(matches!(against(&[1.0, 9.0], &[1.0]), Err(Mismatch::Shape { .. })));
    assert!(matches!(against(&[], &[1.0]), Err(Mismatch::Shape { .. })));
    let Err(Mismatch::NotFinite(at)) = against(&[50.0, f32::NAN, 1.0], &[1.0, 1.0, f64::INFINITY]) else { panic!("NaN comes first") };
    assert_eq!((at.index, at.wrong, at.of), (vec![1], 2, 3));
    let Err(Mismatch::Value(at)) = against(&[1.2, 1.5, 1.0], &[1.0, 1.0, 1.0]) else { panic!("1.5 is too far") };
    assert_eq!((at.index, at.got, at.wrong), (vec![1], 1.5, 2));
    assert_eq!(against(&[f32::NAN, f32::INFINITY], &[f64::NAN, f64::INFINITY]), Ok(0.0));
    assert!(against(&[f32::NEG_INFINITY], &[f64::INFINITY]).is_err());
    assert!(against(&[f32::INFINITY], &[f64::NAN]).is_err());
    assert!(against(&[-1e31], &[f64::NEG_INFINITY]).is_err());
    let lenient = ExpectedTensor { minus_infinity: -1e30, ..within(&[f64::NEG_INFINITY]) };
    assert!(lenient.compare(&[-1e31]).is_ok());
    assert!(lenient.compare(&[-1e29]).is_err());
}

#[test]
fn a_failing_case_shrinks_to_the_option_that_fails() {
    let bug = BUGS.iter().find(|bug| bug.name == "softcap ignored").expect("it is in the list");
    let fails = |case: &Case| fails(&check(case, &bug.attend));
    let case =
        (0..).map(|seed| random(seed).expect("valid")).find(|case| fails(case) && case.problem.bias.is_some()).expect("there is one");
    let smallest = minimise(case, fails).problem;
    assert!(smallest.softcap.is_some());
    let rest = Problem { softcap: None, scale: None, ..smallest };
    assert_eq!(rest, Problem { dims: smallest.dims, ..Problem::new(smallest.dims) }, "nothing but the softcap is left");
    assert!(smallest.dims.seq_len_q <= 1 && smallest.dims.seq_len_kv <= 2 && smallest.dims.head_dim == 1, "{:?}", smallest.dims);
}

#[test]
fn cases_are_reproducible() {
    let text = |seed| format!("{:?}", random(seed).expect("valid"));
    assert_eq!(text(11), text(11));
    assert_ne!(text(11), text(12));
}
