//! `attn shader`: kernels of a plan, as text.

mod common;

use common::attn;

#[test]
fn kernels_as_text() {
    let plain = attn(&["shader", "--shape", "1,2,2,64,64,16"]).ok();
    assert!(plain.out.contains("fn main(") && plain.out.contains("@compute"), "{}", plain.out);
    assert!(plain.err.contains("1,2,2,64,64,16"), "{}", plain.err);
    let causal = attn(&["shader", "--shape", "1,2,2,64,64,16", "--causal"]).ok();
    let term = attn(&["shader", "--shape", "1,2,2,64,64,16", "--term", "causal=bottom-right"]).ok();
    assert_eq!((&causal.out, &causal.err), (&term.out, &term.err));
    assert!(causal.err.contains("causal=bottom-right"), "{}", causal.err);
    let capped = attn(&["shader", "--shape", "1,2,2,64,64,16", "--term", "softcap=30"]).ok();
    assert!(capped.out.contains("softcap_score") && !plain.out.contains("softcap_score"));
}

#[test]
fn terms_are_in_the_kernels() {
    let score = "x - slopes[at.head] * f32(abs(at.position - at.key)) + 0.0078125";
    for more in [&[][..], &["--backward"], &["--class", "software"], &["--subgroups", "32"], &["--algorithm", "staged"]] {
        let arguments = ["shader", "--score", score, "--table", "slopes=0*8:f32"];
        let told = attn(&[&arguments[..], more].concat()).ok();
        assert!(told.out.contains("0.0078125"), "{more:?}: {}", told.out);
    }
    attn(&["shader", "--score", score]).refused(&["--score", "line 1, column 5", "--table slopes="]);
    attn(&["shader", "--score", score, "--table", "slopes=0*8:f64"]).refused(&["--table slopes=0*8:f64", "f32"]);
    attn(&["shader", "--score", score, "--table", "slopes=0*0:f32"]).refused(&["--score", "slopes"]);
    attn(&["shader", "--visible", "at.key <"]).refused(&["--visible"]);
}

#[test]
fn bad_requests() {
    attn(&["shader", "--shape", "1,2,2,8,8,4", "--shape", "1,2,2,8,8,4"]).refused(&["--shape", "twice"]);
    attn(&["shader", "--term", "windows=3"]).refused(&["--term windows=3"]);
    attn(&["shader", "--causal", "--align", "0"]).refused(&["--align"]);
    attn(&["shader", "--subgroups", "33"]).refused(&["--subgroups"]);
    attn(&["shader", "--class", "quantum"]).refused(&["--class", "discrete"]);
    attn(&["shader", "--shape", "1,1,1,8,8,65536", "--algorithm", "fused"]).refused(&["max_compute_workgroup_storage_size"]);
}
