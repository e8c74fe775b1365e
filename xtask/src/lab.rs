//! `cargo xtask lab`: measures every target, from outside the lab.

use std::io::{BufRead, BufReader, IsTerminal};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::kernels;
use crate::record::{Answer, Entry, Record};
use crate::targets::{TARGETS, Target};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Measure only these targets; write nothing
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Measure only kernels with TEXT in their case, for example `matrix`; write nothing
    #[arg(long, value_name = "TEXT", conflicts_with = "compare")]
    only: Option<String>,
    /// Compare with benches/record/lab.tsv and write nothing; exit code 1 if a kernel spills more or no longer compiles
    #[arg(long)]
    compare: bool,
}

/// Measures the targets. Returns true if every kernel compiled or, with --compare, none is worse.
pub(crate) fn run(args: &Args) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?;
    let folder = root.join("benches/record");
    let tsv = folder.join("lab.tsv");
    let last = if args.compare { Some(Record::from_tsv(&read(&tsv)?)?) } else { None };
    let chosen: Vec<&Target> = match &args.targets[..] {
        [] => TARGETS.iter().collect(),
        names => names.iter().map(|name| Target::find(name)).collect::<Result<_, _>>()?,
    };

    let ready = Command::new(root.join(LAB)).args(["run", "lavapipe", "--", "true"]).current_dir(root).status();
    if !ready.map_err(|error| format!("{LAB}: {error}"))?.success() {
        return Err(format!("no lab: `{LAB} setup` makes it and needs root and Debian, as does running in it"));
    }
    let mut record = Record::default();
    // Targets run in parallel; a driver compiles one kernel after the other.
    let only = args.only.as_deref().unwrap_or_default();
    let measured: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = chosen.iter().map(|target| scope.spawn(|| measure(root, target, only))).collect();
        running.into_iter().map(|thread| thread.join().map_err(|_| "a thread panicked".to_string())).collect()
    });
    for (target, measured) in chosen.iter().zip(measured) {
        let (driver, entries) = measured??;
        record.drivers.insert(target.name.into(), driver);
        record.entries.extend(entries);
    }
    if record.entries.is_empty() {
        return Err("no target could be measured".into());
    }
    if let Some(last) = last {
        let worse = record.worse_than(&last, &chosen);
        worse.iter().for_each(|line| eprintln!("worse: {line}"));
        eprintln!("{} kernels compared with {}, {} worse", record.entries.len(), tsv.display(), worse.len());
        return Ok(worse.is_empty());
    }
    let failed = record.entries.iter().filter(|entry| entry.error.is_some()).count();
    if args.targets.is_empty() && args.only.is_none() {
        let dated = folder.join(format!("lab-{}.md", jiff::Timestamp::now().strftime("%Y-%m-%d")));
        std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        write(&tsv, &record.tsv())?;
        write(&dated, &record.markdown())?;
        eprintln!("wrote {} and {}", dated.display(), tsv.display());
    } else {
        eprintln!("{}", record.markdown());
    }
    Ok(failed == 0)
}

/// Runs `xtask stats` in the lab. Returns the driver and its answers. A compiler crash ends the program, which is then
/// started again after that kernel.
fn measure(root: &Path, target: &Target, only: &str) -> Result<(String, Vec<Entry>), String> {
    let kernels = kernels::some(&target.caps(), only)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut driver = None;
    let mut entries: Vec<Entry> = Vec::new();
    while entries.len() < kernels.len() {
        let mut child = Command::new(root.join(LAB))
            .args(["run", target.name, "--"])
            .arg(&program)
            .args(["stats", target.name, "--only", only, "--skip", &entries.len().to_string()])
            .current_dir(root)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{LAB}: {error}"))?;
        let mut opened = false;
        for line in child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
            let line = line.map_err(|error| error.to_string())?;
            let Ok(answer) = serde_json::from_str(&line) else { continue }; // a driver's own chatter
            match answer {
                Answer::Driver(name) => {
                    opened = true;
                    driver = Some(name);
                }
                Answer::Kernel(entry) => {
                    if std::io::stderr().is_terminal() {
                        eprint!("\r{} {}/{} {:60.60}", target.name, entries.len() + 1, kernels.len(), entry.case);
                    }
                    entries.push(*entry);
                }
            }
        }
        let status: ExitStatus = child.wait().map_err(|error| error.to_string())?;
        if !opened {
            eprintln!("{}: {MISSING} ({status})", target.name);
            return Ok((MISSING.into(), entries));
        }
        if let Some(kernel) = kernels.get(entries.len()) {
            entries.push(Entry { error: Some(format!("the compiler ended with {status}")), ..Entry::new(target.name, kernel) });
        }
    }
    eprintln!("\r{}: {} kernels {:60}", target.name, entries.len(), "");
    Ok((driver.unwrap_or_default(), entries))
}

const LAB: &str = "scripts/gpulab.sh";
const MISSING: &str = "not in this lab";

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}; `cargo xtask lab` writes it", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}
