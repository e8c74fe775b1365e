//! `attn report`: renders the output of `attn bench --json` as a page of tables and charts.

mod charts;

use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use self::charts::Axis;
use crate::arrays::{check_output, keep_apart, write_file};
use crate::explain::escape;
use crate::failure::Failure;
use crate::terminal::{Terminal, two_digits};

const EXAMPLES: &str = "\
Examples:
  attn bench --suite prefill --suite scaling --json > record.jsonl
  attn report record.jsonl --out report.html
  attn bench --json | attn report - --out report.html

The page has the machine, a table for each shape with the ratio to the fastest peer, bar charts and a roofline of \
what ran on the CPU. Shapes whose names begin with `scaling-` give time and memory against length, heads and batch; \
runs with several --threads, one after the other, give time against threads. The page needs no network and no script.";

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
    /// Median time on the device alone.
    device_ms: Option<f64>,
    device_gflops: Option<f64>,
    /// Operations per byte that has to move.
    intensity: f64,
    peak_bytes: Option<f64>,
    /// Memory of the process above what it held before the call.
    extra_bytes: Option<f64>,
    ratio: Option<f64>,
    /// Description of an answer that is wrong, or less exact than ours.
    flaw: Option<String>,
}

/// Parsed record: the machine, its limits and the entries.
#[derive(Debug, Default)]
struct Record {
    machine: Option<String>,
    threads: Option<f64>,
    /// Rates of a copy, or of reads where they are faster, and of reads from the first cache.
    memory_gb_s: Option<f64>,
    cache_gb_s: Option<f64>,
    multiply_add_gflops: Option<f64>,
    /// Rate of matrix instructions, where the processor has them.
    matrix_gflops: Option<f64>,
    entries: Vec<Entry>,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    check_output(&args.out, &[])?;
    let is_stdin = args.record.as_os_str() == "-";
    keep_apart(&[&args.out], Some(args.record.as_path()).filter(|_| !is_stdin))?;
    let text = if is_stdin { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(&args.record) };
    let bad = |why: String| Failure::at(args.record.display(), why);
    let record = Record::read(&text.map_err(|error| bad(error.to_string()))?).map_err(bad)?;
    write_file(&args.out, page(&record)?.as_bytes())?;
    writeln!(terminal, "{}: {} results", args.out.display(), record.entries.len())?;
    Ok(())
}

impl Record {
    fn read(text: &str) -> Result<Self, String> {
        let mut record = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = number + 1;
            let line: Value = serde_json::from_str(line).map_err(|error| format!("line {at} is not JSON: {error}"))?;
            if let Some(machine) = line["machine"].as_str() {
                if record.machine.is_some() {
                    continue; // concatenated records: the first one names the machine
                }
                let number = |name: &str| line[name].as_f64();
                let text = |name: &str| line[name].as_str().unwrap_or("?");
                record.machine = Some(format!("{machine}, {} threads, {}, {}", line["threads"], text("os"), text("date")));
                record.threads = number("threads");
                let read = |name: &str| line["read_gb_s"][name].as_f64();
                record.memory_gb_s = number("copy_gb_s").map(|copy| read("128 MiB").map_or(copy, |read| read.max(copy)));
                record.cache_gb_s = read("16 KiB");
                (record.multiply_add_gflops, record.matrix_gflops) = (number("multiply_add_gflops"), number("matrix_gflops"));
            } else {
                let entry = Entry::read(&line, record.threads);
                record.entries.push(entry.ok_or(format!("line {at} is not a line of `attn bench --json`"))?);
            }
        }
        if record.entries.is_empty() {
            return Err("has no results".into());
        }
        Ok(record)
    }

    /// Returns the headings, each once, in order of appearance.
    fn names(&self) -> Vec<&str> {
        distinct(self.entries.iter().map(|entry| entry.name.as_str()))
    }

    /// Returns the candidates, each once, in order of appearance. A candidate's place is its colour in every chart.
    fn candidates(&self) -> Vec<&str> {
        distinct(self.entries.iter().map(|entry| entry.who.as_str()))
    }

    fn place(&self, entry: &Entry) -> usize {
        self.candidates().iter().position(|who| *who == entry.who).unwrap_or(0)
    }
}

