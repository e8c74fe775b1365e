//! `attn run` with hostile input: always exit code 2, always the culprit's name, never a panic.

mod common;

use std::path::PathBuf;

use common::{attn, folder, npy, npy_f32, npy_i64, text};

struct Files(PathBuf);

/// Writes q.npy, k.npy and v.npy, all [1, 2, 3, 4].
fn files(name: &str) -> Files {
    let files = Files(folder(name));
    for name in ["q", "k", "v"] {
        files.write(&format!("{name}.npy"), &npy_f32(&[1, 2, 3, 4], &[0.5; 24]));
    }
    files
}

impl Files {
    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).expect("written");
    }

    fn refused(&self, more: &[&str], culprits: &[&str]) {
        let [q, k, v, o] = ["q.npy", "k.npy", "v.npy", "o.npy"].map(|name| text(&self.0.join(name)).to_string());
        let base = ["run", "--query", &q, "--key", &k, "--value", &v, "--out", &o, "--backend", "cpu"];
        attn(&[&base[..], more].concat()).refused(culprits);
        assert!(!self.0.join("o.npy").exists(), "nothing is written");
    }

    fn path(&self, name: &str) -> String {
        text(&self.0.join(name)).to_string()
    }
}

#[test]
fn broken_files() {
    let files = files("broken");
    let whole = npy_f32(&[1, 2, 3, 4], &[0.5; 24]);
    let huge = u64::MAX.to_string();
    let header = |length: u32, text: &[u8]| [b"\x93NUMPY\x02\x00", &length.to_le_bytes()[..], text].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "not an .npy file"),
        (b"hello".to_vec(), "not an .npy file"),
        (whole[..7].to_vec(), "cut short inside its header"),
        (whole[..40].to_vec(), "cut short inside its header"),
        (whole[..whole.len() - 1].to_vec(), "cut short: shape [1, 2, 3, 4] needs 96 bytes"),
        (header(u32::MAX, b"{}"), "header of 4294967295 bytes"),
        (header(5000, &[b'('; 5000]), "a plain array"),
        (header(2, b"{}"), "not an array"),
        (npy("<f4", false, &format!("({huge}, {huge}, 4, 4)"), &[]), "more than any memory holds"),
        (npy("<f4", false, &format!("({huge}, 0, 4, 4)"), &[]), ""),
        (npy("<f4", false, "(1099511627776, 2, 3, 4)", &[0; 96]), "cut short"),
        (npy("<f4", false, "(-1, 2, 3, 4)", &[0; 96]), "negative"),
        (npy("<f4", false, "(99999999999999999999999, 2)", &[0; 96]), "not an array"),
        (npy("<f8", false, "(1, 2, 3, 4)", &[0; 192]), "astype(np.float32)"),
        (npy("<i2", false, "(1, 2, 3, 4)", &[0; 48]), "'<i2'"),
        (npy("<i4", false, "(1, 2, 3, 4)", &[0; 96]), "is integer; float32"),
        (npy("|O", false, "(1, 2, 3, 4)", &[0; 96]), "|O"),
        (npy("|b1", false, "(1, 2, 3, 4)", &[1; 24]), "is bool"),
    ];
    for (bytes, culprit) in cases {
        files.write("k.npy", &bytes);
        files.refused(&[], &["k.npy", culprit]);
    }
    std::fs::remove_file(files.0.join("k.npy")).expect("removed");
    files.refused(&[], &["k.npy", "No such file"]);
    std::fs::create_dir(files.0.join("k.npy")).expect("made");
    files.refused(&[], &["k.npy", "not a regular file"]);
}

