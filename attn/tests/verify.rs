//! `attn verify`, `attn devices` and the tour.

mod common;

use common::{attn, command, folder, ran, text};
use serde_json::{Value, json};

fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Folder of the project's case files.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data");

#[test]
fn generated_problems_pass_on_the_cpu() {
    let told = attn(&["verify", "--backend", "cpu", "--count", "20", "--seed", "3"]).ok();
    let last = told.out.lines().last().expect("a last line");
    assert!(last.contains(" passed, 0 failed, "), "{last}");
    let told = attn(&["verify", "--backend", "cpu", "--count", "3", "--filter", "random-3-3", "--verbose"]).ok().out;
    assert!(told.contains("\n  gradients of random-3-3 on cpu: passed") && told.contains("  random-3-3 on cpu: passed"), "{told}");
    let told = lines(&attn(&["verify", "--backend", "cpu", "--count", "20", "--filter", "random", "--json"]).ok().out);
    let (counts, rows) = told.split_last().expect("the counts");
    let of = |suite: &'static str| rows.iter().filter(move |row| row["suite"] == suite && row["backend"] == "cpu");
    let derivatives = rows.iter().filter(|row| row["suite"] == "derivatives");
    let derivatives = derivatives.inspect(|row| assert_eq!(row["verdict"], "passed", "{row}")).count();
    assert_eq!(rows.len(), 40 + derivatives, "twenty cases, their gradients, and derivatives of users' terms");
    assert!(of("random").count() == 20 && of("random").all(|row| row["verdict"] == "passed"));
    assert!(of("gradients").count() == 20 && of("gradients").all(|row| row["verdict"] != "failed"));
    let passed = of("gradients").filter(|row| row["verdict"] == "passed").count();
    assert!(passed >= 15, "gradients of keys in pages or rotated are skipped, all others pass: {passed}");
    assert_eq!(*counts, json!({ "passed": 20 + passed + derivatives, "failed": 0, "skipped": 20 - passed }));
}

/// Texts of the user's own, on problems with many options: outputs, gradients and the derivative.
#[test]
fn users_terms_are_verified() {
    let folder = folder("own_terms");
    let [rates, right, wrong] = ["rates.npy", "right.wgsl", "wrong.wgsl"].map(|name| folder.join(name));
    std::fs::write(&rates, common::npy_f32(&[4], &[0.5, 1.0, 1.5, 2.0])).expect("written");
    let score = "fn score(x: f32, at: Pair) -> f32 { return rates[at.head] * tanh(x) + 0.1 * f32(at.key % 7); }";
    std::fs::write(&right, score).expect("written");
    let slope = "fn slope(x: f32, y: f32, at: Pair) -> f32 { return rates[at.head] * (1.0 - tanh(x)); }";
    std::fs::write(&wrong, format!("{score}\n{slope}")).expect("written");
    let table = format!("rates={}", text(&rates));
    let verify = |score: &str, others: &[&str]| {
        attn(&[&["verify", "--backend", "cpu", "--score", score, "--visible", "at.key != 3", "--table", &table], others].concat())
    };
    let told = lines(&verify(text(&right), &["--json"]).ok().out);
    let (counts, rows) = told.split_last().expect("the counts");
    let passed = |suite: &str| rows.iter().filter(|row| row["suite"] == suite && row["verdict"] == "passed").count();
    assert_eq!((passed("terms"), passed("derivatives")), (13, 13), "{counts}");
    assert!(passed("gradients") >= 12 && counts["failed"] == 0, "gradients of keys in pages are skipped: {counts}");
    let told = verify(text(&right), &["--filter", "varlen"]).ok().out;
    assert!(told.ends_with("3 passed, 0 failed, 0 skipped\n"), "{told}");

    let told = verify(text(&wrong), &["--filter", "varlen"]);
    assert_eq!(told.code, Some(1), "{}", told.out);
    for part in ["FAILED", "slope", "x = ", "head ", "(1.0 - tanh(x))"] {
        assert!(told.out.contains(part), "`{part}` is not in: {}", told.out);
    }
    verify(text(&right), &["--count", "3"]).refused(&["--count", "--score"]);
    verify(text(&right), &["--cases", DATA]).refused(&["--cases"]);
    verify("y + rates[0]", &[]).refused(&["--score", "column 1"]);
    attn(&["verify", "--table", &table]).refused(&["--table rates"]);
}

