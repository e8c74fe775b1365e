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
    // Every text of users' terms is a kernel of its own: here on one device, on all by `attn verify --cases tests/data/flex`.
    let first_gpu = backends.iter().position(|backend| backend.gpu.is_some());
    let few: Vec<_> =
        (0..backends.len()).filter(|&at| backends[at].gpu.is_none() || Some(at) == first_gpu).map(|at| backends[at].candidate()).collect();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let folders = std::fs::read_dir(dir).expect("tests/data is there").map(|entry| entry.expect("readable").path());
    let mut rows = Vec::new();
    for folder in folders.filter(|path| path.is_dir()) {
        let candidates = if folder.ends_with("flex") { &few } else { &candidates };
        rows.extend(run_dir(&folder, candidates, "", &mut Progress::default()).expect("the folder has cases"));
    }

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
