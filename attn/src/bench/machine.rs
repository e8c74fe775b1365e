//! Conditions of a measurement besides the code: the machine, its limits, the date.

use std::hint::black_box;
use std::time::Instant;

use serde_json::{Map, Value, json};
use wgpu_attention::cpu;

/// Arrays whose reading is measured: in the first and second cache of a core, and in memory, if no other cache is larger.
const READS: [(&str, usize); 3] = [("16 KiB", 16 << 10), ("512 KiB", 512 << 10), ("128 MiB", 128 << 20)];

/// Measures the machine for a second or two, and returns the first line of a record; `copy_gb_s` is the result of [`copy_gb_s`].
pub(super) fn line(copy_gb_s: f64) -> Value {
    let peaks = cpu::peaks();
    let used = peaks.last();
    let of_sets: Map<String, Value> = peaks
        .iter()
        .flat_map(|peak| {
            [(peak.name.to_string(), Some(peak.multiply_add_gflops)), (format!("{}, matrices", peak.name), peak.matrix_gflops)]
        })
        .filter_map(|(name, gflops)| Some((name, json!(gflops?))))
        .collect();
    let reads: Map<String, Value> = READS.iter().map(|&(name, bytes)| (name.to_string(), json!(cpu::read_gb_s(bytes)))).collect();
    json!({
        "machine": proc_entry("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string()),
        "threads": rayon::current_num_threads(), "os": std::env::consts::OS, "date": jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        "version": env!("CARGO_PKG_VERSION"), "copy_gb_s": copy_gb_s, "read_gb_s": reads, "gflops_of_instructions": of_sets,
        "multiply_add_gflops": used.map(|peak| peak.multiply_add_gflops), "matrix_gflops": used.and_then(|peak| peak.matrix_gflops),
        "program_bytes": std::env::current_exe().and_then(std::fs::metadata).map(|file| file.len()).ok(),
    })
}

/// Reads the entry `name: value` of a file of Linux.
fn proc_entry(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let entry = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(entry.trim().to_string())
}

fn proc_bytes(path: &str, name: &str) -> Option<u64> {
    proc_entry(path, name)?.strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Measures the bandwidth of a copy on all threads in GB/s, reads plus writes: the best of several runs.
pub(super) fn copy_gb_s() -> f64 {
    use rayon::prelude::*;
    const LEN: usize = 16 << 20;
    let from = vec![1.0f32; LEN];
    let mut to = vec![0.0f32; LEN];
    let share = LEN / rayon::current_num_threads().max(1);
    let mut best = f64::INFINITY;
    for _ in 0..8 {
        let started = Instant::now();
        to.par_chunks_mut(share).zip(from.par_chunks(share)).for_each(|(to, from)| to.copy_from_slice(from));
        best = best.min(started.elapsed().as_secs_f64());
        black_box(&mut to);
    }
    (2 * 4 * LEN) as f64 / best / 1e9
}

/// Watches the peak resident memory of a process. On systems without /proc it knows nothing.
pub(super) struct MemoryWatch {
    status: String,
    /// Resident memory at the start, in bytes.
    before: Option<u64>,
}

/// Resident memory in bytes: the peak of a process, and how much that is above what it held before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PeakMemory {
    pub(super) all: Option<u64>,
    pub(super) extra: Option<u64>,
}

impl MemoryWatch {
    /// Starts to watch a process: its number, or `self`.
    pub(super) fn start(process: &str) -> Self {
        // Linux: writing 5 resets the peak. Where that is not allowed, the peak counts from the start of the process.
        let _ = std::fs::write(format!("/proc/{process}/clear_refs"), "5");
        let status = format!("/proc/{process}/status");
        Self { before: proc_bytes(&status, "VmRSS"), status }
    }

    pub(super) fn peak(&self) -> PeakMemory {
        let all = proc_bytes(&self.status, "VmHWM");
        PeakMemory { all, extra: all.zip(self.before).map(|(all, before)| all.saturating_sub(before)) }
    }
}

/// Returns the available memory in bytes, if the system reports it.
pub(super) fn free_bytes() -> Option<u64> {
    proc_bytes("/proc/meminfo", "MemAvailable")
}

/// Milliseconds since `start`.
pub(super) fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Minimum, median and maximum, or `None` if there are no times.
pub(super) fn spread(times: &[f64]) -> Option<[f64; 3]> {
    let times = sorted(times.to_vec());
    let (&min, &max) = (times.first()?, times.last()?);
    Some([min, (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0, max])
}

/// Times in ascending order.
pub(super) fn sorted(mut times: Vec<f64>) -> Vec<f64> {
    times.sort_by(f64::total_cmp);
    times
}
