//! Log of the simulator's reports on each kernel, over all runs.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use wgpu_attention::plan::KernelExport;
use wgpu_attention_simulator::{Report, Rule, Shader};

/// Maximum number of complaints that are printed.
const MOST_COMPLAINTS: usize = 40;

/// Lines that no problem reaches: file, text, reason.
const UNREACHABLE: &[(&str, &str, &str)] = &[
    (
        "prelude",
        "fn table(at: u32) -> u32 { return 0u; }",
        "stands in where a kernel has no tables; only flags that such a problem never has ask it",
    ),
    ("shaders/lib/dropout.wgsl", "return 1.0;", "for who has not asked is_dropping; tiles asks once for all its pairs"),
];

/// All findings, and the statements that ran.
#[derive(Default)]
pub(crate) struct Log(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// Kernels by their text.
    kernels: HashMap<String, Covered>,
    /// Findings by place, with the other place, and rule.
    findings: BTreeMap<(String, Rule), Found>,
    complaints: Vec<String>,
}

/// Kernel that ran.
struct Covered {
    name: String,
    /// File and line of each statement, true if it can be reached, and how often it ran.
    statements: Vec<(String, bool, u64)>,
    iterations: u64,
}

#[derive(Default)]
struct Found {
    detail: String,
    count: u64,
    kernels: Vec<String>,
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, kernel: &KernelExport, shader: &Shader, report: &Report) {
        let mut inner = self.lock();
        let known = inner.kernels.entry(kernel.text.clone()).or_insert_with(|| Covered {
            name: kernel.name.clone(),
            statements: shader.lines().map(|(line, reachable)| (place_of(kernel, line), reachable, 0)).collect(),
            iterations: 0,
        });
        known.iterations = known.iterations.max(report.iterations);
        known.statements.iter_mut().zip(&report.covered).for_each(|((_, _, ran), more)| *ran += more);
        for finding in &report.findings {
            let other = finding.other.map(|line| format!(" and {}", place_of(kernel, line))).unwrap_or_default();
            let found = inner.findings.entry((place_of(kernel, finding.line) + &other, finding.rule)).or_default();
            if found.count == 0 {
                found.detail.clone_from(&finding.detail);
            }
            found.count += finding.count;
            if !found.kernels.contains(&kernel.name) {
                found.kernels.push(kernel.name.clone());
            }
        }
    }

    /// Adds a complaint: a wrong or missing answer.
    pub(crate) fn complain(&self, what: String) {
        self.lock().complaints.push(what);
    }

    /// Returns places and rules of the findings; each complaint counts as one.
    pub(crate) fn findings(&self) -> BTreeSet<(String, Rule)> {
        let inner = self.lock();
        let complaints = inner.complaints.iter().map(|complaint| (complaint.clone(), Rule::Uninitialised));
        inner.findings.keys().cloned().chain(complaints).collect()
    }

    /// Returns the lines with a statement that ran.
    pub(crate) fn places_that_ran(&self) -> BTreeSet<String> {
        let inner = self.lock();
        let statements = inner.kernels.values().flat_map(|kernel| &kernel.statements);
        statements.filter(|&&(_, _, count)| count > 0).map(|(place, ..)| place.clone()).collect()
    }

    /// Prints everything. Returns the number of findings and complaints, and of lines that never ran.
    pub(crate) fn print(&self, verbose: bool) -> (usize, usize) {
        let inner = self.lock();
        let mut kernels: Vec<&Covered> = inner.kernels.values().collect();
        kernels.sort_by_key(|kernel| &kernel.name);
        if verbose {
            for kernel in &kernels {
                let reachable = kernel.statements.iter().filter(|&&(_, reachable, _)| reachable);
                let (of, ran) = reachable.fold((0, 0), |(of, ran), &(.., count)| (of + 1, ran + usize::from(count > 0)));
                eprintln!("{}: {ran} of {of} statements, at most {} iterations", kernel.name, kernel.iterations);
            }
        }
        let mut unreached = unreached(&kernels);
        let before = unreached.len();
        unreached.retain(|place, _| !UNREACHABLE.iter().any(|(file, words, _)| place.starts_with(file) && place.contains(words)));
        eprintln!("{} lines that never ran are explained by name", before - unreached.len());
        let families: HashSet<&str> = kernels.iter().map(|kernel| family(&kernel.name)).collect();
        let iterations = kernels.iter().map(|kernel| kernel.iterations).max().unwrap_or(0);
        eprintln!("{} kernels of {} families, at most {iterations} iterations of an invocation", kernels.len(), families.len());
        eprintln!("coverage: {} lines never run", unreached.len());
        unreached.iter().for_each(|(place, families)| eprintln!("  {place} in {}", families.join(", ")));
        for ((place, rule), found) in &inner.findings {
            let of = found.kernels.len();
            eprintln!("{place}: {rule}: {} ({} times, {of} kernel(s), first {})", found.detail, found.count, found.kernels[0]);
        }
        inner.complaints.iter().take(MOST_COMPLAINTS).for_each(|complaint| eprintln!("{complaint}"));
        if inner.complaints.len() > MOST_COMPLAINTS {
            eprintln!("... and {} more", inner.complaints.len() - MOST_COMPLAINTS);
        }
        (inner.findings.len() + inner.complaints.len(), unreached.len())
    }
}

/// Returns lines that no kernel of a family ran completely, with the families. A family's kernels have the same files,
/// and one kernel cannot take every branch: its problem lacks an option, or its shape needs no tail.
fn unreached<'a>(kernels: &[&'a Covered]) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut lines: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for kernel in kernels {
        let mut own: BTreeMap<&str, bool> = BTreeMap::new();
        for (place, reachable, count) in &kernel.statements {
            if *reachable {
                *own.entry(place).or_insert(true) &= *count > 0;
            }
        }
        for (place, ran) in own {
            *lines.entry((place, family(&kernel.name))).or_insert(false) |= ran;
        }
    }
    let mut unreached: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for ((place, family), _) in lines.into_iter().filter(|&(_, ran)| !ran) {
        unreached.entry(place).or_default().push(family);
    }
    unreached
}

/// Returns a kernel's name without the sizes of its shape.
fn family(name: &str) -> &str {
    name.split(|c: char| c.is_ascii_digit()).next().unwrap_or_default().trim_end()
}

/// Names a line of a kernel: file, number and text.
pub(crate) fn place_of(kernel: &KernelExport, line: u32) -> String {
    let place = kernel.locate(line);
    let words = kernel.text.lines().nth(line.saturating_sub(1) as usize).unwrap_or_default().trim();
    // Line numbers of the generated prelude differ from kernel to kernel.
    let place = if place.starts_with("prelude:") { "prelude" } else { &place };
    format!("{place} `{words}`")
}
