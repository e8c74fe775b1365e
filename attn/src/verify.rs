//! `attn verify`: problems with known answers, on every backend.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::verify::{Candidate, Row, Verdict, count, random, run_case, run_dir, run_generated, run_terms};
use wgpu_attention::{Algorithm, Backend, Engine, Inputs, Problem, Progress};

use crate::backend::{self, BackendsArg, one_of};
use crate::failure::Failure;
use crate::terminal::{ProgressBar, Terminal};
use crate::user_terms::TermArgs;

const EXAMPLES: &str = "\
Examples:
  attn verify                                   the fixed table and 50 random problems
  attn verify --backend vulkan --checked        with every runtime check of the shaders on
  attn verify --cases tests/data                case files: answers that others computed
  attn verify --count 1000 --seed 7             more random problems, other ones
  attn verify --filter causal --verbose         only these, each with its verdict
  attn verify --score 'x - rates[at.head] * f32(abs(at.position - at.key))' --table rates=r.npy
                                                your own score, derivative and all, with many options

Outputs and gradients of generated problems are compared with the f64 oracle, within error bounds derived from \
their data; case files with the answers in them. What a backend does not support is skipped with its reason, never \
passed. With --score or --visible, problems with many options have your terms; the derivative of a score is held \
against central differences in f64 too. Exit code 1 if anything failed.";

/// Arguments of `attn verify`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    backends: BackendsArg,
    #[command(flatten)]
    terms: TermArgs,
    /// Run the case files under this folder instead of generated problems
    #[arg(long, value_name = "DIR", conflicts_with_all = ["seed", "count", "score", "visible", "table"])]
    cases: Option<PathBuf>,
    /// Run the shaders with every runtime check on (slow)
    #[arg(long)]
    checked: bool,
    /// Kernels: auto (fused, but staged where scores or weights are wanted), fused or staged
    #[arg(long, value_name = "KERNELS", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// Run only cases with TEXT in their names or in the paths of their files
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Seed of the first random problem
    #[arg(long, default_value_t = 1, allow_hyphen_values = true)]
    seed: u64,
    /// Number of random problems besides the fixed table
    #[arg(long, default_value_t = 50, allow_hyphen_values = true, conflicts_with_all = ["score", "visible"])]
    count: u64,
    /// Show the verdict of every case
    #[arg(long, short, conflicts_with = "json")]
    verbose: bool,
    /// Print one JSON object per case, and one with the counts at the end
    #[arg(long)]
    json: bool,
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    one_of(text, &[("auto", Algorithm::Auto), ("fused", Algorithm::Fused), ("staged", Algorithm::Staged)])
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let backends = &args.backends.backend;
    let terms = if args.terms.is_empty() { None } else { Some(args.terms.read()?) };
    let shaders = ShaderOptions { checked: args.checked, ..Default::default() };
    let (mut engines, left_out) = if backends.is_empty() {
        Engine::every(shaders)
    } else {
        let open = |backend| backend::open_with(backend, Algorithm::Auto, shaders);
        (backends.iter().map(open).collect::<Result<Vec<_>, _>>()?, Vec::new())
    };
    for (option, is_given) in [("--checked", args.checked), ("--algorithm", args.algorithm.is_some())] {
        if is_given && !backends.is_empty() && engines.iter().all(|engine| engine.gpu().is_none()) {
            return Err(Failure::at(option, "no backend here has shaders: add a GPU by --backend"));
        }
    }
    if args.cases.is_some() && backends.is_empty() {
        engines.insert(0, backend::open(&Backend::Oracle)?);
    }
    let engines: Vec<Engine> = engines.into_iter().map(|engine| engine.with_algorithm(args.algorithm.unwrap_or(Algorithm::Auto))).collect();
    let mut rows = with_candidates(&engines, |candidates| {
        let mut progress = ProgressBar::new("verifying");
        let mut report = |done| {
            progress.report(done);
            ControlFlow::Continue(())
        };
        let control = &mut Progress::new(&mut report);
        match (&args.cases, &terms) {
            (Some(folder), _) => run_dir(folder, candidates, &args.filter, control),
            (_, Some(terms)) => run_terms(terms.terms(), &terms.data(), candidates, args.seed, &args.filter, control),
            _ => run_generated(candidates, args.seed, args.count, &args.filter, control),
        }
    })?;
    if rows.is_empty() {
        return Err(Failure::at("--filter", format!("no case has `{}` in its name", args.filter)));
    }
    rows.extend(left_out.into_iter().map(|why| skipped("adapters", "open", "-", why)));
    if args.json {
        for row in &rows {
            terminal.json(&as_json(row), false)?;
        }
    } else {
        tell(terminal, &rows, args.verbose)?;
    }
    conclude(terminal, &rows, args.json)
}

fn skipped(suite: &str, case: &str, backend: &str, why: String) -> Row {
    Row { suite: suite.into(), case: case.into(), backend: backend.into(), verdict: Verdict::Skipped(why), note: String::new() }
}

/// Time limit of verification in the tour. A software adapter takes about a second to compile each shader.
const BRIEF: Duration = Duration::from_secs(20);

