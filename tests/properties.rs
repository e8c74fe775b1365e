//! Random problems over every option, and the fixed table, on every engine against the oracle.

#![expect(clippy::print_stdout, reason = "a table of what ran on what")]

mod common;

use common::Tested;
use wgpu_attention::Control;
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::plan::{DeviceClass, Specialise};
use wgpu_attention::verify::{Row, Verdict, count, run_case, run_generated, table};

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} = `{text}` is not a number")))
}

/// Prints what each backend did, lists the failures and fails on any.
fn report(backends: &[Tested], rows: &[Row]) {
    for backend in backends {
        let [passed, failed, skipped] = count(rows.iter().filter(|row| row.backend == backend.name));
        println!("{:<24} {passed} passed, {failed} failed, {skipped} skipped", backend.name);
    }
    for row in rows.iter().filter(|row| row.verdict != Verdict::Passed).take(40) {
        println!("{}/{} on {}: {}", row.suite, row.case, row.backend, row.verdict);
    }
    assert_eq!(count(rows)[1], 0, "cases failed; they are listed above");
}

/// The table and `cases` random problems (`ATTENTION_RANDOM_CASES` says otherwise, `ATTENTION_SEED` which) on `backends`.
fn table_and_random(backends: &[Tested], cases: u64) {
    let candidates: Vec<_> = backends.iter().map(Tested::candidate).collect();
    let (seed, cases) = (variable("ATTENTION_SEED", 1), variable("ATTENTION_RANDOM_CASES", cases));
    let rows = run_generated(&candidates, seed, cases, "", &mut Control::default()).expect("every generated problem is valid");
    report(backends, &rows);
}

#[test]
fn cpu_path() {
    table_and_random(&common::engines()[..1], 3000);
}

#[test]
fn gpus() {
    table_and_random(&common::gpus(ShaderOptions::default()), 300);
}

/// Kernels made for one problem, of the shapes that each class of device gets, on part of the table: each is compiled anew.
#[test]
fn special_variants() {
    for class in [DeviceClass::Software, DeviceClass::Discrete] {
        println!("as on a device of class {class:?}:");
        let gpus = common::gpus(ShaderOptions { specialise: Specialise::Always, pretend: Some(class), ..Default::default() });
        let candidates: Vec<_> = gpus.iter().map(Tested::candidate).collect();
        let part = variable("ATTENTION_SPECIAL_PART", 8) as usize;
        let cases = table().expect("every case is valid").into_iter().step_by(part.max(1));
        let rows: Vec<Row> = cases.flat_map(|case| run_case("special", &case, &candidates).expect("valid")).collect();
        report(&gpus, &rows);
    }
}
