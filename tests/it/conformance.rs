//! Conformance: every case file on every backend.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{Tested, backends};
use wgpu_attention::Progress;
use wgpu_attention::verify::{Verdict, count, run_dir};

#[test]
fn case_files() {
    let backends = backends();
    let candidates: Vec<_> = backends.iter().map(Tested::candidate).collect();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let rows = run_dir(&dir, &candidates, "", &mut Progress::default()).expect("tests/data is there");

    let mut table: BTreeMap<(&str, &str), Vec<_>> = BTreeMap::new();
    for row in &rows {
        table.entry((&row.suite, &row.backend)).or_default().push(row);
    }
    println!("{:<12} {:<26} {:>7} {:>7} {:>8}", "suite", "backend", "passed", "failed", "skipped");
    for ((suite, backend), rows) in table {
        let [passed, failed, skipped] = count(rows);
        println!("{suite:<12} {backend:<26} {passed:>7} {failed:>7} {skipped:>8}");
    }
    for row in rows.iter().filter(|row| row.verdict != Verdict::Passed) {
        println!("{}/{} on {}: {}", row.suite, row.case, row.backend, row.verdict);
    }
    assert_eq!(count(&rows)[1], 0, "case files failed; they are listed above");
}