fn distinct<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    texts.for_each(|text| {
        if !found.contains(&text) {
            found.push(text)
        }
    });
    found
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
        let less_exact = number("error_of_bound").filter(|&of_bound| of_bound > 1.0);
        let flaw = match line["checked"].as_bool() {
            Some(false) => Some("wrong answer".to_string()),
            _ => less_exact.map(|of_bound| format!("error {} x the bound", two_digits(of_bound))),
        };
        Some(Self {
            shape_name: shape_name.into(),
            name: format!("{shape_name} {}{of_threads}", line["dtype"].as_str()?),
            threads,
            who: format!("{} on {}", line["op"].as_str()?, line["adapter"].as_str()?),
            peer: line["peer"].as_bool().unwrap_or(false),
            shape: shape.try_into().ok()?,
            ms: [number("ms_min")?, median, number("ms_max")?],
            gflops,
            device_ms: number("device_ms_median"),
            device_gflops: number("device_gflops"),
            intensity: gflops * median * 1e6 / number("bytes")?.max(1.0),
            peak_bytes: number("peak_bytes"),
            extra_bytes: number("extra_bytes"),
            ratio: number("ratio_to_best_peer"),
            flaw,
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
    let machine = escape(record.machine.as_deref().unwrap_or("a machine that the record does not name"));
    let limits = record
        .memory_gb_s
        .zip(record.multiply_add_gflops)
        .map(|(memory, peak)| format!(" Its memory moves {memory:.1} GB/s; multiply-adds alone reach {peak:.0} GFLOP/s."));
    let matrix = record.matrix_gflops.map(|peak| format!(" Matrix instructions of bf16 reach {peak:.0} GFLOP/s."));
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Attention benchmark</title><style>{STYLE}</style>\
         <h1>Attention benchmark</h1><p>On {machine}.{}</p><p>Every answer of ours was checked against the f64 oracle before it was timed; \
         times are medians.</p>",
        limits.unwrap_or_default() + &matrix.unwrap_or_default()
    );
    let length: Axis = ("keys", |entry| Some(entry.shape[4]));
    let heads: Axis = ("heads of all items of the batch", |entry| Some(entry.shape[0] * entry.shape[1]));
    let threads: Axis = ("threads", |entry| Some(entry.threads));
    let time: Axis = ("milliseconds", |entry| Some(entry.ms[1]));
    let memory: Axis = ("peak MB", |entry| entry.peak_bytes.map(|bytes| bytes / 1e6));
    let families = |axes, wanted: &[&str]| charts::lines(record, axes, |entry| entry.family().filter(|name| wanted.contains(name)));
    const LENGTHS: [&str; 3] = ["prefill", "decode", "window"];
    let several_threads = |entry: &Entry| {
        let is_other = |other: &Entry| (&other.shape_name, &other.who) == (&entry.shape_name, &entry.who) && other.threads != entry.threads;
        record.entries.iter().any(is_other)
    };
    for (title, chart) in [
        ("GFLOP/s", charts::bars(record)),
        ("Roofline of the CPU", charts::roofline(record)),
        ("Time against length", families([length, time], &LENGTHS)),
        ("Memory against length", families([length, memory], &LENGTHS)),
        ("Time against heads", families([heads, time], &["heads", "batch"])),
        ("Time against threads", charts::lines(record, [threads, time], |entry| several_threads(entry).then_some(&*entry.shape_name))),
    ] {
        if let Some(svg) = chart.map_err(|why| Failure::Check(format!("a chart could not be drawn: {why}")))? {
            html += &format!("<h2>{title}</h2>{svg}");
        }
    }
    html += "<h2>Every result</h2>";
    html.extend(record.names().into_iter().map(|name| table(record, name)));
    Ok(html + "</html>\n")
}

fn table(record: &Record, name: &str) -> String {
    let mut html = format!(
        "<h3>{}</h3><table><tr><th>who<th>median ms<th>min<th>max<th>GFLOP/s<th>device ms<th>GFLOP/s<th>more MB<th>x the fastest peer",
        escape(name)
    );
    for entry in record.entries.iter().filter(|entry| entry.name == name) {
        let Entry { who, peer, ms: [min, median, max], gflops, device_ms, device_gflops, extra_bytes, ratio, flaw, .. } = entry;
        let class = if *peer { "" } else { " class=\"ours\"" };
        let flaw = flaw.as_ref().map_or_else(String::new, |flaw| format!(" <span class=\"wrong\">{flaw}</span>"));
        let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
        let extra = extra_bytes.map(|bytes| bytes / 1e6);
        let [device_ms, device_gflops, extra] =
            [(*device_ms, 3), (*device_gflops, 1), (extra, 1)].map(|(x, digits)| x.map_or(String::new(), |x| format!("{x:.digits$}")));
        let who = escape(who);
        html += &format!(
            "<tr{class}><td>{who}{flaw}<td>{median:.3}<td>{min:.3}<td>{max:.3}<td>{gflops:.1}<td>{device_ms}<td>{device_gflops}<td>{extra}<td>{ratio}"
        );
    }
    html + "</table>"
}
