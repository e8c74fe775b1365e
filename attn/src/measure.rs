//! `attn measure`: a record of one GPU, verified, tuned and timed within a limit of time.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::Value;
use wgpu_attention::Backend;

use crate::arrays::write_file;
use crate::backend;
use crate::failure::Failure;
use crate::terminal::{Terminal, note};

const EXAMPLES: &str = "\
Examples:
  attn measure                                   the default GPU, in ten minutes
  attn measure --backend nvidia --minutes 5
  attn measure --only ggml --out /tmp/record     only some of it

Writes one folder: README.md (the results in one table), report.html (charts), and what they are made of: devices.json, \
verify.jsonl, kernels.tsv with tune.jsonl, bench.jsonl, decode.jsonl, overheads.jsonl. Every step is a process of its own with a \
limit of time, so a driver that hangs or crashes costs one step, which README.md then says.

Exit code 1 if an answer was wrong or a step failed; the folder is written all the same.";

/// Arguments of `attn measure`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// GPU to measure: auto, vulkan, gl, metal, dx12 or part of an adapter's name. A software adapter must be named
    #[arg(long, value_name = "BACKEND", default_value = "auto", value_parser = Backend::from_str)]
    backend: Backend,
    /// Minutes that all of it may take
    #[arg(long, default_value_t = 10.0, value_parser = minutes)]
    minutes: f64,
    /// Run only steps whose names contain TEXT: verify, tune, overheads, kv-cache, or a shape of attn/suite.txt; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Folder to write [default: benches/record/DATE-ADAPTER]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn minutes(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|minutes: &f64| (0.2..=1440.0).contains(minutes)).ok_or("say a number of minutes from 0.2 to 1440".into())
}

/// Shapes to time, all in f16: some of the suite's, and those for which others publish figures (attn/suite.txt says who).
const SHAPES: [&str; 16] = [
    "prefill-1024",
    "prefill-2048",
    "prefill-2048-causal",
    "prefill-4096-wide",
    "llama-8b-prefill",
    "llama-8b-decode-4k",
    "llama-8b-decode-32k",
    "batch-decode-2k",
    "ggml-decode-1",
    "ggml-decode-4",
    "ggml-vision",
    "pytorch-8192",
    "pytorch-8192-window-256",
    "pytorch-8192-window-1024",
    "flash-1024",
    "flash-4096",
];
/// Shapes of the suite to tune for, one per class of kernels.
const TUNED: [&str; 4] = ["1,8,8,2048,2048,64", "1,32,8,2048,2048,128", "1,32,8,1,4096,128", "1,64,8,4,7680,64"];

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let engine = backend::open_fused(&args.backend, true)?;
    let Some(gpu) = engine.gpu() else {
        return Err(Failure::at(
            format!("--backend {}", args.backend),
            "there is no GPU here, and a software adapter is measured only if it is named: attn devices lists them",
        ));
    };
    let has_matrices = gpu.caps().matrix_size > 0;
    let name = engine.chosen().to_string();
    let date = jiff::Zoned::now().strftime("%Y-%m-%d").to_string();
    let folder = args.out.clone().unwrap_or_else(|| Path::new("benches/record").join(format!("{date}-{}", slug(&name))));
    drop(engine);

    let steps = steps(has_matrices);
    let names = || steps.iter().map(|step| step.name.as_str());
    if let Some(text) = args.only.iter().find(|text| !names().any(|name| name.contains(text.as_str()))) {
        let all: Vec<&str> = names().filter(|name| !name.contains(" --")).collect();
        return Err(Failure::at(format!("--only {text}"), format!("no step is called so; there are {}", all.join(", "))));
    }
    let is_wanted = |step: &Step| args.only.is_empty() || args.only.iter().any(|text| step.name.contains(text.as_str()));
    std::fs::create_dir_all(&folder).map_err(|error| Failure::at(folder.display(), error))?;
    let mut record = Recording { backend: args.backend.to_string(), folder, seconds: args.minutes * 60.0, ..Recording::default() };
    record.take(&steps.into_iter().filter(is_wanted).collect::<Vec<_>>())?;
    let summary = record.summary(&name, &date)?;
    write_file(&record.folder.join("README.md"), summary.as_bytes())?;
    std::io::Write::write_all(terminal, summary.as_bytes())?;
    note(format_args!("written to {}", record.folder.display()));
    let wrong = record.verified().map_or(0, |[_, failed, _]| failed);
    match (wrong, &record.failures[..]) {
        (0, []) => Ok(()),
        (0, failures) => Err(Failure::Check(format!("{} steps failed: {}", failures.len(), failures.join("; ")))),
        (wrong, _) => Err(Failure::Check(format!("{wrong} answers are wrong on this device: see verify.jsonl"))),
    }
}

