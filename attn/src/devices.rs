//! `attn devices`: the adapters of this machine and the default choice.

use std::io::Write;

use serde_json::{Value, json};
use wgpu_attention::Backend;
use wgpu_attention::gpu::{self, AdapterReport, Findings};
use wgpu_attention::plan::DeviceClass;

use crate::backend;
use crate::failure::Failure;
use crate::terminal::Terminal;

const EXAMPLES: &str = "\
Examples:
  attn devices                              everything found, the best first
  attn devices --json | jq .chosen          for programs
  WGPU_BACKEND=vulkan attn devices          what would be chosen then

A software adapter (lavapipe, llvmpipe, WARP) is taken only when it is asked for: by --backend, WGPU_BACKEND or \
WGPU_ADAPTER_NAME. Without a GPU the CPU path is used.";

/// Arguments of `attn devices`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, terminal: &mut Terminal) -> Result<(), Failure> {
    let adapters = pollster::block_on(gpu::list_with_findings());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chosen = backend::open(&Backend::Auto);
    if args.json {
        let chosen = match &chosen {
            Ok(engine) => json!({ "name": engine.chosen(), "why": engine.why() }),
            Err(_) => Value::Null,
        };
        let adapters: Vec<Value> = adapters.iter().map(|(adapter, found)| as_json(adapter, found.as_ref().ok())).collect();
        terminal.json(&json!({ "adapters": adapters, "cpu": { "threads": threads }, "chosen": chosen }), false)?;
    } else {
        for (adapter, found) in &adapters {
            tell(terminal, adapter, found)?;
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

fn tell(terminal: &mut Terminal, adapter: &AdapterReport, found: &wgpu_attention::Result<Findings>) -> Result<(), Failure> {
    let AdapterReport { name, backend, driver, caps, features, verdict, would_be_chosen, .. } = adapter;
    let or = |text: String, otherwise: &str| if text.is_empty() { otherwise.to_string() } else { text };
    let subgroups = if caps.subgroup_size == 0 { String::new() } else { format!("from {} threads", caps.subgroup_size) };
    let matrices = if caps.matrix_size == 0 { String::new() } else { format!("{0}x{0}, f16 with f32 sums", caps.matrix_size) };
    let mut lines = vec![
        format!("backend\t{backend}, driver {}", or(driver.clone(), "unknown")),
        format!("class\t{}", class(caps.class)),
        format!("subgroups\t{}", or(subgroups, "none")),
        format!("matrices\t{}", or(matrices, "none of f16 with f32 sums")),
        format!("workgroup\t{} bytes of memory, {} threads", caps.workgroup_bytes, caps.workgroup_threads),
        format!("grid\t{} workgroups per dimension", caps.workgroups_per_dimension),
        format!("buffers\t{} MiB, {} MiB in one binding", caps.buffer_bytes >> 20, caps.binding_bytes >> 20),
        format!("features\t{}", or(features.join(", "), "none that are used")),
    ];
    match found {
        Ok(found) => lines.extend(findings(adapter, found)),
        Err(error) => lines.push(format!("tried\t{error}")),
    }
    lines.push(format!("{}\t{verdict}", if *would_be_chosen { "default" } else { "not default" }));
    let title = terminal.bold(name);
    writeln!(terminal, "{title}")?;
    terminal.table(2, &lines)?;
    writeln!(terminal)?;
    Ok(())
}

/// Describes the behaviour that the probes found.
fn findings(adapter: &AdapterReport, found: &Findings) -> Vec<String> {
    let loops = match found.loop_iterations {
        Some(most) => format!("end after {most} iterations of an invocation"),
        None if adapter.caps.class == DeviceClass::Software => "do not end early".into(),
        None => "not tried on a real GPU".into(),
    };
    let keeps = |keeps: bool| if keeps { "NaN" } else { "a number" };
    let (exp, max) = (keeps(found.exp_keeps_nan), keeps(found.max_keeps_nan));
    let differs = if found.nan_differs { "differs from" } else { "equals" };
    let narrow = half(found.half_of_70000);
    let lanes = found.subgroup_size.zip(found.lanes_in_order).map(|(size, in_order)| {
        let not = if in_order { "" } else { "not " };
        format!("lanes\t{size} seen, {not}in the order of threads")
    });
    let numbers = format!("numbers\texp(NaN) is {exp}, max(NaN, 1) {max}; NaN {differs} itself; 7e4 as f16 is {narrow}");
    let params = if adapter.caps.params_in_storage { "a storage buffer" } else { "a uniform buffer" };
    [format!("loops\t{loops}"), numbers].into_iter().chain(lanes).chain([format!("parameters\tfrom {params}")]).collect()
}

/// Names the bits of an f16 that should be infinite.
fn half(bits: u16) -> String {
    match bits & 0x7fff {
        0x7c00 => "infinity".into(),
        0x7c01.. => "NaN".into(),
        bits => format!("{bits:#06x}"),
    }
}

fn class(class: DeviceClass) -> String {
    format!("{class:?}").to_lowercase()
}

fn as_json(adapter: &AdapterReport, found: Option<&Findings>) -> Value {
    let caps = &adapter.caps;
    json!({
        "name": adapter.name, "backend": adapter.backend, "driver": adapter.driver, "class": class(caps.class),
        "features": adapter.features,
        "limits": {
            "subgroup_size": caps.subgroup_size, "cooperative_matrix_size": caps.matrix_size,
            "max_compute_workgroup_storage_size": caps.workgroup_bytes,
            "max_compute_invocations_per_workgroup": caps.workgroup_threads,
            "max_compute_workgroups_per_dimension": caps.workgroups_per_dimension,
            "max_buffer_size": caps.buffer_bytes, "max_storage_buffer_binding_size": caps.binding_bytes,
            "max_storage_buffers_per_shader_stage": caps.storage_buffers,
        },
        "found": found.map(|found| json!({
            "loop_iterations": found.loop_iterations, "exp_keeps_nan": found.exp_keeps_nan, "max_keeps_nan": found.max_keeps_nan,
            "nan_differs": found.nan_differs, "f16_of_70000": half(found.half_of_70000), "subgroup_size": found.subgroup_size,
            "lanes_in_order": found.lanes_in_order, "params_in_storage": caps.params_in_storage,
        })),
        "would_be_chosen": adapter.would_be_chosen, "verdict": adapter.verdict,
    })
}
