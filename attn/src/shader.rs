//! `attn shader`: the WGSL that computes a problem, planned for a device that need not be here.

use std::io::Write;

use crate::failure::Failure;
use crate::plan_args::PlanArgs;
use crate::terminal::Terminal;

const EXAMPLES: &str = "\
Examples:
  attn shader --shape 1,8,8,1024,1024,64 --causal
  attn shader --term causal=bottom-right --term window=128,0 --backward
  attn shader --visible 'at.key <= at.position && at.position - at.key < 128'
  attn shader --score 'x - slopes[at.head] * f32(abs(at.position - at.key))' --table slopes=0*8:f32
  attn shader --subgroups 32 --dtype f16

Kernels are printed in the order in which they run first, each once, with the names of their files. `attn export` has \
all else that a WebGPU host needs to run them.";

/// Arguments of `attn shader`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    plan: PlanArgs,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    for kernel in &args.plan.export()?.kernels {
        let files: Vec<&str> = kernel.files.iter().map(|(_, name)| name.as_str()).collect();
        writeln!(terminal, "// {}: {}\n{}", kernel.name, files.join(", "), kernel.standard())?;
    }
    Ok(())
}
