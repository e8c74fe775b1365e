//! `attn report`: renders the output of `attn bench --json` as a page of tables and charts.

mod charts;

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::path::PathBuf;

use serde_json::Value;

use self::charts::Axis;
use crate::arrays::write_file;
use crate::failure::Failure;
use crate::terminal::Terminal;

const EXAMPLES: &str = "\
Examples:
  attn bench --suite prefill --suite scaling --json > record.jsonl
  attn report record.jsonl --out report.html
  attn bench --json | attn report - --out report.html

The page holds the machine, a table for each shape with the ratio to the best peer, bar charts, a roofline for what ran on the CPU,
of the shapes whose names begin with `scaling-` time and memory against length, heads and batch, and time against threads where the
record has runs with several --threads, one after the other. It needs no network and no script.";

/// Arguments of `attn report`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Output of `attn bench --json`; - is standard input
    record: PathBuf,
    /// HTML file to write
    #[arg(long, value_name = "FILE.html")]
    out: PathBuf,
}

/// One line of a record: a shape timed on a candidate.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    /// Name of the shape in the suite.
    shape_name: String,
    /// Heading: the shape's name, the type, and the threads if they differ from the machine's.
    name: String,
    threads: f64,
    who: String,
    peer: bool,
    shape: [f64; 6],
    ms: [f64; 3],
    gflops: f64,
    /// Operations per byte that has to move.
    intensity: f64,
    peak_bytes: Option<f64>,
    ratio: Option<f64>,
    wrong: bool,
}

/// Parsed record: the machine, its limits and the entries.
#[derive(Debug, Default)]
struct Record {
    machine: Option<String>,
    threads: Option<f64>,
    copy_gb_s: Option<f64>,
    multiply_add_gflops: Option<f64>,
    entries: Vec<Entry>,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let at = args.record.display();
    let mut text = String::new();
    if args.record.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map_err(|error| Failure::input(format!("standard input: {error}")))?;
    } else {
        text = std::fs::read_to_string(&args.record).map_err(|error| Failure::input(format!("{at}: {error}")))?;
    }
    let record = Record::read(&text).map_err(|why| Failure::input(format!("{at}: {why}")))?;
    write_file(&args.out, page(&record)?.as_bytes())?;
    writeln!(terminal, "{}: {} results", args.out.display(), record.entries.len())?;
    Ok(())
}

impl Record {
    fn read(text: &str) -> Result<Self, String> {
        let mut record = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = number + 1;
            let line: Value = serde_json::from_str(line).map_err(|error| format!("line {at} is no JSON: {error}"))?;
            if let Some(machine) = line["machine"].as_str() {
                if record.machine.is_some() {
                    continue; // concatenated records: the first one names the machine
                }
                record.threads = line["threads"].as_f64();
                let text = |name: &str| line[name].as_str().unwrap_or("?").to_string();
                record.machine = Some(format!("{machine}, {} threads, {}, {}", line["threads"], text("os"), text("date")));
                record.copy_gb_s = line["copy_gb_s"].as_f64();
                record.multiply_add_gflops = line["multiply_add_gflops"].as_f64();
            } else {
                record
                    .entries
                    .push(Entry::read(&line, record.threads).ok_or(format!("line {at} is nothing that `attn bench --json` writes"))?);
            }
        }
        if record.entries.is_empty() {
            return Err("holds no results".into());
        }
        Ok(record)
    }

    /// Returns the headings, each once, in order of appearance.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for entry in &self.entries {
            if !names.contains(&entry.name.as_str()) {
                names.push(&entry.name);
            }
        }
        names
    }
}

impl Entry {
    fn read(line: &Value, machine_threads: Option<f64>) -> Option<Self> {
        let number = |name: &str| line[name].as_f64();
        let shape: Vec<f64> = line["shape"].as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
        let gflops = number("gflops")?;
        let median = number("ms_median")?;
        let shape_name = line["name"].as_str()?;
        let threads = number("threads").or(machine_threads)?;
        let of_threads = if machine_threads == Some(threads) { String::new() } else { format!(" with --threads {threads}") };
        Some(Self {
            shape_name: shape_name.into(),
            name: format!("{shape_name} {}{of_threads}", line["dtype"].as_str()?),
            threads,
            who: format!("{} on {}", line["op"].as_str()?, line["adapter"].as_str()?),
            peer: line["peer"].as_bool().unwrap_or(false),
            shape: shape.try_into().ok()?,
            ms: [number("ms_min")?, median, number("ms_max")?],
            gflops,
            intensity: gflops * median * 1e6 / number("bytes")?.max(1.0),
            peak_bytes: number("peak_bytes"),
            ratio: number("ratio_to_best_peer"),
            wrong: line["checked"].as_bool() == Some(false),
        })
    }

