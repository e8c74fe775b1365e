//! `attn bench`: its records, its tables and its peers.

mod common;

use common::{attn, text};
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn one_json_object_a_line() {
    let arguments = ["bench", "--backend", "cpu", "--shape", "2,4,2,33,65,16", "--causal", "--seconds", "0.1", "--json"];
    for dtype in ["f32", "f16", "bf16"] {
        let told = attn(&[&arguments[..], &["--dtype", dtype]].concat()).ok();
        let lines: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [machine, line] = &lines[..] else { panic!("the machine and one candidate, {} lines", lines.len()) };
        assert!(
            machine["machine"].is_string()
                && machine["copy_gb_s"].as_f64() > Some(0.0)
                && machine["multiply_add_gflops"].as_f64() > Some(0.0)
        );
        assert_eq!(line["shape"], json!([2, 4, 2, 33, 65, 16]));
        assert_eq!((&line["adapter"], &line["op"], &line["dtype"]), (&json!("cpu"), &json!("fused"), &json!(dtype)));
        assert_eq!((&line["causal"], &line["checked"]), (&json!(true), &json!(true)));
        let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {line}"));
        assert!(number("n") >= 3.0 && number("ms_min") <= number("ms_median") && number("ms_median") <= number("ms_max"));
        let flops = 4.0 * (2 * 4 * 16 * (33..=65).sum::<u32>()) as f64; // row i sees 33 + i keys
        assert!((number("gflops") * number("ms_median") * 1e6 / flops - 1.0).abs() < 1e-6);
        let numbers = (2 * 4 * 33 * 16) * 2 + (2 * 2 * 65 * 16) * 2;
        assert_eq!(number("bytes"), (numbers * if dtype == "f32" { 4 } else { 2 }) as f64);
    }
}

#[test]
fn a_table_for_people() {
    let told = attn(&["bench", "--backend", "cpu", "--shape", "1,2,2,8,8,4", "--shape", "1,2,1,1,64,4", "--seconds", "0"]).ok();
    for part in ["1,2,2,8,8,4", "1,2,1,1,64,4", "median ms", "GFLOP/s"] {
        assert!(told.out.contains(part), "{}", told.out);
    }
}

#[test]
fn bad_shapes() {
    for (shape, culprit) in [
        ("", "no whole number"),
        ("1,2,3", "six are needed"),
        ("1,8,8,a,4,4", "`a`"),
        ("1,8,8,-1,4,4", "`-1`"),
        ("1,8,3,4,4,4", "num_kv_heads"),
        ("0,8,8,4,4,4", "batch"),
        ("1,8,8,4,4,0", "head_dim"),
        ("1,8,8,4,0,4", "nothing to time"),
        ("1,1,1,18446744073709551616,1,1", "no whole number"),
        ("4294967296,4294967296,4294967296,1,1,1", "overflows"),
        ("1,1,1,2147483647,2147483647,65536", ""),
        ("1024,1024,1024,65536,65536,64", "--shape"),
    ] {
        attn(&["bench", "--backend", "cpu", "--shape", shape]).refused(&["--shape", culprit]);
    }
    for seconds in ["-1", "NaN", "inf", "soon"] {
        attn(&["bench", "--seconds", seconds]).refused(&["--seconds"]);
    }
}

/// Writes a peer as a shell script to a folder whose path has no spaces, where commands are split. Returns its command.
fn peer(folder: &TempDir, name: &str, script: &str) -> String {
    let file = folder.path().join(name).with_extension("sh");
    std::fs::write(&file, script).expect("the temporary folder can be written");
    format!("sh {}", file.display())
}

