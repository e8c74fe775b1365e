//! What the figures depend on besides the code: the machine, its limits, the day.

use std::hint::black_box;
use std::time::Instant;

use serde_json::{Value, json};

/// The first line of a record; `copy_gb_s` is what [`copy_gb_s`] measured.
pub(super) fn line(copy_gb_s: f64) -> Value {
    json!({
        "machine": cpu_name(), "threads": rayon::current_num_threads(), "os": std::env::consts::OS, "date": jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
        "version": env!("CARGO_PKG_VERSION"), "copy_gb_s": copy_gb_s, "multiply_add_gflops": wgpu_attention::cpu::multiply_add_gflops(),
        "program_bytes": std::env::current_exe().and_then(std::fs::metadata).map(|file| file.len()).ok(),
    })
}

fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

/// Bytes read and written by a copy on all threads, 10^9 a second: the best of several.
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

/// From now on, the peak is counted anew; where the system cannot do that, since the start of the process.
pub(super) fn reset_peak() {
    // Linux: 5 resets VmHWM.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most memory that the process has had.
pub(super) fn peak_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