    /// Returns `FAMILY` of a shape called `scaling-FAMILY-NUMBER`.
    fn family(&self) -> Option<&str> {
        Some(self.shape_name.strip_prefix("scaling-")?.rsplit_once('-')?.0)
    }
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:.5em 0 2em;width:100%}td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}\
td:first-child,th:first-child{text-align:left}h2{margin-top:2em}svg{max-width:100%;height:auto}.wrong{color:#b00}.ours{font-weight:600}";

fn page(record: &Record) -> Result<String, Failure> {
    let mut html =
        format!("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>attention, timed</title><style>{STYLE}</style>");
    let machine = record.machine.as_deref().unwrap_or("a machine that the record does not name");
    let mut say = |text: String| html.push_str(&text);
    say(format!("<h1>Attention, timed</h1><p>On {}.", escape(machine)));
    if let (Some(copy), Some(peak)) = (record.copy_gb_s, record.multiply_add_gflops) {
        say(format!(" A copy moves {copy:.1} GB/s; multiply-adds alone reach {peak:.0} GFLOP/s."));
    }
    say("</p><p>Each answer of ours was held against the f64 oracle before it was timed; times are medians.</p>".into());
    let drawn = |chart: Result<Option<String>, String>| chart.map_err(|why| Failure::Check(format!("a chart could not be drawn: {why}")));
    let length: Axis = ("keys", |entry| Some(entry.shape[4]));
    let heads: Axis = ("heads of all items of the batch", |entry| Some(entry.shape[0] * entry.shape[1]));
    let threads: Axis = ("threads", |entry| Some(entry.threads));
    let time: Axis = ("milliseconds", |entry| Some(entry.ms[1]));
    let memory: Axis = ("peak MB", |entry| entry.peak_bytes.map(|bytes| bytes / 1e6));
    let families = |axes, wanted: &[&str]| drawn(charts::lines(record, axes, |entry| entry.family().filter(|name| wanted.contains(name))));
    const LENGTHS: [&str; 3] = ["prefill", "decode", "window"];
    let several_threads = |entry: &Entry| {
        let is_other = |other: &Entry| (&other.shape_name, &other.who) == (&entry.shape_name, &entry.who) && other.threads != entry.threads;
        record.entries.iter().any(is_other)
    };
    for (title, chart) in [
        ("Billions of operations a second", drawn(charts::bars(record))?),
        ("Roofline of the CPU", drawn(charts::roofline(record))?),
        ("Time against length", families([length, time], &LENGTHS)?),
        ("Memory against length", families([length, memory], &LENGTHS)?),
        ("Time against heads", families([heads, time], &["heads", "batch"])?),
        (
            "Time against threads",
            drawn(charts::lines(record, [threads, time], |entry| several_threads(entry).then_some(entry.shape_name.as_str())))?,
        ),
    ] {
        if let Some(svg) = chart {
            say(format!("<h2>{title}</h2>{svg}"));
        }
    }
    say("<h2>Every result</h2>".into());
    for name in record.names() {
        say(table(record, name));
    }
    html.push_str("</html>\n");
    Ok(html)
}

fn table(record: &Record, name: &str) -> String {
    let mut html = format!("<h3>{}</h3><table><tr><th>who<th>median ms<th>min<th>max<th>GFLOP/s<th>of the best peer", escape(name));
    for entry in record.entries.iter().filter(|entry| entry.name == name) {
        let class = if entry.peer { "" } else { " class=\"ours\"" };
        let wrong = if entry.wrong { " <span class=\"wrong\">wrong answer</span>" } else { "" };
        let ratio = entry.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
        let [min, median, max] = entry.ms;
        // Writing to a string cannot fail.
        let _ = write!(
            html,
            "<tr{class}><td>{}{wrong}<td>{median:.3}<td>{min:.3}<td>{max:.3}<td>{:.1}<td>{ratio}",
            escape(&entry.who),
            entry.gflops
        );
    }
    html + "</table>"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"machine": "M <1>", "threads": 2, "os": "linux", "date": "2026-01-02", "copy_gb_s": 20.0, "multiply_add_gflops": 300.0}
{"name": "scaling-prefill-256", "op": "fused", "adapter": "cpu", "dtype": "f32", "shape": [1,8,8,256,256,64], "ms_min": 1, "ms_median": 2, "ms_max": 3, "gflops": 67.1, "bytes": 2097152, "peak_bytes": 9000000, "peer": false, "checked": true, "ratio_to_best_peer": 1.25}
{"name": "scaling-prefill-512", "op": "fused", "adapter": "cpu", "dtype": "f32", "shape": [1,8,8,512,512,64], "ms_min": 4, "ms_median": 8, "ms_max": 9, "gflops": 67.1, "bytes": 4194304, "peak_bytes": 9900000, "peer": false, "checked": true}
{"name": "scaling-prefill-512", "op": "fused", "adapter": "cpu", "dtype": "f32", "threads": 1, "shape": [1,8,8,512,512,64], "ms_min": 9, "ms_median": 15, "ms_max": 19, "gflops": 35.8, "bytes": 4194304, "peak_bytes": 9900000, "peer": false, "checked": true}
{"name": "scaling-batch-2", "op": "fused", "adapter": "cpu", "dtype": "f32", "shape": [2,8,8,512,512,64], "ms_min": 9, "ms_median": 16, "ms_max": 19, "gflops": 67.1, "bytes": 8388608, "peak_bytes": 9900000, "peer": false, "checked": true}
{"name": "scaling-prefill-512", "op": "sdpa", "adapter": "peer", "dtype": "f32", "shape": [1,8,8,512,512,64], "ms_min": 4, "ms_median": 8, "ms_max": 9, "gflops": 67.1, "bytes": 4194304, "peer": true, "checked": false}"#;

    #[test]
    fn a_page_holds_what_the_record_says() {
        let record = Record::read(RECORD).expect("well formed");
        let page = page(&record).expect("can be drawn");
        for part in [
            "M &lt;1&gt;, 2 threads",
            "1.25x",
            "wrong answer",
            "Roofline",
            "Memory against length",
            "Time against heads",
            "Time against threads",
            "scaling-prefill-512 f32 with --threads 1",
            "<svg",
            "fused on cpu",
        ] {
            assert!(page.contains(part), "{part}");
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bad in ["", "{}", "nonsense", "{\"machine\": \"m\"}", "{\"name\": \"x\", \"shape\": [1]}"] {
            assert!(Record::read(bad).is_err(), "{bad}");
        }
    }
}
