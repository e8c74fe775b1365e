//! burn and candle as peers of `attn bench --compare`. attn/src/bench/peer.rs describes the requests and the answers.
//!
//! Not part of the crate's workspace. Build in benches/peers/rust with `cargo build --release` (burn takes long;
//! `--no-default-features` builds candle alone), then run in the root:
//!
//! ```text
//! attn bench --suite prefill --backend vulkan --compare "benches/peers/rust/target/release/attention-peers burn"
//! attn bench --suite prefill --backend cpu    --compare "benches/peers/rust/target/release/attention-peers candle"
//! ```
//!
//! `burn`: its wgpu backend with fusion and autotune, from host memory to host memory like ours. `burn device` keeps
//! arrays and answer on the device. burn has no grouped heads: keys and values are repeated on the device, and that is
//! timed. With `fold` the heads of a group become the rows of one head, which needs a single query. `candle`:
//! candle-nn's CPU flash attention, arrays in place.

#[cfg(feature = "burn")]
mod burn_peer;
mod candle_peer;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use npyz::WriterBuilder;
use serde_json::{Value, json};

/// Problem that a peer is asked to compute.
struct Request {
    /// Batch, query heads, key/value heads, queries, keys, head_dim.
    shape: [usize; 6],
    causal: bool,
    window: Option<usize>,
    dtype: String,
    threads: usize,
    json: Value,
}

impl Request {
    fn read(json: Value) -> Result<Self, String> {
        if json["backward"] == json!(true) {
            return Err("only forward here".into());
        }
        let mut terms = json["terms"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let is_known = |term: &str| term == "causal=bottom-right" || (term.starts_with("window=") && term.ends_with(",0"));
        if let Some(term) = terms.find(|term| !is_known(term)) {
            return Err(format!("no {term} here"));
        }
        let number = |value: &Value| value.as_u64().map(|number| number as usize);
        let shape: Option<Vec<usize>> = json["shape"].as_array().and_then(|shape| shape.iter().map(number).collect());
        let shape: Option<[usize; 6]> = shape.and_then(|shape| shape.try_into().ok());
        let shape = shape.ok_or("needs a shape of six sizes")?;
        let (causal, window) = (json["causal"] == json!(true), number(&json["window"]));
        let dtype = json["dtype"].as_str().unwrap_or("f32").to_string();
        let threads = number(&json["threads"]).unwrap_or(0);
        Ok(Self { shape, causal, window, dtype, threads, json })
    }

    fn file(&self, name: &str) -> Result<&str, String> {
        self.json[name].as_str().ok_or_else(|| format!("names no file for {name}"))
    }

    /// Loads an array, `[batch, heads, seq, dim]`.
    fn load(&self, name: &str) -> Result<Vec<f32>, String> {
        let file = File::open(self.file(name)?).map_err(|error| format!("{name}: {error}"))?;
        let array = npyz::NpyFile::new(BufReader::new(file)).and_then(|file| file.into_vec());
        array.map_err(|error| format!("{name}: {error}"))
    }

    fn save(&self, answer: Vec<f32>) -> std::io::Result<()> {
        let [batch, heads, _, rows, _, dim] = self.shape.map(|size| size as u64);
        let file = BufWriter::new(File::create(self.file("output").map_err(std::io::Error::other)?)?);
        let mut writer = npyz::WriteOptions::new().default_dtype().shape(&[batch, heads, rows, dim]).writer(file).begin_nd()?;
        writer.extend(answer)?;
        writer.finish()
    }
}

/// Peer that is ready to run. A run returns its time and, if wanted, the answer as f32 `[batch, heads, seq, dim]`.
struct Peer {
    adapter: String,
    op: &'static str,
    run: Box<dyn FnMut(bool) -> Result<(Duration, Option<Vec<f32>>), String>>,
}

/// Prepares a peer. Three runs precede the one for the answer, because the first runs compile and autotune.
fn prepare(words: &[&str], json: Value) -> Result<Peer, String> {
    let request = Request::read(json)?;
    let mut peer = match words {
        ["candle"] => candle_peer::new(&request)?,
        #[cfg(feature = "burn")]
        ["burn", options @ ..] => burn_peer::new(&request, options)?,
        _ => return Err("is neither `burn`, `burn device`, with or without `fold`, nor `candle`".into()),
    };
    for _ in 0..3 {
        (peer.run)(false)?;
    }
    let (_, answer) = (peer.run)(true)?;
    request.save(answer.ok_or("gave no answer")?).map_err(|error| format!("output: {error}"))?;
    Ok(peer)
}

fn times(peer: &mut Option<Peer>, count: u64) -> Result<Vec<f64>, String> {
    let peer = peer.as_mut().ok_or("nothing is prepared")?;
    (0..count).map(|_| (peer.run)(false).map(|(time, _)| time.as_secs_f64() * 1e3)).collect()
}

/// Turns a panic into an error; burn panics on problems that it does not support.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        Err(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// Returns the version of a package according to Cargo.lock.
fn version(package: &str) -> &'static str {
    let lock = include_str!("../Cargo.lock");
    let found = lock.split_once(&format!("name = \"{package}\"\nversion = \""));
    found.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("?")
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut peer = None;
    for line in std::io::stdin().lock().lines() {
        let request: Value = serde_json::from_str(&line?)?;
        let answer = if request["do"] == json!("prepare") {
            peer = None;
            match caught(|| prepare(&words, request)) {
                Ok(ready) => {
                    let Peer { adapter, op, .. } = peer.insert(ready);
                    json!({ "ok": true, "adapter": adapter, "op": op })
                }
                Err(why) => json!({ "ok": false, "why": why }),
            }
        } else {
            match caught(|| times(&mut peer, request["times"].as_u64().unwrap_or(1))) {
                Ok(times) => json!({ "ms": times }),
                Err(why) => json!({ "ms": null, "why": why }),
            }
        };
        let mut output = std::io::stdout().lock();
        writeln!(output, "{answer}")?;
        output.flush()?;
    }
    Ok(())
}
