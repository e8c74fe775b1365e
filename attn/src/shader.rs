//! `attn shader`: the WGSL that computes a problem, planned for a device that need not be here.

use std::io::Write;

use serde_json::{Value, json};
use wgpu_attention::plan::{BufferExport, DeviceCaps, DeviceClass, DispatchExport, Plan, PlanExport};
use wgpu_attention::{Algorithm, Alignment, WantGradients};

use crate::backend::one_of;
use crate::bench::ShapeArgs;
use crate::failure::Failure;
use crate::terminal::{Terminal, note};
use crate::user_terms::TermArgs;

const EXAMPLES: &str = "\
Examples:
  attn shader --shape 1,8,8,1024,1024,64 --causal
  attn shader --term causal=bottom-right --term window=128,0 --backward
  attn shader --visible 'at.key <= at.position && at.position - at.key < 128'
  attn shader --score 'x - slopes[at.head] * f32(abs(at.position - at.key))' --table slopes=0*8:f32
  attn shader --subgroups 32 --dtype f16 --json | jq '.dispatches[].grid'

Kernels are printed in the order in which they run first, each once, with the names of their files. --json has all \
that a WebGPU host needs to run the plan: kernels, scratch buffers, and each dispatch with its parameters (bytes) and \
bindings.";

/// Arguments of `attn shader`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    shapes: ShapeArgs,
    #[command(flatten)]
    terms: TermArgs,
    /// Positions of the rows, if something counts from them [default: that of --causal or --term, else bottom-right]
    #[arg(long, value_name = "top-left|bottom-right|OFFSET", value_parser = str::parse::<Alignment>, allow_negative_numbers = true)]
    align: Option<Alignment>,
    /// Plan the gradients of query, key and value instead of the forward pass
    #[arg(long, conflicts_with = "algorithm")]
    backward: bool,
    /// Kernels: auto (fused, but staged where heads are too wide), fused or staged
    #[arg(long, value_name = "KERNELS", value_parser = algorithm)]
    algorithm: Option<Algorithm>,
    /// Kind of device: discrete, integrated or software. Its limits are WebGPU's defaults
    #[arg(long, value_name = "CLASS", default_value = "discrete", value_parser = class)]
    class: DeviceClass,
    /// Size of the device's subgroups, a power of two; 0 where it has none
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = subgroups)]
    subgroups: u32,
    /// Print the plan as one JSON object: kernels, scratch buffers and dispatches
    #[arg(long)]
    json: bool,
}

fn class(text: &str) -> Result<DeviceClass, String> {
    let classes = [("discrete", DeviceClass::Discrete), ("integrated", DeviceClass::Integrated), ("software", DeviceClass::Software)];
    one_of(text, &classes)
}

fn algorithm(text: &str) -> Result<Algorithm, String> {
    one_of(text, &[("auto", Algorithm::Auto), ("fused", Algorithm::Fused), ("staged", Algorithm::Staged)])
}

fn subgroups(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|&size: &u32| size == 0 || (4..=128).contains(&size) && size.is_power_of_two());
    size.ok_or("say 0, 4, 8, 16, 32, 64 or 128".into())
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let mut tasks = args.shapes.tasks(&["1,8,8,512,512,64"])?;
    let [task] = &mut tasks[..] else { return Err(Failure::at("--shape", "is given twice; a plan is of one shape")) };
    if let Some(align) = args.align
        && let Some(said) = task.problem.visibility.alignment.replace(align)
    {
        return Err(Failure::at("--align", format!("--causal or --term says where the rows stand: {said:?}")));
    }
    let terms = args.terms.read()?;
    task.add(&terms)?;
    let problem = &task.problem;
    let caps =
        DeviceCaps { class: args.class, subgroup_size: args.subgroups, subgroup_max: args.subgroups, ..DeviceCaps::webgpu_defaults() };
    let plan = match args.backward {
        true => Plan::backward(problem, &WantGradients::default(), &caps),
        false => Plan::new(problem, &caps, args.algorithm.unwrap_or(Algorithm::Auto)),
    };
    let plan = plan.map_err(|error| terms.explain(error))?;
    note(format_args!("{task}: {}", plan.summary()));
    let export = plan.export();
    if args.json {
        return Ok(terminal.json(&as_json(&export), true)?);
    }
    for kernel in &export.kernels {
        let files: Vec<&str> = kernel.files.iter().map(|(_, name)| name.as_str()).collect();
        writeln!(terminal, "// {}: {}\n{}", kernel.name, files.join(", "), kernel.text)?;
    }
    Ok(())
}

fn as_json(plan: &PlanExport) -> Value {
    let kernels: Vec<Value> = plan
        .kernels
        .iter()
        .map(|kernel| {
            let files: Vec<Value> = kernel.files.iter().map(|(line, name)| json!({ "line": line, "file": name })).collect();
            json!({ "name": kernel.name, "text": kernel.text, "files": files })
        })
        .collect();
    let dispatches: Vec<Value> = plan.dispatches.iter().map(dispatch).collect();
    json!({ "version": plan.version, "kernels": kernels, "scratch": plan.scratch, "dispatches": dispatches })
}

fn dispatch(dispatch: &DispatchExport) -> Value {
    let buffer = |buffer: BufferExport| match buffer {
        BufferExport::Params => json!("params"),
        BufferExport::Tensor(name) => json!(name),
        BufferExport::Scratch(index) => json!({ "scratch": index }),
    };
    let bindings: Vec<Value> = dispatch.bindings.iter().map(|binding| {
        json!({ "binding": binding.binding, "buffer": buffer(binding.buffer), "offset": binding.offset, "size": binding.size })
    }).collect();
    json!({ "kernel": dispatch.kernel, "grid": dispatch.grid, "params": dispatch.params, "bindings": bindings })
}
