//! Records of the lab: as lines, as a document, and compared with the last one.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::isa::Shares;
use crate::kernels::Kernel;
use crate::targets::{Figures, TARGETS, Target};

/// Line that `xtask stats` prints.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// Name of the driver; the first line.
    Driver(String),
    /// Result of one kernel.
    Kernel(Box<Entry>),
}

/// Result of one kernel on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) target: String,
    pub(crate) case: String,
    pub(crate) kernel: String,
    pub(crate) workgroup_bytes: u32,
    pub(crate) figures: Figures,
    pub(crate) shares: Option<Shares>,
    /// Matrix instructions, if the driver returns machine code that we can read.
    pub(crate) matrix: Option<u32>,
    /// Compile time.
    pub(crate) milliseconds: f64,
    pub(crate) error: Option<String>,
}

impl Entry {
    pub(crate) fn new(target: &str, kernel: &Kernel) -> Self {
        Self {
            target: target.into(),
            case: kernel.case.clone(),
            kernel: kernel.name.clone(),
            workgroup_bytes: kernel.workgroup_bytes,
            figures: Figures::default(),
            shares: None,
            matrix: None,
            milliseconds: 0.0,
            error: None,
        }
    }

    /// Returns the extent of spilling: the larger of the figures `spills` and `scratch`.
    fn spilled(&self) -> f64 {
        self.figures.spills.unwrap_or(0.0).max(self.figures.scratch.unwrap_or(0.0))
    }
}

/// Results of one run of the lab.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Record {
    /// Name of each target's driver.
    pub(crate) drivers: BTreeMap<String, String>,
    pub(crate) entries: Vec<Entry>,
}

const COLUMNS: &str = "target\tcase\tkernel\tworkgroup_bytes\tregisters\tspills\tscratch\toccupancy\tinstructions\tcycles\tfma_loop\tfma_inner\tmatrix\terror";

impl Record {
    /// Returns one line per kernel and target, after a header.
    pub(crate) fn tsv(&self) -> String {
        let mut text = format!("{COLUMNS}\n");
        for entry in &self.entries {
            let Entry { target, case, kernel, workgroup_bytes, .. } = entry;
            let figures = cells(entry).join("\t");
            let error = entry.error.as_deref().unwrap_or_default().replace(['\t', '\n'], " ");
            let _ = writeln!(text, "{target}\t{case}\t{kernel}\t{workgroup_bytes}\t{figures}\t{error}");
        }
        text
    }

    /// Parses the output of [`Self::tsv`]. Drivers, shares and matrix instructions are not read.
    pub(crate) fn from_tsv(text: &str) -> Result<Self, String> {
        let mut lines = text.lines();
        if lines.next() != Some(COLUMNS) {
            return Err("lab.tsv has other columns than this program writes: write it anew with `cargo xtask lab`".into());
        }
        let parse = |(number, line): (usize, &str)| {
            let cells: Vec<&str> = line.split('\t').collect();
            let figure = |column: usize| cells[column].parse::<f64>().ok();
            if cells.len() != COLUMNS.split('\t').count() {
                return Err(format!("lab.tsv:{}: {} columns", number + 2, cells.len()));
            }
            Ok(Entry {
                target: cells[0].into(),
                case: cells[1].into(),
                kernel: cells[2].into(),
                workgroup_bytes: cells[3].parse().map_err(|_| format!("lab.tsv:{}: {} is no size", number + 2, cells[3]))?,
                figures: Figures {
                    registers: figure(4),
                    spills: figure(5),
                    scratch: figure(6),
                    occupancy: figure(7),
                    instructions: figure(8),
                    cycles: figure(9),
                },
                shares: None,
                matrix: None,
                milliseconds: 0.0,
                error: Some(cells[13].to_string()).filter(|error| !error.is_empty()),
            })
        };
        let entries = lines.enumerate().map(parse).collect::<Result<_, String>>()?;
        Ok(Self { drivers: BTreeMap::new(), entries })
    }

    /// Returns one line for everything on the targets that is worse than in `last`.
    pub(crate) fn worse_than(&self, last: &Self, targets: &[&Target]) -> Vec<String> {
        let mut worse = Vec::new();
        for target in targets {
            let has = |record: &Self| record.entries.iter().any(|entry| entry.target == target.name);
            if has(last) && !has(self) {
                worse.push(format!("{}: measured before, not in this lab", target.name));
            }
        }
        for entry in &self.entries {
            let before = last.entries.iter().find(|before| (&before.target, &before.case) == (&entry.target, &entry.case));
            let name = format!("{}, {} ({})", entry.target, entry.case, entry.kernel);
            match &entry.error {
                Some(error) if before.is_none_or(|before| before.error.is_none()) => worse.push(format!("{name}: {error}")),
                Some(_) => {}
                None => {
                    let spilled = before.map_or(0.0, Entry::spilled);
                    if entry.spilled() > spilled {
                        worse.push(format!("{name}: spills {}, {spilled} before", entry.spilled()));
                    }
                }
            }
        }
        worse
    }

