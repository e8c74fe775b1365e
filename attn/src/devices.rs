//! `attn devices`: what there is to compute on, and what would be taken.

use std::io::Write;

use serde_json::{Value, json};
use wgpu_attention::gpu::{self, AdapterReport};
use wgpu_attention::plan::DeviceClass;
use wgpu_attention::{Algorithm, Backend};

use crate::backend;
use crate::failure::Failure;
use crate::terminal::Terminal;

const EXAMPLES: &str = "\
Examples:
  attn devices                              everything found, the best first
  attn devices --json | jq .chosen          for programs
  WGPU_BACKEND=vulkan attn devices          what would be chosen then

A software adapter (lavapipe, llvmpipe, WARP) is taken only when it is asked for: by --backend, WGPU_BACKEND or
WGPU_ADAPTER_NAME. Where there is no GPU the CPU path stands in.";

/// The arguments.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let adapters = pollster::block_on(gpu::list());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chosen = backend::open(&Backend::Auto, Algorithm::Auto, false);
    if args.json {
        let chosen = match &chosen {
            Ok(engine) => json!({ "name": engine.chosen(), "why": engine.why() }),
            Err(_) => Value::Null,
        };
        let adapters: Vec<Value> = adapters.iter().map(as_json).collect();
        terminal.json(&json!({ "adapters": adapters, "cpu": { "threads": threads }, "chosen": chosen }), false)?;
    } else {
        for adapter in &adapters {
            tell(terminal, adapter)?;
        }
        if adapters.is_empty() {
            writeln!(terminal, "no adapter that can compute\n")?;
        }
        let title = terminal.bold("CPU path");
        writeln!(terminal, "{title}\n  {threads} threads\n")?;
    }
    let engine = chosen?;
    if !args.json {
        writeln!(terminal, "By default: {} ({})", engine.chosen(), engine.why())?;
    }
    Ok(())
}

fn tell(terminal: &mut Terminal, adapter: &AdapterReport) -> Result<(), Failure> {
    let AdapterReport { name, backend, driver, caps, features, verdict, would_be_chosen } = adapter;
    let title = terminal.bold(name);
    let subgroups = if caps.subgroup_size == 0 { "none".to_string() } else { format!("from {} threads", caps.subgroup_size) };
    let mebibytes = |bytes: u64| bytes >> 20;
    writeln!(terminal, "{title}")?;
    writeln!(terminal, "  backend     {backend}, driver {}", if driver.is_empty() { "unknown" } else { driver })?;
    writeln!(terminal, "  class       {}", class(caps.class))?;
    writeln!(terminal, "  subgroups   {subgroups}")?;
    let matrices = match caps.matrix_size {
        0 => "none of f16 with f32 sums".to_string(),
        size => format!("{size}x{size}, f16 with f32 sums"),
    };
    writeln!(terminal, "  matrices    {matrices}")?;
    writeln!(terminal, "  workgroup   {} bytes of memory, {} threads", caps.workgroup_bytes, caps.workgroup_threads)?;
    writeln!(terminal, "  grid        {} workgroups a dimension", caps.workgroups_per_dimension)?;
    writeln!(terminal, "  buffers     {} MiB, {} MiB bound at once", mebibytes(caps.buffer_bytes), mebibytes(caps.binding_bytes))?;
    writeln!(terminal, "  features    {}", if features.is_empty() { "none that matter".to_string() } else { features.join(", ") })?;
    writeln!(terminal, "  {}: {verdict}\n", if *would_be_chosen { "default    " } else { "not default" })?;
    Ok(())
}

fn class(class: DeviceClass) -> &'static str {
    match class {
        DeviceClass::Software => "software",
        DeviceClass::Integrated => "integrated",
        DeviceClass::Discrete => "discrete",
    }
}

fn as_json(adapter: &AdapterReport) -> Value {
    let caps = &adapter.caps;
    json!({
        "name": adapter.name,
        "backend": adapter.backend,
        "driver": adapter.driver,
        "class": class(caps.class),
        "features": adapter.features,
        "limits": {
            "subgroup_size": caps.subgroup_size,
            "cooperative_matrix_size": caps.matrix_size,
            "max_compute_workgroup_storage_size": caps.workgroup_bytes,
            "max_compute_invocations_per_workgroup": caps.workgroup_threads,
            "max_compute_workgroups_per_dimension": caps.workgroups_per_dimension,
            "max_buffer_size": caps.buffer_bytes,
            "max_storage_buffer_binding_size": caps.binding_bytes,
            "max_storage_buffers_per_shader_stage": caps.storage_buffers,
        },
        "would_be_chosen": adapter.would_be_chosen,
        "verdict": adapter.verdict,
    })
}
