//! The soak passes, does what it says, and finds planted mistakes.

use std::process::Command;

use serde_json::Value;

/// Runs the soak. Returns its exit code and a JSON object for each cache.
fn soak(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let run = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["soak", "--json"]).args(arguments).output();
    let run = run.expect("the program starts");
    let out = String::from_utf8(run.stdout).expect("UTF-8");
    let lines = out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"))).collect();
    (run.status.code(), lines)
}

/// The CPU path and every adapter; pages run out, requests are refused, rows are compared.
#[test]
fn sequences_live_as_the_model_says() {
    let (code, lines) = soak(&[]);
    assert_eq!(code, Some(0), "{lines:#?}");
    assert!(!lines.is_empty() && lines.len().is_multiple_of(3), "three caches a backend: {lines:#?}");
    for line in &lines {
        for (name, least) in
            [("tokens", 500), ("forked", 2), ("truncated", 1), ("kept", 1), ("ended", 5), ("refused", 30), ("full", 1), ("rows", 50)]
        {
            assert!(line["counts"][name].as_u64() >= Some(least), "{name}: {line:#?}");
        }
    }
}

#[test]
fn planted_mistakes_are_found() {
    for (plant, report) in [
        ("uncopied", "are another token's"),
        ("alias", "tokens instead of"),
        ("lost", "a page is lost"),
        ("beside", "are another token's"),
        ("wrong", "the output at"),
    ] {
        let (code, lines) = soak(&["--backend", "cpu", "--steps", "1000", "--plant", plant]);
        assert_eq!((code, lines.len()), (Some(1), 3), "{plant}: {lines:#?}");
        let found = |line: &Value| line["wrong"].as_str().is_some_and(|why| why.contains(report));
        assert!(lines.iter().all(|line| line["wrong"].is_string()) && lines.iter().any(found), "{plant}: {lines:#?}");
    }
}
