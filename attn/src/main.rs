//! `attn`: explain, run, verify and benchmark attention from a shell.
//!
//! Answers go to standard output, everything else to standard error. Exit code 0: fine; 1: a check or the device
//! failed; 2: the request is invalid or not supported.

mod arrays;
mod backend;
mod bench;
mod devices;
mod explain;
mod export;
mod failure;
mod measure;
mod plan_args;
mod report;
mod run;
mod shader;
mod terminal;
mod tour;
mod tune;
mod user_terms;
mod verify;

use std::process::ExitCode;

use clap::{ColorChoice, Parser, Subcommand};

use terminal::{Terminal, note};

const EXAMPLES: &str = "\
Examples:
  attn                                      a tour in under a minute
  attn explain                              attention step by step, on six words
  attn devices                              devices to compute on
  attn run --query q.npy --key k.npy --value v.npy --out o.npy
  attn verify                               every backend against the oracle
  attn bench --shape 1,32,8,1024,1024,128 --causal

Exit code: 0 fine, 1 a check or the device failed, 2 the request is invalid or not supported.
Environment: WGPU_BACKEND, WGPU_ADAPTER_NAME and WGPU_POWER_PREF choose the adapter; WGPU_ATTENTION_PIPELINE_CACHE \
names a folder for compiled kernels; NO_COLOR; RUST_LOG.";

/// Attention on any GPU that wgpu supports, and on the CPU
#[derive(Parser, Debug)]
#[command(name = "attn", version, after_help = EXAMPLES, max_term_width = 99)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// When to colour the output
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    color: ColorChoice,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// List the devices to compute on, and the default one
    Devices(devices::Args),
    /// Show attention step by step on a sentence, as text, JSON or a picture
    Explain(explain::Args),
    /// Compute attention on arrays from .npy or .safetensors files
    Run(run::Args),
    /// Run problems with known answers on every backend found
    Verify(verify::Args),
    /// Time attention: fused against staged against CPU, each answer checked first
    Bench(bench::Args),
    /// Verify, tune and time a GPU in ten minutes, and write a record
    Measure(measure::Args),
    /// Find the fastest kernels of a GPU by trying them
    Tune(tune::Args),
    /// Print the WGSL that computes a problem, without a GPU
    Shader(shader::Args),
    /// Export the plan of a problem for any WebGPU host, without a GPU
    Export(export::Args),
    /// Render the output of `attn bench --json` as a page of tables and charts
    Report(report::Args),
}

fn main() -> ExitCode {
    quiet_wayland();
    let cli = Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("wgpu_attention=warn")).init();
    let mut terminal = Terminal::new(cli.color);
    let outcome = match &cli.command {
        None => tour::run(&mut terminal),
        Some(Command::Explain(args)) => explain::run(args, &mut terminal),
        Some(Command::Devices(args)) => devices::run(args, &mut terminal),
        Some(Command::Run(args)) => run::run(args, &mut terminal),
        Some(Command::Verify(args)) => verify::run(args, &mut terminal),
        Some(Command::Bench(args)) => bench::run(args, &mut terminal),
        Some(Command::Measure(args)) => measure::run(args, &mut terminal),
        Some(Command::Tune(args)) => tune::run(args, &mut terminal),
        Some(Command::Shader(args)) => shader::run(args, &mut terminal),
        Some(Command::Export(args)) => export::run(args, &mut terminal),
        Some(Command::Report(args)) => report::run(args, &mut terminal),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            note(format_args!("error: {failure}"));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Silences libwayland. Without a desktop session, Mesa's Vulkan layer still looks for a Wayland display, and
/// libwayland complains on standard error each time. With a folder to look in, it finds none and says nothing.
fn quiet_wayland() {
    let is_valid = |folder| std::path::Path::new(&folder).is_absolute();
    if cfg!(target_os = "linux") && !std::env::var_os("XDG_RUNTIME_DIR").is_some_and(is_valid) {
        // SAFETY: main calls this first, so that no other thread exists that could read the environment.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}
