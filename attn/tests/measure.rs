//! `attn measure`: one folder with everything, whatever fails on the way.

mod common;

use common::{attn, text};
use serde_json::Value;

#[test]
fn a_folder_with_everything() {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let out = folder.path().join("record");
    let only = ["devices", "tune 1,64,8,4", "kv-cache", "ggml-decode-1"].map(|step| ["--only", step]).concat();
    let told = attn(&[&["measure", "--backend", "vulkan", "--minutes", "20", "--out", text(&out)], &only[..]].concat()).ok();
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let lines: Vec<Value> = read("bench.jsonl").lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let timed: Vec<&Value> = lines.iter().filter(|line| line["shape"].is_array()).collect();
    let ops: Vec<&str> = timed.iter().filter_map(|line| line["op"].as_str()).collect();
    assert_eq!(ops, ["fused", "fused, tuned"]);
    for line in &timed {
        let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {line}"));
        assert!(0.0 < number("device_ms_min") && number("device_ms_min") <= number("device_ms_median"));
        let flops = number("gflops") * number("ms_median");
        assert!((number("device_gflops") * number("device_ms_median") / flops - 1.0).abs() < 1e-6);
    }
    let summary = read("README.md");
    assert_eq!(told.out, summary);
    for part in ["`attn verify` did not run", "| ggml-decode-1 | fused |", "| ggml-decode-1 | fused, tuned |", "A step of decoding"] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    assert!(read("kernels.tsv").lines().count() > 0 && read("report.html").contains("ggml-decode-1"));
    assert!(serde_json::from_str::<Value>(&read("devices.json")).is_ok());
}

/// A step that fails costs itself: the others are measured, and the folder says so.
#[test]
fn what_fails_is_named() {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let arguments = ["measure", "--backend", "vulkan", "--only", "ggml-decode-1 --tuned", "--out", text(folder.path())];
    let told = attn(&arguments);
    assert_eq!(told.code, Some(1), "{}", told.err);
    let summary = std::fs::read_to_string(folder.path().join("README.md")).expect("written all the same");
    // Nothing was tuned before.
    assert!(summary.contains("Not measured") && summary.contains("- ggml-decode-1 --tuned: exit"), "{summary}");
    assert!(told.err.contains("kernels.tsv"), "{}", told.err);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    attn(&["measure", "--backend", "cpu"]).refused(&["--backend cpu", "attn devices"]);
    attn(&["measure", "--backend", "vulkan", "--only", "no such"]).refused(&["--only no such", "ggml-decode-1"]);
    attn(&["measure", "--minutes", "0"]).refused(&["--minutes", "0.2"]);
}
