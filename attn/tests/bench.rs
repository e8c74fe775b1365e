//! `attn bench`: its records, its tables and its peers.

mod common;

use std::collections::BTreeSet;

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
fn terms_in_wgsl_are_checked_and_timed() {
    // Masks and scores that depend on everything that a checked row could lose: its item, its heads, its place.
    let visible = "fn visible(at: Pair) -> bool { return at.key <= at.position && (at.key + at.row + at.kv_head) % 5 != at.batch; }";
    let score = "x * (1.0 + 0.25 * f32(at.head)) + rates[at.len_q % 3] * f32(at.row - at.key) // no slope";
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let rates = folder.path().join("rates.npy");
    std::fs::write(&rates, common::npy_f32(&[3], &[0.01, 0.02, 0.03])).expect("written");
    let table = format!("rates={}", text(&rates));
    let peer = peer(
        &folder,
        "peer",
        r#"read -r line; case $line in *'visible in WGSL'*) echo '{"ok": false, "why": "no WGSL"}';; esac; read -r line"#,
    );
    let arguments = ["bench", "--backend", "cpu", "--shape", "2,4,2,61,67,8", "--seconds", "0", "--json", "--compare", &peer];
    let terms = ["--visible", visible, "--score", score, "--table", &table];
    for more in [&[][..], &["--backward"]] {
        let told = attn(&[&arguments[..], &terms, more].concat()).ok();
        let line: Value = serde_json::from_str(told.out.lines().last().expect("a line")).expect("JSON");
        assert_eq!(line["terms"], json!([format!("score in WGSL: {score}"), format!("visible in WGSL: {visible}")]));
        assert_eq!(line["checked"], json!(true));
        assert!(told.err.contains("left out: no WGSL"), "{}", told.err);
    }
    attn(&["bench", "--suite", "llama", "--visible", "true"]).refused(&["--visible", "--shape"]);
    attn(&["bench", "--visible", "at.key <"]).refused(&["--visible", "at the end"]);
}

