//! What the figures depend on besides the code: the machine, its limits, the day.

use std::hint::black_box;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The first line of a record.
pub(super) fn line() -> Value {
    json!({
        "machine": cpu_name(), "threads": rayon::current_num_threads(), "os": std::env::consts::OS, "date": today(),
        "version": env!("CARGO_PKG_VERSION"), "copy_gb_s": copy_gb_s(), "multiply_add_gflops": wgpu_attention::cpu::multiply_add_gflops(),
        "program_bytes": std::env::current_exe().and_then(std::fs::metadata).map(|file| file.len()).ok(),
    })
}

fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_string(), |(_, name)| name.trim().to_string())
}

/// The date in UTC, by the calendar algorithm of Howard Hinnant, "chrono-compatible low-level date algorithms".
fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() / 86_400) as i64 + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * shifted + 2) / 5 + 1, if shifted < 10 { shifted + 3 } else { shifted - 9 });
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
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
