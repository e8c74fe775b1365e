//! `attn` without a subcommand: a tour in under a minute.

use std::io::Write;

use wgpu_attention::Backend;

use crate::failure::Failure;
use crate::terminal::Terminal;
use crate::{backend, bench, explain, verify};

const NEXT: &str = "\
Where to go next:
  attn explain             the example above, step by step; --svg FILE draws it
  attn run --help          your own arrays, from NumPy or safetensors
  attn devices             devices to compute on
  attn verify              more problems, case files, every backend
  attn bench --help        other shapes and types
  attn --help              everything";

pub(crate) fn run(terminal: &mut Terminal) -> Result<(), Failure> {
    let engine = backend::open(&Backend::Auto)?;
    let title = terminal.bold("wgpu-attention");
    writeln!(terminal, "{title}: working on {} ({})\n", engine.chosen(), engine.why())?;
    explain::brief(terminal, &engine)?;
    writeln!(terminal, "\n  A dozen random problems, each compared with the oracle:\n")?;
    verify::brief(terminal)?;
    writeln!(terminal, "\n  How fast:\n")?;
    bench::brief(terminal, &[Backend::Auto, Backend::Cpu])?;
    writeln!(terminal, "{NEXT}")?;
    Ok(())
}
