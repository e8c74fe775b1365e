//! Mutation tests of the harness: it must reject gradients spoilt on purpose and known mistakes of backward kernels.

use std::sync::LazyLock;

use crate::common::fails;
use crate::common::gradient_bugs::GRADIENT_BUGS;
use wgpu_attention::verify::{Case, ExpectedGradients, Verdict, backward_oracle, check_backward, check_backward_against, random, table};
use wgpu_attention::{DType, Error, Gradients, HostVec, Layout, Problem, Result};

/// Returns the table with its answers: bounds, and gradients of the oracle.
fn cases() -> &'static [(Case, ExpectedGradients, Gradients)] {
    static CASES: LazyLock<Vec<(Case, ExpectedGradients, Gradients)>> = LazyLock::new(|| {
        let with_answers = |case: Case| {
            let expected = ExpectedGradients::of(&case).expect("the table is valid");
            let right = std::cell::RefCell::new(None);
            let verdict = check_backward_against(&case, &expected, &|problem, inputs, backward, want| {
                let gradients = backward_oracle(problem, inputs, backward, want)?;
                *right.borrow_mut() = Some(gradients.clone());
                Ok(gradients)
            });
            assert!(!fails(&verdict), "{}: {verdict}", case.name);
            Some((case, expected, right.into_inner()?)) // not asked where rounding may turn a user's mask
        };
        table().expect("the table is valid").into_iter().filter_map(with_answers).collect()
    });
    &CASES
}

#[test]
fn the_oracle_passes_and_every_mistake_is_caught() {
    const ENOUGH: usize = 3;
    let mut caught = [0; GRADIENT_BUGS.len()];
    for (case, expected, _) in cases() {
        for (bug, caught) in GRADIENT_BUGS.iter().zip(&mut caught).filter(|(_, caught)| **caught < ENOUGH) {
            *caught += usize::from(fails(&check_backward_against(case, expected, &bug.backward)));
        }
    }
    for (bug, caught) in GRADIENT_BUGS.iter().zip(caught) {
        println!("{:<44} caught by {caught} cases of the table, of which {ENOUGH} are enough", bug.name);
    }
    let missed: Vec<_> = GRADIENT_BUGS.iter().zip(caught).filter(|&(_, caught)| caught == 0).map(|(bug, _)| bug.name).collect();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn random_cases_catch_every_mistake_too() {
    let mut missing: Vec<_> = GRADIENT_BUGS.iter().collect();
    for seed in 0..600 {
        let Case { problem, fill, .. } = random(seed).expect("random problems are valid");
        // Plain storage, because some mistakes are made only there.
        let problem = Problem { varlen: None, paged: None, ..problem }.stored(DType::F32, Layout::Bhsd);
        let case = Case::new("plain", problem, fill).expect("it is still valid");
        let expected = ExpectedGradients::of(&case).expect("random problems are valid");
        missing.retain(|bug| !fails(&check_backward_against(&case, &expected, &bug.backward)));
    }
    let names: Vec<_> = missing.iter().map(|bug| bug.name).collect();
    assert!(names.is_empty(), "not caught: {names:?}");
}

/// Spoils the oracle's dK in every plainly stored case of the table. Returns the cases that did not notice.
fn unnoticed(spoil: impl Fn(&ExpectedGradients, &mut Vec<f32>) -> bool) -> Vec<String> {
    let (mut unnoticed, mut tried) = (Vec::new(), 0);
    for (case, expected, right) in cases() {
        let p = &case.problem;
        if p.key.layout != Layout::Bhsd || p.key.offset != 0 || p.paged.is_some() {
            continue;
        }
        let spoilt = std::cell::Cell::new(false);
        let verdict = check_backward_against(case, expected, &|_, _, _, _| -> Result<Gradients> {
            let mut key = right.key.as_ref().expect("it is wanted").to_f32();
            spoilt.set(spoil(expected, &mut key));
            let mut got = right.clone();
            got.key = Some(HostVec::from_f32(p.key.dtype, &key));
            Ok(got)
        });
        tried += usize::from(spoilt.get());
        if spoilt.get() && !fails(&verdict) {
            unnoticed.push(case.name.clone());
        }
    }
    assert!(tried > 100, "only {tried} cases were spoilt");
    unnoticed
}

#[test]
fn spoilt_gradients_are_noticed() {
    let nothing = Vec::<String>::new();
    for share in [0.0, 0.5, 1.0] {
        let off = unnoticed(|expected, key| {
            let Some(last) = key.len().checked_sub(1) else { return false };
            let at = (last as f64 * share) as usize;
            let right = expected.key.values[at];
            // A storage type of few bits may round three tolerances away, but not six.
            key[at] = (right + 6.0 * expected.key.allowed[at]) as f32;
            !right.is_nan()
        });
        assert_eq!(off, nothing);
    }
    for bad in [f32::NAN, f32::INFINITY] {
        assert_eq!(unnoticed(|_, key| key.iter_mut().rfind(|x| x.is_finite()).map(|x| *x = bad).is_some()), nothing);
    }
    // With scores in the thousands, their rounding alone allows a gradient of any size, 0 included.
    let zeros = unnoticed(|expected, key| {
        if expected.key.allowed.iter().zip(&expected.key.values).all(|(&allowed, &right)| right.abs() <= allowed) {
            return false;
        }
        let before = key.iter().any(|&x| x != 0.0);
        key.fill(0.0);
        before
    });
    assert_eq!(zeros, nothing);
}

#[test]
fn missing_and_surplus_gradients_are_noticed() {
    let case = table().expect("the table is valid").into_iter().find(|case| case.name == "sinks").expect("it is in the table");
    let expected = ExpectedGradients::of(&case).expect("a valid problem");
    let with = |change: fn(&mut Gradients)| {
        check_backward_against(&case, &expected, &|problem, inputs, backward, want| {
            let mut got = backward_oracle(problem, inputs, backward, want)?;
            change(&mut got);
            Ok(got)
        })
    };
    assert_eq!(with(|_| {}), Verdict::Passed);
    assert!(fails(&with(|got| got.query = None)));
    assert!(fails(&with(|got| got.value = None)));
    assert!(fails(&with(|got| got.sinks = None)));
    assert!(fails(&with(|got| got.bias = Some(vec![]))));
    assert!(fails(&with(|got| got.value = Some(HostVec::F32(vec![0.0])))));
    let lost = check_backward(&case, &|_, _, _, _| Err(Error::Lost { why: "gone".into() }));
    let unsupported = check_backward(&case, &|_, _, _, _| Err(Error::Unsupported { what: "this".into(), remedy: "that".into() }));
    assert!(fails(&lost) && matches!(unsupported, Verdict::Skipped(_)));
}