#[test]
fn wrong_shapes() {
    let files = files("shapes");
    let cases: &[(&str, &[usize], &[&str])] = &[
        ("q", &[6, 4], &["q.npy", "[6, 4]", "[batch, heads, seq, dim]"]),
        ("q", &[], &["q.npy", "[]"]),
        ("q", &[1, 1, 2, 3, 4], &["q.npy", "[1, 1, 2, 3, 4]"]),
        ("k", &[2, 3, 4], &["k.npy", "3 axes", "q.npy"]),
        ("k", &[1, 2, 3, 5], &["k.npy", "axis 3 (dim) is 5", "q.npy has 4"]),
        ("k", &[2, 2, 3, 4], &["k.npy", "axis 0 (batch) is 2"]),
        ("v", &[1, 2, 5, 4], &["v.npy", "axis 2 (seq) is 5", "k.npy has 3"]),
        ("v", &[1, 1, 3, 4], &["v.npy", "axis 1 (heads) is 1"]),
        ("q", &[1, 3, 3, 4], &["q.npy", "3 heads", "k.npy"]),
        ("q", &[0, 2, 3, 4], &["q.npy", "axis 0 (batch) is 0"]),
        ("q", &[1, 0, 3, 4], &["q.npy", "axis 1 (heads) is 0"]),
        ("k", &[1, 2, 3, 0], &["k.npy", "axis 3 (dim) is 0"]),
    ];
    for &(name, shape, culprits) in cases {
        let file = format!("{name}.npy");
        files.write(&file, &npy_f32(shape, &vec![0.5; shape.iter().product()]));
        files.refused(&[], culprits);
        files.write(&file, &npy_f32(&[1, 2, 3, 4], &[0.5; 24]));
    }
}

#[test]
fn wrong_options() {
    let files = files("options");
    let (mask, bias) = (files.path("m.npy"), files.path("b.npy"));
    files.write("m.npy", &npy_f32(&[3, 3], &[1.0; 9]));
    files.refused(&["--mask", &mask], &["m.npy", "f32", "bool", "--bias"]);
    files.write("m.npy", &npy("|b1", false, "(3, 4)", &[1; 12]));
    files.refused(&["--mask", &mask], &["m.npy", "[3, 4]", "does not broadcast", "[1, 2, 3, 3]"]);
    files.write("m.npy", &npy("|b1", false, "(1, 1, 1, 3, 3)", &[1; 9]));
    files.refused(&["--mask", &mask], &["m.npy", "does not broadcast"]);
    files.write("b.npy", &npy("|b1", false, "(3, 3)", &[1; 9]));
    files.refused(&["--bias", &bias], &["b.npy", "is bool"]);
    files.refused(&["--mask", "nowhere.npy"], &["nowhere.npy"]);
    // Data of the wrong kind, of the wrong shape, out of range.
    files.write("i.npy", &npy_i64(&[2], &[2, -1]));
    let integers = files.path("i.npy");
    files.refused(&["--sinks", &integers], &["i.npy", "is integer; float32"]);
    files.refused(&["--kv-lengths", &integers], &["i.npy", "[2]", "[batch] = [1]"]);
    files.refused(&["--prefix-lengths", &mask], &["m.npy", "[batch]"]);
    files.write("i.npy", &npy_i64(&[], &[-1]));
    files.refused(&["--kv-lengths", &integers], &["i.npy", "-1 is out of range"]);
    files.write("i.npy", &npy_i64(&[1], &[4]));
    files.refused(&["--kv-lengths", &integers], &["--kv-lengths", "length 4"]);
    files.refused(&["--relative-bias", &integers], &["i.npy", "max_distance"]);
    // Options that would be ignored.
    files.refused(&["--segment-ids-kv", &integers], &["--segment-ids-kv", "no --segment-ids"]);
    files.refused(&["--alibi-form", "signed"], &["--alibi-form", "--alibi"]);
    files.refused(&["--dropout-seed", "1"], &["--dropout"]);
    files.refused(&["--scores-at", "raw"], &["--scores"]);
    files.refused(&["--align", "top-left"], &["--align"]);
    files.refused(&["--d-output", &integers], &["--gradients"]);
    files.refused(&["--gradients", &files.path("gradients")], &["--gradients", "--d-output"]);
    for (option, values) in [
        ("--scale", &["nan", "inf", "-inf", "1e39", "much"][..]),
        ("--softcap", &["nan", "0", "-1", "inf"]),
        ("--dropout", &["nan", "1", "-0.5", "half"]),
        ("--causal", &["", "yes", "1.5", "99999999999"]),
        ("--window", &["", "1", "1,2,3", "-1,2", "a,b", "99999999999,1"]),
        ("--layout", &["sbhd"]),
        ("--backend", &["", "no-such-adapter-anywhere"]),
    ] {
        for value in values {
            files.refused(&[option, value], &[option]);
        }
    }
    files.write("k.npy", &npy_f32(&[1, 2, 5, 4], &[0.5; 40]));
    files.write("v.npy", &npy_f32(&[1, 2, 5, 4], &[0.5; 40]));
    files.refused(&["--window", "1,1"], &["--window", "3 queries and 5 keys", "--align"]);
    files.refused(&["--lse", "/nowhere/lse.npy"], &["/nowhere"]);
    files.refused(&["--weights", "weights.txt"], &["weights.txt", ".npy"]);
}