#[test]
fn case_files_pass_on_the_cpu_and_the_skipped_say_why() {
    let told = lines(&attn(&["verify", "--backend", "cpu", "--backend", "oracle", "--cases", DATA, "--json"]).ok().out);
    let (counts, rows) = told.split_last().expect("the counts");
    assert_eq!(counts["failed"], 0);
    assert!(counts["passed"].as_u64().expect("a number") > 0);
    for row in rows.iter().filter(|row| row["verdict"] == "skipped") {
        assert_ne!(row["why"], "", "{row}");
    }
}

#[test]
fn a_wrong_answer_in_a_case_file_fails() {
    let folder = folder("wrong_case");
    let path = folder.join("minilm.safetensors");
    let mut bytes = std::fs::read(format!("{DATA}/minilm/minilm_layer0_block.safetensors")).expect("there");
    // The last tensor is an expected output in f32; this bit is in the exponent of its last element.
    let last = bytes.len() - 1;
    bytes[last] ^= 0x02;
    std::fs::write(&path, &bytes).expect("written");
    let told = attn(&["verify", "--backend", "cpu", "--cases", text(&folder)]);
    assert_eq!(told.code, Some(1), "{}", told.out);
    assert!(told.out.contains("FAILED") && told.out.ends_with("0 passed, 1 failed, 0 skipped\n"), "{}", told.out);
    assert!(told.err.contains("1 of 1 checks failed"), "{}", told.err);

    std::fs::write(&path, &bytes[..1000]).expect("written");
    assert_eq!(attn(&["verify", "--backend", "cpu", "--cases", text(&folder)]).code, Some(1), "a file cut short is a failure");
}

#[test]
fn bad_input() {
    let folder = folder("no_cases");
    attn(&["verify", "--backend", "cpu", "--cases", text(&folder)]).refused(&["no_cases"]);
    attn(&["verify", "--backend", "cpu", "--cases", "/nowhere/at/all"]).refused(&["/nowhere/at/all"]);
    attn(&["verify", "--backend", "cpu", "--filter", "no such case"]).refused(&["--filter", "no such case"]);
    attn(&["verify", "--backend", "no-such-adapter"]).refused(&["no-such-adapter"]);
    attn(&["verify", "--count", "-1"]).refused(&["--count"]);
    for ignored in [&["--checked"][..], &["--algorithm", "fused"]] {
        attn(&[&["verify", "--backend", "cpu"], ignored].concat()).refused(&[ignored[0], "--backend"]);
    }
}

#[test]
fn devices_say_what_would_be_chosen() {
    let told = attn(&["devices", "--json"]).ok().json();
    let adapters = told["adapters"].as_array().expect("a list");
    let chosen: Vec<_> = adapters.iter().filter(|adapter| adapter["would_be_chosen"] == true).collect();
    assert!(chosen.len() <= 1);
    assert!(adapters.iter().all(|adapter| adapter["verdict"] != "" && adapter["limits"]["max_buffer_size"].as_u64() > Some(0)));
    let name = told["chosen"]["name"].as_str().expect("something is always chosen");
    match &chosen[..] {
        [adapter] => assert!(name.starts_with(adapter["name"].as_str().expect("a name"))),
        _ => assert_eq!(name, "cpu"),
    }
    let text = attn(&["devices"]).ok().out;
    assert!(text.contains("CPU path") && text.contains(&format!("By default: {name}")), "{text}");

    let told = ran(command(&["devices"]).env("WGPU_ADAPTER_NAME", "no such adapter").output().expect("the program starts"));
    assert_eq!(told.code, Some(2), "{}", told.err);
    assert!(told.err.contains("WGPU_ADAPTER_NAME"), "{}", told.err);
}

#[test]
fn the_tour_ends_well() {
    let told = attn(&[]).ok().out;
    for part in ["0.3989", "A dozen random problems", " 0 failed", "GFLOP/s", "Where to go next"] {
        assert!(told.contains(part), "`{part}` is not in: {told}");
    }
}