#[test]
fn peers_are_checked_and_timed() {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let bench = |command: &str, more: &[&str]| {
        let arguments = ["bench", "--backend", "cpu", "--shape", "1,1,1,2,2,4", "--seconds", "0", "--compare", command];
        attn(&[&arguments[..], more].concat())
    };
    // This peer returns the values, which is wrong for two keys.
    let wrong = peer(
        &folder,
        "wrong",
        r#"of() { printf '%s' "$line" | sed "s/.*\"$1\":\"\([^\"]*\)\".*/\1/"; }
while read -r line; do case $line in
*prepare*) cp "$(of value)" "$(of output)"; echo '{"ok": true, "adapter": "a copier", "op": "copy"}' ;;
*) echo '{"ms": [1.0, 2.0]}' ;;
esac; done"#,
    );
    let told = bench(&wrong, &["--json"]).ok();
    let lines: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let [_, ours, theirs] = &lines[..] else { panic!("{}", told.out) };
    assert_eq!((&ours["peer"], &ours["checked"], &ours["wrong"]), (&json!(false), &json!(true), &json!(null)));
    assert_eq!((&theirs["peer"], &theirs["adapter"], &theirs["checked"]), (&json!(true), &json!("a copier"), &json!(false)));
    assert!(theirs["wrong"].is_string() && ours["ratio_to_best_peer"].as_f64() > Some(1.0));
    assert!(bench(&wrong, &[]).ok().out.contains("WRONG"));

    let unable = peer(&folder, "unable", r#"read -r line; echo '{"ok": false, "why": "too tired"}'; read -r line"#);
    assert!(bench(&unable, &[]).ok().err.contains("too tired"));
    for (name, script) in [("mute", "exit 0"), ("babbling", "read -r line; echo hello")] {
        assert_eq!(bench(&peer(&folder, name, script), &[]).code, Some(1), "{name}");
    }
    bench("no-such-program-anywhere", &[]).refused(&["--compare", "no-such-program"]);
}

#[test]
fn suites_and_reports() {
    attn(&["bench", "--suite", "no-such"]).refused(&["--suite", "no-such", "prefill"]);
    let told = attn(&["bench", "--backend", "cpu", "--suite", "scaling-decode-1k", "--seconds", "0", "--threads", "1", "--json"]).ok();
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let (record, page) = (folder.path().join("record.jsonl"), folder.path().join("page.html"));
    std::fs::write(&record, &told.out).expect("the temporary folder can be written");
    let (record, page) = (text(&record), text(&page));
    attn(&["report", record, "--out", page]).ok();
    let html = std::fs::read_to_string(page).expect("it was written");
    assert!(html.contains("<svg") && html.contains("scaling-decode-1k f32"));
    attn(&["report", page, "--out", page]).refused(&["line 1"]);
}

#[test]
fn steps_of_decoding() {
    let arguments = ["bench", "--decode", "--backend", "cpu", "--context", "64", "--heads", "4:2", "--head-dim", "32", "--seconds", "0.05"];
    let told = attn(&[&arguments[..], &["--json"]].concat()).ok();
    let lines: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let steps: Vec<&Value> = lines.iter().filter(|line| line["op"].is_string()).collect();
    assert_eq!(steps.len(), 4 * 2, "four storage types, contiguous and paged");
    for line in steps {
        let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {line}"));
        let number_bytes = match line["dtype"].as_str() {
            Some("f32") => 4.0,
            Some("f16") => 2.0,
            Some("q8") => 1.125,
            _ => 0.625,
        };
        assert_eq!(number("bytes"), 2.0 * 64.0 * 2.0 * 32.0 * number_bytes);
        assert!((number("gb_s") * number("ms_median") * 1e6 / number("bytes") - 1.0).abs() < 1e-6);
        assert!((number("of_copy") * number("copy_gb_s") / number("gb_s") - 1.0).abs() < 1e-6);
        assert_eq!(line["checked"], json!(true));
    }
    let told = attn(&[&arguments[..], &["--window", "9", "--cache", "q8"]].concat()).ok();
    for part in ["contiguous", "paged", "GB/s", "of a copy", "q8"] {
        assert!(told.out.contains(part), "{}", told.out);
    }
    for (name, bad) in [("--context", "0"), ("--context", "4m"), ("--heads", "8:3"), ("--heads", "8"), ("--cache", "int8")] {
        attn(&["bench", "--decode", name, bad]).refused(&[name]);
    }
    attn(&["bench", "--context", "4k"]).refused(&["--decode"]);
}