#[test]
fn no_output_replaces_an_input_or_another_output() {
    let files = files("apart");
    let before = std::fs::read(files.path("q.npy")).expect("there");
    let other_name = format!("{}/../apart/q.npy", files.0.display());
    for option in ["--lse", "--weights", "--stats", "--scores"] {
        files.refused(&[option, &other_name], &["q.npy", "an input too"]);
        files.refused(&[option, &files.path("o.npy")], &["o.npy", "two results"]);
    }
    files.write("d_query.npy", &before);
    let folder = text(&files.0);
    files.refused(&["--d-output", &files.path("d_query.npy"), "--gradients", folder], &["d_query.npy", "an input too"]);
    files.refused(&["--d-output", &files.path("q.npy"), "--gradients", &files.path("k.npy")], &["k.npy", "is not a folder"]);
    assert_eq!(std::fs::read(files.path("q.npy")).expect("there"), before);
}

#[test]
fn broken_safetensors() {
    let folder = folder("broken_safetensors");
    let [input, out] = ["in.safetensors", "out.safetensors"].map(|name| text(&folder.join(name)).to_string());
    let header = |text: &str, data: usize| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &vec![0; data]].concat();
    let tensor =
        |name: &str, dtype: &str, bytes: usize| format!(r#""{name}":{{"dtype":"{dtype}","shape":[1,1,1,2],"data_offsets":[0,{bytes}]}}"#);
    for (bytes, culprit) in [
        (Vec::new(), "not a complete .safetensors file"),
        (u64::MAX.to_le_bytes().to_vec(), "not a complete .safetensors file"),
        (header(&format!("{{{}}}", tensor("query", "F32", 8)), 4), "not a complete .safetensors file"),
        (header(&format!("{{{}}}", tensor("key", "F32", 8)), 8), "no tensor `query`, only key"),
        (header(&format!("{{{}}}", tensor("query", "F64", 16)), 16), "tensor `query`"),
        (header(r#"{"query":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}}"#, 8), "not a complete"),
    ] {
        std::fs::write(&input, bytes).expect("written");
        attn(&["run", "--input", &input, "--out", &out]).refused(&["in.safetensors", culprit]);
    }
    attn(&["run", "--input", &input, "--query", "q.npy", "--key", "k.npy", "--value", "v.npy", "--out", &out]).refused(&["--input"]);
    attn(&["run", "--input", "q.npy", "--out", &out]).refused(&["--input q.npy", "--query"]);
    attn(&["run", "--query", &input, "--key", &input, "--value", &input, "--out", &out]).refused(&["in.safetensors", "--input"]);
    attn(&["run", "--query", "q.npy", "--out", &out]).refused(&["--key"]);
    attn(&["run", "--input", &input, "--out", "o.txt"]).refused(&[""]);
}