/// Runs a dozen random problems on every backend, for the tour. Adapters get no more problems once [`BRIEF`] is over.
pub(crate) fn brief(terminal: &mut Terminal) -> Result<(), Failure> {
    let (engines, left_out) = Engine::every(ShaderOptions::default());
    let started = Instant::now();
    let mut progress = ProgressBar::new("verifying");
    let rows = with_candidates(&engines, |candidates| {
        let mut rows = Vec::new();
        for seed in 1..=12 {
            progress.report((seed - 1) as f64 / 12.0);
            let case = random(seed)?;
            // The first is the CPU path, which needs no compiler.
            let in_time = if started.elapsed() < BRIEF { candidates.len() } else { 1 };
            rows.extend(run_case("random", &case, &candidates[..in_time])?);
            let why = format!("the {} seconds of this tour were over; run `attn verify`", BRIEF.as_secs());
            rows.extend(candidates[in_time..].iter().map(|candidate| skipped("random", &case.name, candidate.name, why.clone())));
        }
        Ok(rows)
    })?;
    drop(progress);
    tell(terminal, &rows, false)?;
    for why in left_out {
        writeln!(terminal, "  left out: {why}")?;
    }
    conclude(terminal, &rows, false)
}

fn with_candidates<T>(engines: &[Engine], run: impl FnOnce(&[Candidate<'_>]) -> wgpu_attention::Result<T>) -> Result<T, Failure> {
    let ask = |engine| move |problem: &Problem, inputs: &Inputs<'_>| Engine::attention(engine, problem, inputs);
    let asked: Vec<_> = engines.iter().map(ask).collect();
    let candidates: Vec<_> =
        engines.iter().zip(&asked).map(|(engine, attend)| Candidate { name: engine.chosen(), attend, engine: Some(engine) }).collect();
    Ok(run(&candidates)?)
}

/// Prints the counts by suite and backend, then the failures, then the reasons for skips.
fn tell(terminal: &mut Terminal, rows: &[Row], verbose: bool) -> Result<(), Failure> {
    let line = |row: &Row| {
        let pass = if row.suite == "gradients" { "gradients of " } else { "" };
        format!("  {pass}{} on {}: {}", row.case, row.backend, row.verdict)
    };
    if verbose {
        for row in rows {
            writeln!(terminal, "{}", line(row))?;
        }
        writeln!(terminal)?;
    }
    let place = |row: &Row| (rows.iter().position(|other| other.suite == row.suite), row.backend.clone());
    let mut groups: Vec<&Row> = rows.iter().collect();
    groups.sort_by_key(|row| place(row));
    groups.dedup_by_key(|row| place(row));
    let mut table = vec!["suite\tpassed\tfailed\tskipped\ton".to_string()];
    for Row { suite, backend, .. } in groups {
        let [passed, failed, skipped] = count(rows.iter().filter(|row| row.suite == *suite && row.backend == *backend));
        table.push(format!("{suite}\t{passed}\t{failed}\t{skipped}\t{backend}"));
    }
    terminal.table(2, &table)?;
    writeln!(terminal)?;
    for row in rows.iter().filter(|row| !verbose && matches!(row.verdict, Verdict::Failed(_))) {
        writeln!(terminal, "{}", line(row))?;
    }
    let skipped = rows.iter().filter_map(|row| if let Verdict::Skipped(why) = &row.verdict { Some(&why[..]) } else { None });
    grouped(terminal, "skipped", skipped)?;
    grouped(terminal, "compared in part", rows.iter().map(|row| &row.note[..]).filter(|note| !note.is_empty()))
}

/// Prints each distinct reason once, with its count.
fn grouped<'a>(terminal: &mut Terminal, what: &str, reasons: impl Iterator<Item = &'a str>) -> Result<(), Failure> {
    let mut counts = BTreeMap::<&str, usize>::new();
    reasons.for_each(|reason| *counts.entry(reason).or_default() += 1);
    for (reason, count) in counts {
        writeln!(terminal, "  {what} {count} x: {reason}")?;
    }
    Ok(())
}

/// Prints the totals. Errors: any check failed.
fn conclude(terminal: &mut Terminal, rows: &[Row], json: bool) -> Result<(), Failure> {
    let [passed, failed, skipped] = count(rows);
    if json {
        terminal.json(&json!({ "passed": passed, "failed": failed, "skipped": skipped }), false)?;
    } else {
        writeln!(terminal, "{passed} passed, {failed} failed, {skipped} skipped")?;
    }
    if failed > 0 {
        return Err(Failure::Check(format!("{failed} of {} checks failed", rows.len())));
    }
    Ok(())
}

fn as_json(row: &Row) -> serde_json::Value {
    let (verdict, why) = match &row.verdict {
        Verdict::Passed => ("passed", ""),
        Verdict::Failed(why) => ("failed", &why[..]),
        Verdict::Skipped(why) => ("skipped", &why[..]),
    };
    json!({ "suite": row.suite, "case": row.case, "backend": row.backend, "verdict": verdict, "why": why, "note": row.note })
}
