//! Broken case files: cut short, contradictory, absurd or changed at random.

use std::path::{Path, PathBuf};

use crate::common::{backends, fails};
use safetensors::SafeTensors;
use wgpu_attention::verify::{CaseFile, Verdict, check_file, oracle, run_dir};
use wgpu_attention::{Error, Inputs, Problem, Progress};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(data(path)).expect("the case file is in the repository")
}

fn parse(bytes: &[u8]) -> Result<CaseFile, Error> {
    CaseFile::parse(Path::new("broken"), bytes)
}

/// Returns the file with text in its header replaced.
fn with_header(path: &str, from: &str, to: &str) -> Vec<u8> {
    let mut bytes = bytes(path);
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).expect("JSON");
    assert!(header.contains(from), "{from} is not in the header of {path}");
    let header = header.trim_end().replacen(from, to, 1);
    bytes.splice(..8 + length, (header.len() as u64).to_le_bytes().into_iter().chain(header.into_bytes()));
    bytes
}

const SDPA: &str = "torch/sdpa_d3_primes.safetensors";

/// Returns the reason why a broken file does not pass.
fn why(bytes: &[u8]) -> String {
    match parse(bytes) {
        Err(Error::File { path, why }) => {
            assert_eq!(path, "broken");
            why.to_string()
        }
        Err(other) => panic!("not a file error: {other}"),
        Ok(file) => match check_file(&file, &oracle).0 {
            Verdict::Failed(why) => why,
            other => panic!("a broken file is {other}"),
        },
    }
}

#[test]
fn a_file_cut_short_is_an_error() {
    let whole = bytes(SDPA);
    assert!(parse(&whole).is_ok());
    for length in (0..whole.len()).step_by(53).chain([whole.len() - 1]) {
        assert!(why(&whole[..length]).contains("not a whole safetensors file"), "cut at {length}");
    }
}

#[test]
fn contradictions_are_errors_that_say_what_is_wrong() {
    for (from, to, expected) in [
        ("attnconf/1", "attnconf/9", "format `attnconf/9`"),
        ("\"format\":\"attnconf/1\"", "\"from\":\"attnconf/1\"", "names no format"),
        ("\"op\":", "\"up\":", "no `op`"),
        ("in.q\"", "in.r\"", "no tensor `in.q`"),
        ("out.o\"", "out.p\"", "no tensor `out.o`"),
        ("tol.o\"", "tol.p\"", "no tolerance for `o`"),
        ("tol.rtol\":\"1e-5", "tol.rtol\":\"much", "`tol.rtol` = `much` cannot be read"),
        ("attr.causal\":\"none", "attr.causal\":\"some", "causal = `some` is unknown"),
        ("attr.scale\":\"0", "attr.scale\":\"x", "`attr.scale` = `x"),
        ("\"in.q\":{\"dtype\":\"F32\"", "\"in.q\":{\"dtype\":\"I32\"", "is not of floating-point numbers"),
        ("\"in.q\":{\"dtype\":\"F32\"", "\"in.q\":{\"dtype\":\"U32\"", "case files have"),
        ("\"shape\":[2,3,7,3]", "\"shape\":[2,3,7,4]", "not a whole safetensors file"),
        ("\"shape\":[2,3,7,3]", "\"shape\":[9223372036854775807,9,9,9]", "not a whole safetensors file"),
    ] {
        let why = why(&with_header(SDPA, from, to));
        assert!(why.contains(expected), "{from} -> {to}: {why}");
    }
}

#[test]
fn absurd_sizes_are_errors() {
    let mut header_of_everything = bytes(SDPA);
    header_of_everything[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(why(&header_of_everything).contains("not a whole safetensors file"));
    let empty = r#"{"__metadata__":{"format":"attnconf/1","suite":"x","case":"x","op":"sdpa"},"in.q":{"dtype":"F32","shape":[0,1099511627776],"data_offsets":[0,0]}}"#;
    let file: Vec<u8> = (empty.len() as u64).to_le_bytes().into_iter().chain(empty.bytes()).collect();
    assert!(why(&file).contains("absurd shape"));
}

#[test]
fn a_wrong_value_fails_every_kind_of_file() {
    for path in [
        SDPA,
        "torch/flex_softcap.safetensors",
        "flex/flex_term_softcap.safetensors",
        "flex/flex_term_tree_mask.safetensors",
        "torch/mha_unbatched.safetensors",
        "serving/varlen_basic.safetensors",
        "minilm/minilm_core_padded_batch.safetensors",
        "minilm/minilm_layer0_block.safetensors",
        "onnx/attention/attention_3d.safetensors",
        "onnx/flex/flexattention_gqa.safetensors",
        "onnx/rotary/rotary_embedding.safetensors",
        "ort/ms_mha_key_padding.safetensors",
        "ort/ms_gqa_chunk_window.safetensors",
    ] {
        let spoilt = |problem: &Problem, inputs: &Inputs<'_>| {
            let mut outputs = oracle(problem, inputs)?;
            let mut output = outputs.output.to_f32();
            output[0] += 0.01 + 0.01 * output[0].abs();
            outputs.output = wgpu_attention::HostVec::from_f32(outputs.output.as_slice().dtype(), &output);
            Ok(outputs)
        };
        let file = CaseFile::read(&data(path)).expect("the case file is in the repository");
        assert_eq!(check_file(&file, &oracle).0, Verdict::Passed, "{path}");
        // A rotation computes no attention: there is nothing to spoil.
        assert_eq!(matches!(check_file(&file, &spoilt).0, Verdict::Failed(_)), file.op() != "RotaryEmbedding", "{path}");
    }
}