#[test]
fn bad_shapes() {
    for (shape, culprit) in [
        ("", "not a whole number"),
        ("1,2,3", "six are needed"),
        ("1,8,8,a,4,4", "`a`"),
        ("1,8,8,-1,4,4", "`-1`"),
        ("1,8,3,4,4,4", "num_kv_heads"),
        ("0,8,8,4,4,4", "batch"),
        ("1,8,8,4,4,0", "head_dim"),
        ("1,8,8,4,0,4", "nothing to compute"),
        ("1,1,1,18446744073709551616,1,1", "not a whole number"),
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

const RECORD: &str = r#"{"machine": "M <1>", "threads": 2, "os": "linux", "date": "2026-01-02", "copy_gb_s": 20.0, "read_gb_s": {"16 KiB": 200.0, "128 MiB": 30.0}, "multiply_add_gflops": 300.0, "matrix_gflops": 4000.0}
{"name": "scaling-prefill-256", "op": "fused", "adapter": "cpu", "dtype": "f32", "shape": [1,8,8,256,256,64], "ms_min": 1, "ms_median": 2, "ms_max": 3, "gflops": 67.1, "bytes": 2097152, "peak_bytes": 9000000, "extra_bytes": 4500000, "peer": false, "checked": true, "ratio_to_best_peer": 1.25}
{"name": "scaling-prefill-512", "op": "fused", "adapter": "cpu", "dtype": "f32", "shape": [1,8,8,512,512,64], "ms_min": 4, "ms_median": 8, "ms_max": 9, "gflops": 67.1, "bytes": 4194304, "peak_bytes": 9900000, "peer": false, "checked": true}
{"name": "scaling-prefill-512", "op": "fused", "adapter": "cpu", "dtype": "f32", "threads": 1, "shape": [1,8,8,512,512,64], "ms_min": 9, "ms_median": 15, "ms_max": 19, "gflops": 35.8, "bytes": 4194304, "peak_bytes": 9900000, "peer": false, "checked": true}
{"name": "scaling-batch-2", "op": "fused", "adapter": "cpu", "dtype": "f32", "shape": [2,8,8,512,512,64], "ms_min": 9, "ms_median": 16, "ms_max": 19, "gflops": 67.1, "bytes": 8388608, "peak_bytes": 9900000, "peer": false, "checked": true}
{"name": "scaling-prefill-512", "op": "sdpa", "adapter": "peer", "dtype": "f32", "shape": [1,8,8,512,512,64], "ms_min": 4, "ms_median": 8, "ms_max": 9, "gflops": 67.1, "bytes": 4194304, "peer": true, "checked": false}
{"name": "scaling-decode-1k", "op": "sdpa", "adapter": "exact enough", "dtype": "f32", "shape": [1,8,8,1,1024,64], "ms_min": 0.04, "ms_median": 0.04, "ms_max": 0.05, "gflops": 52.1, "bytes": 4198400, "peer": true, "checked": true, "error_of_bound": 2.345}"#;

#[test]
fn suites_and_reports() {
    attn(&["bench", "--suite", "no-such"]).refused(&["--suite", "no-such", "prefill"]);
    let told = attn(&["bench", "--backend", "cpu", "--suite", "scaling-decode-1k", "--seconds", "0", "--threads", "1", "--json"]).ok();
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let (record, page) = (folder.path().join("record.jsonl"), folder.path().join("page.html"));
    let report = |text: &str| {
        std::fs::write(&record, text).expect("the temporary folder can be written");
        attn(&["report", common::text(&record), "--out", common::text(&page)])
    };
    report(&told.out).ok();
    let read = || std::fs::read_to_string(&page).expect("it was written");
    assert!(read().contains("<svg") && read().contains("scaling-decode-1k f32"));
    report(RECORD).ok();
    for part in [
        "M &lt;1&gt;, 2 threads",
        "1.25x",
        "wrong answer",
        "error 2.3 x the bound",
        "Roofline",
        "bf16 reach 4000 GFLOP/s",
        "read from a cache",
        "limit of the first cache",
        "<td>4.5<td>1.25x",
        "Memory against length",
        "Time against heads",
        "Time against threads",
        "scaling-prefill-512 f32 with --threads 1",
        "fused on cpu",
    ] {
        assert!(read().contains(part), "{part}");
    }
    // Points have the colours of the bars, one for each candidate.
    let colours = |element: &str| {
        let html = read();
        let fills = html.split(element).skip(1).filter_map(|part| part.split("fill=\"").nth(1)?.split('"').next().map(String::from));
        fills.filter(|fill| !["none", "#FFFFFF", "#000000"].contains(&fill.as_str())).collect::<BTreeSet<_>>()
    };
    assert_eq!(colours("<rect").len(), 3);
    assert!(!colours("<circle").is_empty() && colours("<circle").is_subset(&colours("<rect")));
    for bad in ["", "{}", "nonsense", "{\"machine\": \"m\"}", "{\"name\": \"x\", \"shape\": [1]}"] {
        report(bad).refused(&["record.jsonl"]);
    }
    let record = common::text(&record);
    attn(&["report", record, "--out", record]).refused(&["record.jsonl", "an input too"]);
}

#[test]
fn options_that_would_be_ignored_are_refused() {
    for (arguments, culprit) in [
        (&["--overheads", "--shape", "1,1,1,1,1,4"][..], "--shape"),
        (&["--overheads", "--seconds", "1"], "--seconds"),
        (&["--overheads", "--decode"], "--decode"),
        (&["--decode", "--causal"], "--causal"),
        (&["--decode", "--dtype", "f16"], "--dtype"),
        (&["--suite", "bert", "--causal"], "--causal"),
        (&["--backend", "cpu", "--tuned", "kernels.tsv"], "--tuned"),
        (&["--dtype", "q8"], "--dtype"),
        (&["--threads", "0"], "--threads"),
    ] {
        attn(&[&["bench"], arguments].concat()).refused(&[culprit]);
    }
}

#[test]
fn tuning_keeps_its_file() {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let file = folder.path().join("kernels.tsv");
    let tune = |more: &[&str]| attn(&[&["tune", "--backend", "vulkan", "--shape", "1,1,1,16,16,16", "--out", text(&file)], more].concat());
    std::fs::write(&file, "my notes\n").expect("written");
    tune(&[]).refused(&["kernels.tsv", "line 1", "attn tune"]);
    assert_eq!(std::fs::read_to_string(&file).expect("there"), "my notes\n");
    attn(&["tune", "--backend", "vulkan", "--out", "/nowhere/kernels.tsv"]).refused(&["/nowhere"]);
    let devices = attn(&["devices", "--json"]).ok().json();
    let adapters = devices["adapters"].as_array().expect("a list");
    if !adapters.iter().any(|adapter| adapter["backend"] == "vulkan") {
        eprintln!("not tuned: there is no Vulkan adapter");
        return;
    }
    // Another device's entry stays, and so does an earlier winner that was not tried.
    let foreign = "another adapter\t0.0.0\tclass\tkernel\n";
    std::fs::write(&file, foreign).expect("written");
    let told = tune(&["--seconds", "2", "--json"]).ok().json();
    let own = std::fs::read_to_string(&file).expect("there").strip_prefix(foreign).expect("kept").to_string();
    let winner = told["winner"].as_str().expect("a kernel");
    assert!(own.ends_with(&format!("\t{winner}\n")), "{own}");
    let trials = told["trials"].as_array().expect("a list");
    let other = trials.last().and_then(|trial| trial["kernel"].as_str()).filter(|_| trials.len() > 1).expect("several kernels");
    std::fs::write(&file, own.replace(winner, other)).expect("written");
    let told = tune(&["--seconds", "0", "--json"]).ok();
    assert_eq!(told.json()["winner"], other, "{}", told.err);
    assert!(std::fs::read_to_string(&file).expect("there").contains(other));
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
    for (name, bad) in [
        ("--context", "0"),
        ("--context", "4m"),
        ("--heads", "8:3"),
        ("--heads", "8"),
        ("--cache", "int8"),
        ("--rows", "0"),
        ("--rows", "257"),
    ] {
        attn(&["bench", "--decode", name, bad]).refused(&[name]);
    }
    attn(&["bench", "--decode", "--backend", "cpu", "--context", "64", "--rows", "65"]).refused(&["--rows 65", "--context 64"]);
    attn(&["bench", "--context", "4k"]).refused(&["--decode"]);
    attn(&["bench", "--tree"]).refused(&["--decode"]);
}

/// Steps of many rows, causal and as a tree of drafts, on every backend.
#[test]
fn steps_of_trees() {
    let arguments = ["bench", "--decode", "--context", "96", "--heads", "4:2", "--head-dim", "32", "--seconds", "0", "--json"];
    for (rows, extra) in [(5, &["--cache", "q8"][..]), (40, &["--cache", "f16:q4+hadamard", "--window", "50"])] {
        let told = attn(&[&arguments[..], &["--rows", &rows.to_string(), "--tree"], extra].concat()).ok();
        let lines: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let steps: Vec<&Value> = lines.iter().filter(|line| line["op"].is_string()).collect();
        for kind in ["contiguous", "contiguous tree", "paged", "paged tree"] {
            let of_kind = steps.iter().filter(|line| line["op"] == format!("decode {kind}"));
            let right = of_kind.filter(|line| line["rows"] == json!(rows) && line["checked"] == json!(true));
            assert!(right.count() * 4 == steps.len() && !steps.is_empty(), "{kind}: {}", told.out);
        }
    }
}

#[test]
fn first_calls_are_told_by_phase() {
    let devices = attn(&["devices", "--json"]).ok().json();
    let adapters = devices["adapters"].as_array().expect("a list");
    if !adapters.iter().any(|adapter| adapter["backend"] == "vulkan") {
        eprintln!("not timed: there is no Vulkan adapter");
        return;
    }
    let line = attn(&["bench", "--overheads", "--backend", "vulkan", "--json"]).ok().json();
    let first = &line["first_calls"];
    let calls = first["calls"].as_array().expect("a list");
    assert_eq!(calls.len(), 9);
    for (number, call) in calls.iter().enumerate() {
        let phases = call["phases_ms"].as_object().expect("a map");
        let total: f64 = phases.values().map(|ms| ms.as_f64().expect("a number")).sum();
        assert!(total > 0.0 && total <= call["ms"].as_f64().expect("a number"), "{call}");
        let kernels = call["kernels"].as_array().expect("a list");
        assert_eq!(kernels.is_empty(), number % 3 > 0, "the first call compiles, the others do not: {call}");
        assert!(kernels.iter().all(|kernel| kernel["first_run_ms"].as_f64() > Some(0.0)), "{call}");
        for (phase, of_kernel) in [("text", "text_ms"), ("parse", "parse_ms"), ("pipeline", "pipeline_ms")] {
            let sum: f64 = kernels.iter().map(|kernel| kernel[of_kernel].as_f64().expect("a number")).sum();
            assert!((sum - phases[phase].as_f64().expect("a number")).abs() < 1e-3, "{call}");
        }
    }
    let compiled: Vec<_> =
        first["compiling"].as_array().expect("a list").iter().map(|at| at["kernels"].as_u64().expect("a number")).collect();
    assert!(!compiled.is_empty() && compiled.iter().sum::<u64>() <= 6, "lengths share their kernels: {first}");
}

#[test]
fn processes_share_a_folder_of_pipelines() {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let run = || {
        let mut command = common::command(&["bench", "--backend", "vulkan", "--shape", "1,1,1,4,4,4", "--fused", "--seconds", "0"]);
        command.env("WGPU_ATTENTION_PIPELINE_CACHE", folder.path().join("pipelines")).env("RUST_LOG", "wgpu_attention=info");
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().expect("it starts")
    };
    let told = |child: std::process::Child| {
        let output = child.wait_with_output().expect("it ends");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text.split_once(" bytes of pipelines").map(|(before, _)| before.rsplit(' ').next() == Some("0")), text)
    };
    let (ran, is_new, text) = told(run());
    if !ran || is_new.is_none() {
        assert!(text.contains("adapter") || text.contains("not kept"), "{text}");
        eprintln!("not tested: no Vulkan adapter with pipeline caches");
        return;
    }
    assert_eq!(is_new, Some(true), "{text}");
    std::fs::remove_dir_all(folder.path().join("pipelines")).expect("created");
    for (ran, is_new, text) in [(); 4].map(|()| run()).map(told) {
        assert!(ran && is_new.is_some(), "{text}");
    }
    assert_eq!(told(run()).1, Some(false), "whoever wrote last wrote a whole file");
    assert_eq!(std::fs::read_dir(folder.path().join("pipelines")).expect("there").count(), 1, "nothing else is left");
}
