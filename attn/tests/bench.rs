//! `attn bench` times what it says it times.

mod common;

use common::attn;
use serde_json::{Value, json};

#[test]
fn one_json_object_a_line() {
    let arguments = ["bench", "--backend", "cpu", "--shape", "2,4,2,33,65,16", "--causal", "--seconds", "0.1", "--json"];
    for dtype in ["f32", "f16", "bf16"] {
        let told = attn(&[&arguments[..], &["--dtype", dtype]].concat()).ok();
        let lines: Vec<Value> = told.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let [line] = &lines[..] else { panic!("one candidate, {} lines", lines.len()) };
        assert_eq!(line["shape"], json!([2, 4, 2, 33, 65, 16]));
        assert_eq!((&line["adapter"], &line["op"], &line["dtype"]), (&json!("cpu"), &json!("fused"), &json!(dtype)));
        assert_eq!((&line["causal"], &line["checked"]), (&json!(true), &json!(true)));
        let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {line}"));
        assert!(number("n") >= 3.0 && number("ms_min") <= number("ms_median") && number("ms_median") <= number("ms_max"));
        let flops = 4.0 * (2 * 4 * 33 * 65 * 16) as f64 / 2.0;
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