/// The part of an adapter's name before its driver, as a name of a folder.
fn slug(name: &str) -> String {
    let name = name.split(" (").next().unwrap_or(name).to_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// One run of this program.
struct Step {
    name: String,
    /// File that gets its output.
    file: &'static str,
    /// Time that it needs, compared with that of other steps.
    weight: f64,
    /// Arguments, in which KERNELS stands for the file of tuned kernels, SECONDS for the time to measure.
    arguments: Vec<String>,
}

/// Files that hold the output of steps.
const FILES: [&str; 6] = ["devices.json", "verify.jsonl", "tune.jsonl", "overheads.jsonl", "decode.jsonl", "bench.jsonl"];

/// All steps, in order.
fn steps(has_matrices: bool) -> Vec<Step> {
    let step = |name: &str, file, weight, arguments: &str| {
        let arguments = arguments.split(' ').map(String::from).collect();
        Step { name: name.into(), file, weight, arguments }
    };
    let mut steps = vec![step("devices", FILES[0], 0.5, "devices --json"), step("verify", FILES[1], 15.0, "verify --json --count 20")];
    for shape in TUNED {
        let tune = format!("tune --json --dtype f16 --shape {shape} --seconds SECONDS --out KERNELS");
        steps.push(step(&format!("tune {shape}"), FILES[2], 2.0, &tune));
    }
    steps.push(step("overheads", FILES[3], 1.0, "bench --json --overheads"));
    steps.push(step("kv-cache", FILES[4], 3.0, "bench --json --decode --context 4k --cache f16 --cache q4 --seconds SECONDS"));
    let modes: &[&str] = if has_matrices { &["", " --tuned KERNELS", " --matrices"] } else { &["", " --tuned KERNELS"] };
    for (shape, mode) in SHAPES.into_iter().flat_map(|shape| modes.iter().map(move |mode| (shape, mode))) {
        let bench = format!("bench --json --fused --dtype f16 --suite {shape} --seconds SECONDS{mode}");
        steps.push(step(&format!("{shape}{}", mode.trim_end_matches(" KERNELS")), FILES[5], 1.0, &bench));
    }
    steps
}

/// A record while it is taken.
#[derive(Default)]
struct Recording {
    backend: String,
    folder: PathBuf,
    /// Time that all of it may take.
    seconds: f64,
    /// Steps that failed, with the reason.
    failures: Vec<String>,
}

impl Recording {
    /// Runs the steps. Only a folder that cannot be written ends them early.
    fn take(&mut self, steps: &[Step]) -> Result<(), Failure> {
        let (started, kernels) = (Instant::now(), self.folder.join("kernels.tsv"));
        for file in FILES.iter().map(|file| self.folder.join(file)).chain([kernels.clone()]).filter(|file| file.exists()) {
            std::fs::remove_file(&file).map_err(|error| Failure::at(file.display(), error))?;
        }
        for (at, step) in steps.iter().enumerate() {
            let left = self.seconds - started.elapsed().as_secs_f64();
            let share = left * step.weight / steps[at..].iter().map(|step| step.weight).sum::<f64>();
            note(format_args!("[{left:3.0} s left] {}", step.name));
            if left <= 0.0 {
                self.failures.push(format!("{}: no time was left", step.name));
                continue;
            }
            // Opening the device, compiling and checking take as long as timing.
            let seconds = format!("{:.2}", (share / 4.0).clamp(0.05, 4.0));
            let filled = step.arguments.iter().map(|argument| match argument.as_str() {
                "KERNELS" => kernels.display().to_string(),
                "SECONDS" => seconds.clone(),
                other => other.to_string(),
            });
            let backend = (step.name != "devices").then(|| ["--backend".to_string(), self.backend.clone()]);
            let arguments: Vec<String> = filled.chain(backend.into_iter().flatten()).collect();
            // Time that a step leaves is there for the next.
            self.run(&step.name, step.file, (1.5 * share).max(10.0), &arguments)?;
        }
        let [bench, report] = ["bench.jsonl", "report.html"].map(|file| self.folder.join(file));
        if bench.metadata().is_ok_and(|file| file.len() > 0) {
            let arguments = ["report", &bench.display().to_string(), "--out", &report.display().to_string()].map(String::from);
            // It says what was written.
            self.run("report", "report.txt", 30.0, &arguments)?;
            std::fs::remove_file(self.folder.join("report.txt")).map_err(Failure::Output)?;
        }
        Ok(())
    }

    /// Runs this program, its output appended to a file, for at most `limit` seconds.
    fn run(&mut self, name: &str, file: &str, limit: f64, arguments: &[String]) -> Result<(), Failure> {
        let path = self.folder.join(file);
        let output = File::options().create(true).append(true).open(&path).map_err(|error| Failure::at(path.display(), error))?;
        let program = std::env::current_exe().map_err(|error| Failure::at("the path of attn", error))?;
        let started = Instant::now();
        let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(output).stderr(Stdio::inherit()).spawn();
        let mut child = child.map_err(|error| Failure::at("attn cannot be started", error))?;
        let failure = loop {
            match child.try_wait().map_err(|error| Failure::at(name, error))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => break status.to_string(),
                None if started.elapsed().as_secs_f64() > limit => {
                    // It may have ended by itself meanwhile.
                    let _ = child.kill();
                    child.wait().map_err(|error| Failure::at(name, error))?;
                    break format!("stopped after {limit:.0} s");
                }
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        self.failures.push(format!("{name}: {failure}"));
        Ok(())
    }

    /// Lines of a file of JSON lines. The last may be incomplete, if its step was stopped.
    fn lines(&self, file: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Numbers of cases that passed, failed and were skipped, of those that were run.
    fn verified(&self) -> Option<[usize; 3]> {
        let lines = self.lines("verify.jsonl");
        let count = |verdict: &str| lines.iter().filter(|line| line["verdict"] == verdict).count();
        (!lines.is_empty()).then(|| ["passed", "failed", "skipped"].map(count))
    }

    fn summary(&self, adapter: &str, date: &str) -> Result<String, Failure> {
        let bench = self.lines("bench.jsonl");
        let machine = bench.iter().find_map(|line| line["machine"].as_str()).unwrap_or("?");
        let version = env!("CARGO_PKG_VERSION");
        let mut text = format!("# {adapter}\n\n{date}, attn {version}, processor {machine}. Made by `attn measure`.\n\n");
        text += &match self.verified() {
            Some([passed, failed, skipped]) => format!("`attn verify`: {passed} passed, {failed} failed, {skipped} skipped.\n\n"),
            None => "`attn verify` did not run.\n\n".into(),
        };
        text += "f16, forward. Time on the device alone, of several runs in one submit, and wall time from host memory to host memory.\n\n\
                 | shape | kernels | device ms | GFLOP/s | host ms | kernel |\n|---|---|---|---|---|---|\n";
        let number = |line: &Value, name: &str, digits: usize| line[name].as_f64().map_or("?".into(), |x| format!("{x:.digits$}"));
        for line in bench.iter().filter(|line| line["shape"].is_array()) {
            let [name, op, kernel] = ["name", "op", "kernel"].map(|of| line[of].as_str().unwrap_or("?"));
            let kernel = kernel.split(", heads packed").next().unwrap_or(kernel);
            let [device, host] = ["device_ms_median", "ms_median"].map(|of| number(line, of, 3));
            text += &format!("| {name} | {op} | {device} | {} | {host} | {kernel} |\n", number(line, "device_gflops", 0));
        }
        let decode: Vec<Value> = self.lines("decode.jsonl").into_iter().filter(|line| line["context"].is_number()).collect();
        if !decode.is_empty() {
            text += "\nA step of decoding, 32 heads on 8 of 128, recorded on buffers of the device:\n\n| cache | tokens | ms | GB/s |\n|---|---|---|---|\n";
        }
        for line in &decode {
            let [op, dtype] = ["op", "dtype"].map(|of| line[of].as_str().unwrap_or("?"));
            text += &format!("| {dtype}, {op} | {} | {} | {} |\n", line["context"], number(line, "ms_median", 3), number(line, "gb_s", 1));
        }
        for line in self.lines("overheads.jsonl") {
            text += &format!(
                "\nOverheads: device opened in {} ms, first call {} ms, recorded attention {} us of CPU time.\n",
                number(&line, "open_ms", 0),
                number(&line, "first_call_ms", 0),
                number(&line, "record_us", 2)
            );
        }
        if !self.failures.is_empty() {
            text += "\nNot measured:\n\n";
            text.extend(self.failures.iter().map(|failure| format!("- {failure}\n")));
        }
        Ok(text)
    }
}
