//! The fuzz finds planted mistakes of every kind, and goes on where it left off.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Runs the fuzz on the CPU path. Returns its exit code and its lines of JSON.
fn fuzz(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let run = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["fuzz", "--backend", "cpu", "--json"]).args(arguments).output();
    let run = run.expect("the program starts");
    let out = String::from_utf8(run.stdout).expect("UTF-8");
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect();
    (run.status.code(), lines)
}

/// Runs the fuzz until it finds a planted mistake. Returns kind, report and smallest problem.
fn find(plant: &str) -> [String; 3] {
    let (code, lines) = fuzz(&["--count", "20", "--failures", "1", "--hang", "2", "--plant", plant]);
    assert_eq!(code, Some(1), "{lines:?}");
    ["kind", "report", "smallest"].map(|field| lines[0]["failure"][field].as_str().expect("text").to_string())
}

#[test]
fn a_wrong_answer_is_found_and_made_small() {
    let [kind, report, smallest] = find("wrong");
    assert_eq!(kind, "wrong");
    assert!(report.contains("output at"), "{report}");
    // The planted mistake needs five keys, and nothing else.
    for least in ["batch: 1", "num_heads: 1", "seq_len_q: 1", "seq_len_kv: 5", "head_dim: 1", "causal: false", "mask: None", "bias: None"] {
        assert!(smallest.contains(least), "`{least}` is not in {smallest}");
    }
}

#[test]
fn a_panic_is_found_and_made_small() {
    let [kind, report, smallest] = find("panic");
    assert_eq!(kind, "panic");
    assert!(report.contains("planted") && smallest.contains("seq_len_kv: 5"), "{report}\n{smallest}");
}

#[test]
fn hangs_and_crashes_do_not_stop_it() {
    for plant in ["hang", "crash"] {
        let [kind, report, _] = find(plant);
        assert_eq!(kind, plant);
        assert!(report.contains("Problem {"), "{report}");
        let (code, lines) = fuzz(&["--count", "20", "--failures", "2", "--hang", "2", "--plant", plant]);
        assert_eq!((code, lines.len()), (Some(1), 3), "two failures and the end: {lines:?}");
    }
}

#[test]
fn it_goes_on_where_it_left_off_and_repeats_a_seed() {
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz.json");
    let _ = std::fs::remove_file(&state);
    let state = state.to_str().expect("UTF-8");
    for (plant, code, next, failures) in [(&["--plant", "wrong"][..], 1, 1, 1), (&[], 0, 11, 1), (&[], 0, 21, 1)] {
        let (got, lines) = fuzz(&[&["--state", state, "--count", "10", "--failures", "1"], plant].concat());
        let last = lines.last().expect("the end");
        assert_eq!(got, Some(code), "{lines:?}");
        assert!(last["progress"]["next"].as_u64() > Some(next), "{last}");
        assert_eq!(last["progress"]["failures"].as_array().map(Vec::len), Some(failures), "{last}");
    }
    let seed = fuzz(&["--count", "20", "--failures", "1", "--plant", "wrong"]).1[0]["failure"]["seed"].to_string();
    let (code, lines) = fuzz(&["--seed", &seed, "--count", "1", "--plant", "wrong"]);
    assert_eq!((code, lines[0]["failure"]["seed"].to_string()), (Some(1), seed));
}

#[test]
fn what_it_cannot_do_is_said() {
    for (arguments, culprit) in [(&["--minutes=-1"][..], "--minutes"), (&["--backend", "no such adapter", "--count", "1"], "begin")] {
        let run = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("fuzz").args(arguments).output().expect("the program starts");
        let err = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.code() == Some(2) && err.contains(culprit), "{err}");
    }
}
