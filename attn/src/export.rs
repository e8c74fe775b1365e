//! `attn export`: a plan for any WebGPU host, made without a device.

use std::io::Write;

use wgpu_attention::plan::{PlanExport, TensorExport};

use crate::failure::Failure;
use crate::plan_args::PlanArgs;
use crate::terminal::Terminal;

const EXAMPLES: &str = "\
Examples:
  attn export --shape 1,8,8,512,512,64 --causal                      what the plan needs, as a table
  attn export --shape 1,8,8,512,512,64 --causal --json > plan.json   the plan, for web/run-plan.mjs and others
  attn export --shape 1,32,8,1,4096,128 --dtype f16 --json > decode.json
  attn export --visible 'at.key <= at.position && at.position - at.key < 128' --json > window.json
  attn export --stats --json > forward.json                          (m, l) too, which gradients read
  attn export --key-sums all --json > heavy_hitters.json             the sum of each key's weights too
  attn export --backward --json > backward.json
  attn export --subgroups 32 --limit maxComputeWorkgroupStorageSize=32768 --json > apple.json

Without --subgroups and --limit the plan runs on every device that has WebGPU. docs/export.md describes the JSON.";

/// Arguments of `attn export`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    plan: PlanArgs,
    /// Print the plan as one JSON object: all that a WebGPU host needs to run it
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let plan = args.plan.export()?;
    if args.json {
        write!(terminal, "{}", plan.to_json())?;
        return Ok(());
    }
    writeln!(terminal, "Buffers to bind")?;
    terminal.table(2, &plan.tensors.iter().map(tensor).collect::<Vec<_>>())?;
    writeln!(terminal, "Needed of the device")?;
    terminal.table(2, &requirements(&plan))?;
    writeln!(terminal, "Dispatches")?;
    let dispatch = |(at, dispatch): (usize, &wgpu_attention::plan::DispatchExport)| {
        let [x, y, _] = dispatch.grid;
        format!("{at}\t{x} x {y} workgroups\t{}", plan.kernels[dispatch.kernel].name)
    };
    terminal.table(2, &plan.dispatches.iter().enumerate().map(dispatch).collect::<Vec<_>>())?;
    Ok(())
}

fn tensor(tensor: &TensorExport) -> String {
    let TensorExport { name, written, dtype, shape, bytes, .. } = tensor;
    format!("{name}\t{dtype} {shape:?}\t{bytes} B\t{}", if *written { "written" } else { "read" })
}

fn requirements(plan: &PlanExport) -> Vec<String> {
    let requires = &plan.requires;
    let features = requires.features.iter().map(|feature| format!("feature\t{feature}"));
    let lanes = requires.subgroup_size.map(|lanes| format!("lanes of a subgroup\t{lanes}"));
    let limits = requires.limits.iter().map(|(name, least)| format!("{name}\t{least}"));
    let scratch = format!("scratch bytes\t{}", plan.scratch.iter().sum::<u64>());
    features.chain(lanes).chain(limits).chain([scratch]).collect()
}