const TERM: &str = "flex/flex_term_causal.safetensors";

/// Files of users' terms hold the text that they are run with: another text has another answer, or none.
#[test]
fn another_text_of_a_term_fails() {
    for (from, to, expected) in [
        ("at.key <= at.position", "at.key <  at.position", "o at"),
        ("at.key <= at.position", "at.key <= at.positron", "positron"),
        ("fn visible(at: Pair) -> bool", "fn vizible(at: Pair) -> bool", "visible"),
        ("\"attr.tables\":\"\"", "\"attr.tables\":\"q:f16\"", "unknown type `f16`"),
        ("\"attr.tables\":\"\"", "\"attr.tables\":\"q\"", "tables = `q` cannot be read"),
        ("\"attr.tables\":\"\"", "\"attr.tables\":\"q:i32\"", "tensor `in.q` is not of integers"),
    ] {
        let why = why(&with_header(TERM, from, to));
        assert!(why.contains(expected), "{from} -> {to}: {why}");
    }
}

/// Changes one element of a gradient in a file: the oracle's gradient no longer agrees with it.
#[test]
fn a_wrong_gradient_fails() {
    let folder = std::env::temp_dir().join(format!("wgpu-attention-gradient-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a temporary folder");
    let backends = backends();
    let verdict = |bytes: &[u8]| {
        std::fs::write(folder.join("case.safetensors"), bytes).expect("written");
        run_dir(&folder, &[backends[0].candidate()], "", &mut Progress::default()).expect("a case").swap_remove(0).verdict
    };
    for path in [SDPA, TERM] {
        let right = bytes(path);
        assert_eq!(verdict(&right), Verdict::Passed, "{path}");
        let file = SafeTensors::deserialize(&right).expect("sound");
        for name in ["out.dq", "out.dk", "out.dv"] {
            let at = file.tensor(name).expect("a gradient").data().as_ptr() as usize - right.as_ptr() as usize;
            let mut wrong = right.clone();
            let element: &mut [u8; 4] = (&mut wrong[at..at + 4]).try_into().expect("4 bytes");
            *element = (f32::from_le_bytes(*element) + 0.01).to_le_bytes();
            assert!(fails(&verdict(&wrong)), "{name} of {path}");
        }
    }
    std::fs::remove_dir_all(folder).expect("it is there");
}

/// Reads and runs files with changed headers: each ends in an answer or an error.
#[test]
fn headers_changed_at_random_never_panic() {
    let mut state = 1u64;
    let mut random = |end: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % end
    };
    let paths = CaseFile::find(&data("")).expect("tests/data is there");
    let mut read = 0;
    for path in paths {
        let whole = std::fs::read(&path).expect("it was found");
        if whole.len() > 20_000 {
            continue;
        }
        let length = u64::from_le_bytes(whole[..8].try_into().expect("8 bytes")) as usize;
        for _ in 0..40 {
            let mut changed = whole.clone();
            for _ in 0..=random(2) {
                let at = 8 + random(length);
                changed[at] = if changed[at].is_ascii_digit() { b"0123456789-"[random(11)] } else { b"\"0129,:[]{}aqkv-."[random(17)] };
            }
            if let Ok(file) = parse(&changed) {
                read += 1;
                let _verdict = check_file(&file, &oracle);
            }
        }
    }
    assert!(read > 500, "only {read} changed headers could be read");
}

#[test]
fn directories_without_cases_are_errors() {
    for path in ["nowhere", "minilm/INDEX.tsv"] {
        let rows = run_dir(&data(path), &[], "", &mut Progress::default());
        assert!(matches!(rows, Err(Error::File { .. })), "{path}: {rows:?}");
    }
}
