//! What the simulator said of each kernel, over all runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use wgpu_attention::plan::KernelExport;
use wgpu_attention_simulator::{Report, Rule, Shader};

/// Everything that was found, and what ran.
#[derive(Default)]
pub(crate) struct Log(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// By text.
    kernels: HashMap<String, Kernel>,
    /// By rule, place and the other place.
    findings: BTreeMap<(String, Rule), Found>,
    complaints: Vec<String>,
}

/// A kernel that ran.
struct Kernel {
    name: String,
    /// File and line of each statement, whether it can be reached, and how often it ran.
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
        let known = inner.kernels.entry(kernel.text.clone()).or_insert_with(|| Kernel {
            name: kernel.name.clone(),
            statements: shader.lines().map(|(line, reachable)| (kernel.locate(line), reachable, 0)).collect(),
            iterations: 0,
        });
        known.iterations = known.iterations.max(report.iterations);
        known.statements.iter_mut().zip(&report.covered).for_each(|((_, _, ran), more)| *ran += more);
        for finding in &report.findings {
            let other = finding.other.map(|line| format!(" and {}", kernel.locate(line))).unwrap_or_default();
            let found = inner.findings.entry((kernel.locate(finding.line) + &other, finding.rule)).or_default();
            if found.count == 0 {
                found.detail.clone_from(&finding.detail);
            }
            found.count += finding.count;
            if !found.kernels.contains(&kernel.name) {
                found.kernels.push(kernel.name.clone());
            }
        }
    }

    /// A wrong answer, or one that is not there.
    pub(crate) fn complain(&self, what: String) {
        self.lock().complaints.push(what);
    }

    /// True if the kernel with this text ran.
    pub(crate) fn has(&self, text: &str) -> bool {
        self.lock().kernels.contains_key(text)
    }

    /// Prints it all; gives the number of findings and complaints, and of statements that never ran.
    pub(crate) fn print(&self, verbose: bool) -> (usize, usize) {
        let inner = self.lock();
        let mut unreached: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        let (mut all, mut ran) = (0, 0);
        let mut kernels: Vec<&Kernel> = inner.kernels.values().collect();
        kernels.sort_by_key(|kernel| &kernel.name);
        for kernel in &kernels {
            let reachable = kernel.statements.iter().filter(|&&(_, reachable, _)| reachable);
            let (mut of, mut covered) = (0, 0);
            for (place, _, count) in reachable {
                of += 1;
                covered += usize::from(*count > 0);
                if *count == 0 {
                    unreached.entry(place).or_insert((0, &kernel.name)).0 += 1;
                }
            }
            (all, ran) = (all + of, ran + covered);
            if verbose {
                println!("{}: {covered} of {of} statements, at most {} iterations", kernel.name, kernel.iterations);
            }
        }
        println!("coverage: {ran} of {all} statements of {} kernels ran", kernels.len());
        for (place, (count, name)) in &unreached {
            println!("  never run: {place} in {count} kernel(s), first {name}");
        }
        for ((place, rule), found) in &inner.findings {
            let of = found.kernels.len();
            println!("{place}: {rule}: {} ({} times, {of} kernel(s), first {})", found.detail, found.count, found.kernels[0]);
        }
        inner.complaints.iter().for_each(|complaint| println!("{complaint}"));
        (inner.findings.len() + inner.complaints.len(), all - ran)
    }
}
