//! Random problems over every option, and the fixed table, on every engine against the oracle.

mod common;

use wgpu_attention::Control;
use wgpu_attention::verify::{Verdict, count, run_generated};

/// Random cases a run; `ATTN_RANDOM_CASES` and `ATTN_SEED` say otherwise.
const RANDOM_CASES: u64 = 2000;

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} = `{text}` is not a number")))
}

#[test]
fn table_and_random_cases() {
    let engines = common::engines();
    let candidates: Vec<_> = engines.iter().map(common::Tested::candidate).collect();
    let (seed, cases) = (variable("ATTN_SEED", 1), variable("ATTN_RANDOM_CASES", RANDOM_CASES));
    let rows = run_generated(&candidates, seed, cases, "", &mut Control::default()).expect("every generated problem is valid");
    for candidate in &candidates {
        let [passed, failed, skipped] = count(rows.iter().filter(|row| row.backend == candidate.name));
        println!("{:<24} {passed} passed, {failed} failed, {skipped} skipped", candidate.name);
    }
    for row in rows.iter().filter(|row| matches!(row.verdict, Verdict::Failed(_))).take(20) {
        println!("{}/{} on {}: {}", row.suite, row.case, row.backend, row.verdict);
    }
    assert_eq!(count(&rows)[1], 0, "cases failed; they are listed above");
}
