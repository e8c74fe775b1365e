//! Third-party attention in a process of its own, so that its runs can be interleaved with ours.
//!
//! A peer is any program that answers lines of JSON with lines of JSON; `benches/peers/` has one in Python and one in Rust:
//!
//! ```text
//! > {"do": "prepare", "query": FILE, "key": FILE, "value": FILE, "output": FILE, "shape": [B,H,HKV,LQ,LK,D], "causal": false,
//!    "window": null, "terms": [], "dtype": "f32", "backward": false, "threads": 2}    files are .npy, f32, [batch, heads, seq, dim]
//! < {"ok": true, "adapter": "...", "op": "..."}  or  {"ok": false, "why": "..."}
//! > {"do": "run", "times": 3}
//! < {"ms": [1.5, 1.4, 1.4]}
//! ```

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use wgpu_attention::HostVec;

use super::check::Tensors;
use super::task::Task;
use crate::arrays::{read_npy, write_tensor};
use crate::failure::Failure;

/// A running peer.
pub(super) struct Peer {
    command: String,
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    folder: PathBuf,
}

/// Answer of a peer to `prepare`: its description and its output.
pub(super) struct Ready {
    pub(super) adapter: String,
    pub(super) op: String,
    pub(super) output: HostVec,
}

impl Peer {
    /// Starts `command`, split at spaces.
    pub(super) fn start(command: &str, number: usize) -> Result<Self, Failure> {
        let mut words = command.split_whitespace();
        let program = words.next().ok_or_else(|| Failure::input("--compare: names no program"))?;
        let at = format!("--compare {command}");
        let failed = |error: std::io::Error| Failure::at(&at, error);
        let mut child = Command::new(program).args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let folder = std::env::temp_dir().join(format!("attn-bench-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let (Some(requests), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::at(at, "has no standard streams"));
        };
        Ok(Self { command: command.into(), child, requests, answers: BufReader::new(answers), folder })
    }

    /// Hands over a problem. The inner error says why the peer does not support it.
    pub(super) fn prepare(&mut self, task: &Task, tensors: &Tensors) -> Result<Result<Ready, String>, Failure> {
        let d = &task.problem.dims;
        let folder = self.folder.clone();
        let file = |name: &str| folder.join(name).with_extension("npy");
        for (name, heads, seq, tensor) in [
            ("query", d.num_heads, d.seq_len_q, &tensors.query),
            ("key", d.num_kv_heads, d.seq_len_kv, &tensors.key),
            ("value", d.num_kv_heads, d.seq_len_kv, &tensors.value),
        ] {
            write_tensor(&file(name), name, &[d.batch, heads, seq, d.head_dim], &HostVec::F32(tensor.to_f32()))?;
        }
        let mut request = task.describe();
        for name in ["query", "key", "value", "output"] {
            request[name] = json!(file(name));
        }
        request["do"] = json!("prepare");
        let answer = self.ask(&request)?;
        let text = |name: &str| answer[name].as_str().unwrap_or_default().to_string();
        if answer["ok"] != json!(true) {
            return Ok(Err(text("why")));
        }
        let output = read_npy(&file("output"))?.floats()?;
        if output.as_slice().len() != task.problem.output_len() {
            return Err(self.wrong(&format!("its output has {} elements, not {}", output.as_slice().len(), task.problem.output_len())));
        }
        Ok(Ok(Ready { adapter: text("adapter"), op: text("op"), output }))
    }

    /// Number of its process.
    pub(super) fn process(&self) -> String {
        self.child.id().to_string()
    }

    /// Runs the problem `times` times and returns the wall time of each run in ms.
    pub(super) fn run(&mut self, times: usize) -> Result<Vec<f64>, Failure> {
        let answer = self.ask(&json!({ "do": "run", "times": times }))?;
        let times: Option<Vec<f64>> = answer["ms"].as_array().and_then(|ms| ms.iter().map(Value::as_f64).collect());
        times.filter(|times| !times.is_empty()).ok_or_else(|| self.wrong(&format!("answered {answer}")))
    }

    fn ask(&mut self, request: &Value) -> Result<Value, Failure> {
        let mut line = String::new();
        let told = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        told.and_then(|()| self.answers.read_line(&mut line)).map_err(|error| self.wrong(&error.to_string()))?;
        serde_json::from_str(&line).map_err(|_| self.wrong(if line.is_empty() { "ended" } else { "answered no JSON" }))
    }

    fn wrong(&self, why: &str) -> Failure {
        Failure::Check(format!("--compare {}: {why}", self.command))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Best effort: the process may have ended by itself, and the folder is a temporary one.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
