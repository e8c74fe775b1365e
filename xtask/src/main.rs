//! Development tasks of the project.
//!
//! `cargo xtask lab` compiles every kernel that the planner can choose on a GPU with Mesa's real AMD, NVIDIA, Apple and
//! Adreno compilers on virtual GPUs, and records registers, spills, occupancy and instructions. It runs itself inside
//! the lab of `scripts/gpulab.sh`, once per target. The lab needs root and Debian; `gpulab.sh setup` creates it.
//!
//! `cargo xtask lab --compare` writes nothing: it exits with 1 if a kernel spills more than in `benches/record/lab.tsv`
//! or no longer compiles.
//!
//! `cargo xtask stats TARGET FILE.wgsl..` is the inner half: one target, any shader, one JSON object per line. In the
//! lab: `scripts/gpulab.sh run navi31 -- target/release/xtask stats navi31 my.wgsl --keep target`.
//!
//! `cargo xtask wgsl --out FOLDER` writes every kernel as standard WGSL, which `scripts/tint.sh` passes to Tint.
//!
//! `cargo xtask hlsl` gives the generic kernels to vkd3d's HLSL compiler, for `scripts/hlsl.sh`.
//!
//! `cargo xtask export` runs exported plans on Dawn, by web/run-plan.mjs, for `scripts/export.sh`.
//!
//! `cargo xtask fuzz` compares random problems on every backend with the oracle; its `--help` has examples.
//!
//! `cargo xtask soak` keeps many sequences in caches for thousands of steps and compares them with a dull model.
//!
//! `cargo xtask simulate` runs whole plans on the simulator of `simulator/`, at every subgroup size for which the
//! planner chooses differently, compares the answers with the oracle, and exits with 1 if the simulator finds anything.

mod buffers;
mod driver;
mod export;
mod fuzz;
mod hlsl;
mod host;
mod isa;
mod kernels;
mod lab;
mod memory;
mod record;
mod simulate;
mod soak;
mod spirv;
mod stats;
mod targets;
mod wgsl;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of the project
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Compile every kernel for virtual GPUs; write or compare benches/record/lab.tsv
    Lab(lab::Args),
    /// Run every kernel on the simulator; report races, uninitialised reads and other findings
    Simulate(simulate::Args),
    /// Compile for one target, inside the lab; print JSON lines
    Stats(stats::Args),
    /// Compare random problems on every backend with the oracle, for as long as you like
    Fuzz(fuzz::Args),
    /// Keep many sequences in caches for thousands of steps; compare keys, values and attention with a dull model
    Soak(soak::Args),
    /// Run exported plans on Dawn and compare the answers with the oracle
    Export(export::Args),
    /// Give the generic kernels to vkd3d's HLSL compiler; fail where one takes too long
    Hlsl(hlsl::Args),
    /// Write every kernel as standard WGSL, with an index of the origin of its lines
    Wgsl(wgsl::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Lab(args) => lab::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Stats(args) => stats::run(&args).map(|()| true),
        Command::Export(args) => export::run(&args),
        Command::Hlsl(args) => hlsl::run(&args),
        Command::Wgsl(args) => wgsl::run(&args).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(2)
        }
    }
}