    /// Returns a document: drivers, number of kernels that spill, and a table for each target.
    pub(crate) fn markdown(&self) -> String {
        let mut text = String::from(INTRODUCTION);
        for target in TARGETS {
            if let Some(driver) = self.drivers.get(target.name) {
                let count =
                    |what: &dyn Fn(&Entry) -> bool| self.entries.iter().filter(|entry| entry.target == target.name && what(entry)).count();
                let spills = |entry: &Entry| entry.figures.spills.is_some_and(|spills| spills > 0.0);
                let (kernels, failed) = (count(&|_| true), count(&|entry| entry.error.is_some()));
                let (spilling, arrays) = (count(&spills), count(&|entry| entry.spilled() > 0.0 && !spills(entry)));
                let _ = writeln!(text, "| {} | {} | {driver} | {kernels} | {failed} | {spilling} | {arrays} |", target.name, target.about);
            }
        }
        for target in TARGETS {
            let mut entries = self.entries.iter().filter(|entry| entry.target == target.name).peekable();
            if entries.peek().is_some() {
                let _ = write!(text, "\n## {}: {}\n\n{TABLE}", target.name, target.about);
            }
            for entry in entries {
                let cells = match &entry.error {
                    None => cells(entry).join(" | "),
                    Some(error) => format!("{} | | | | | | | |", error.replace(['\n', '|'], " ")),
                };
                let _ = writeln!(text, "| {} | {} | {} | {cells} |", entry.case, entry.kernel, entry.workgroup_bytes);
            }
        }
        text
    }
}

/// Returns the figures as text, empty if the driver reports none; shares in percent.
fn cells(entry: &Entry) -> Vec<String> {
    let Figures { registers, spills, scratch, occupancy, instructions, cycles } = entry.figures;
    let percent = |share: f64| (100.0 * share).round();
    let shares = [entry.shares.map(|shares| percent(shares.largest_loop)), entry.shares.map(|shares| percent(shares.inner_loop))];
    let all = [registers, spills, scratch, occupancy, instructions, cycles].into_iter().chain(shares).chain([entry.matrix.map(f64::from)]);
    all.map(|figure| figure.map(|figure| figure.to_string()).unwrap_or_default()).collect()
}

const INTRODUCTION: &str = "\
# What the compilers of other GPUs make of the kernels

Every kernel that the planner can choose on a GPU, compiled by Mesa's own compilers on virtual GPUs: `cargo xtask lab`. WGSL goes
through naga as wgpu 30 does it for a trusted shader: no run-time checks, workgroup memory not zeroed, robust buffer access on.

Registers are vector registers a thread (Adreno: vec4). Occupancy: AMD waves a SIMD (of 16), NVIDIA warps a multiprocessor (of 48),
Apple threads a core (of 1024), Adreno waves a core. Instructions and cycles (AMD: latency) count each instruction once. FMA: multiply-adds
among the vector instructions, in percent, read off the machine code: of the largest loop with all that is in it (a pass over a
tile of keys; where inner loops are not unrolled they weigh too little here, as each instruction counts once, however often it runs), and
of the inner loops the worst of those that have at least half as many multiply-adds as one of them (a kernel of tiles has two:
query times key, weight times value). Vector instructions are those of the vector ALU, v_..: not reads of workgroup memory, scalar instructions
and waits; of two that are issued together (v_dual_..) each counts. Matrix: matrix instructions (WMMA 16x16x16, HMMA 16x8x16),
also each once.
A kernel is named after the first problem that it is chosen for.

| target | stands for | driver | kernels | failed | spilling | with arrays in memory |
|---|---|---|---|---|---|---|
";

const TABLE: &str = "\
| case | kernel | workgroup bytes | registers | spills | scratch bytes | occupancy | instructions | cycles | FMA % loop | FMA % inner | matrix |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

#[cfg(test)]
mod tests {
    use super::*;

    fn record(spills: f64, error: Option<&str>) -> Record {
        let kernel = Kernel { case: "f32 D=64 prefill: tiles".into(), name: "tiles".into(), text: String::new(), workgroup_bytes: 64 };
        let figures = Figures { registers: Some(96.0), spills: Some(spills), ..Figures::default() };
        let entry = Entry { figures, error: error.map(Into::into), ..Entry::new("navi31", &kernel) };
        Record { drivers: BTreeMap::new(), entries: vec![entry] }
    }

    fn worse(now: &Record, last: &Record) -> usize {
        now.worse_than(last, &TARGETS.iter().collect::<Vec<_>>()).len()
    }

    #[test]
    fn lines_come_back() {
        for record in [record(3.0, None), record(0.0, Some("crashed"))] {
            assert_eq!(Record::from_tsv(&record.tsv()), Ok(record));
        }
        assert!(Record::from_tsv("target\tcase\n").is_err());
        assert!(Record::from_tsv(&format!("{COLUMNS}\nnavi31\tx\n")).is_err());
    }

    #[test]
    fn worse_is_told() {
        let (fine, spilling, broken) = (record(0.0, None), record(2.0, None), record(0.0, Some("crashed")));
        let nothing = Record::default();
        assert_eq!(worse(&fine, &fine), 0);
        assert_eq!(worse(&fine, &spilling), 0);
        assert_eq!(worse(&spilling, &spilling), 0);
        assert_eq!(worse(&broken, &broken), 0);
        assert_eq!(worse(&spilling, &fine), 1);
        assert_eq!(worse(&broken, &fine), 1);
        // A new kernel must not spill either.
        assert_eq!(worse(&spilling, &nothing), 1);
        assert_eq!(worse(&fine, &nothing), 0);
        // A missing target is reported once, without its kernels.
        assert_eq!(worse(&nothing, &fine), 1);
    }
}
