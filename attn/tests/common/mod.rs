//! Runs the built program, and writes files for it.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Result of a run.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Asserts a refusal: exit code 2, nothing on stdout, a message that names each of `culprits`, no panic.
    pub(crate) fn refused(self, culprits: &[&str]) {
        assert_eq!(self.code, Some(2), "stdout: {}\nstderr: {}", self.out, self.err);
        assert_eq!(self.out, "", "stderr: {}", self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        for culprit in culprits {
            assert!(self.err.contains(culprit), "`{culprit}` is not in: {}", self.err);
        }
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in: {}", self.out))
    }
}

/// Returns a command that runs the program in a plain environment.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attn"));
    command.args(arguments);
    for name in ["NO_COLOR", "CLICOLOR_FORCE", "TERM", "LC_ALL", "LC_CTYPE", "LANG", "RUST_LOG"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

pub(crate) fn attn(arguments: &[&str]) -> Ran {
    ran(command(arguments).output().expect("the program starts"))
}

/// Creates an empty folder of this name.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder for the test");
    folder
}

/// Encodes an `.npy` file of version 1 as the format's specification says.
pub(crate) fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(data);
    bytes
}

/// Formats a shape as a Python tuple.
pub(crate) fn tuple(shape: &[usize]) -> String {
    let extents: String = shape.iter().map(|extent| format!("{extent}, ")).collect();
    format!("({extents})")
}

pub(crate) fn npy_f32(shape: &[usize], data: &[f32]) -> Vec<u8> {
    assert_eq!(shape.iter().product::<usize>(), data.len());
    npy("<f4", false, &tuple(shape), &data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

pub(crate) fn npy_i64(shape: &[usize], data: &[i64]) -> Vec<u8> {
    npy("<i8", false, &tuple(shape), &data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

/// Returns the shape, the type and the elements of an `.npy` file that the program wrote.
pub(crate) fn read_npy(path: &Path) -> (Vec<usize>, String, Vec<f32>) {
    let bytes = std::fs::read(path).expect("the program wrote it");
    let file = npyz::NpyFile::new(&bytes[..]).expect("a whole .npy file");
    let shape = file.shape().iter().map(|&extent| extent as usize).collect();
    let descr = file.dtype().descr();
    let numbers = match descr.as_str() {
        "'<f2'" => file.into_vec::<half::f16>().expect("numbers").into_iter().map(f32::from).collect(),
        _ => file.into_vec::<f32>().expect("numbers"),
    };
    (shape, descr, numbers)
}

/// Draws numbers between -1 and 1 that differ from each other.
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(step).collect()
}

/// Returns a path as a command-line argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

pub(crate) fn assert_close(got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (at, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let near = f64::from(got) == expected || (f64::from(got) - expected).abs() <= tolerance;
        assert!(near, "number {at} is {got} instead of {expected}");
    }
}
