//! The project's own chores.
//!
//! `cargo xtask lab` compiles every kernel that the planner can choose on a GPU through Mesa's true AMD, NVIDIA, Apple and Adreno
//! compilers, on virtual GPUs, and writes down what they say: registers, spills, occupancy, instructions. It runs itself inside the
//! lab of `scripts/gpulab.sh`, once a target. The lab needs root and Debian; `scripts/gpulab.sh setup` makes it.
//!
//! `cargo xtask lab --compare` writes nothing: it exits with 1 where a kernel spills more than in `benches/record/lab.tsv` or no
//! longer compiles.
//!
//! `cargo xtask stats TARGET FILE.wgsl..` is the inner half: one target, any shader, one JSON object a line. In the lab:
//! `scripts/gpulab.sh run navi31 -- target/release/xtask stats navi31 my.wgsl --keep target`.
//!
//! `cargo xtask wgsl --out FOLDER` writes the text of every kernel as standard WGSL, which `scripts/tint.sh` gives to browsers' compiler.
//!
//! `cargo xtask fuzz` holds random problems on every backend against the oracle, for a minute or for days; it has examples in its `--help`.
//!
//! `cargo xtask simulate` runs whole plans on the simulator of `simulator/`, at every subgroup size for which the planner chooses
//! differently, compares the answers with the oracle, and exits with 1 where the simulator finds anything.

mod driver;
mod fuzz;
mod isa;
mod kernels;
mod lab;
mod record;
mod simulate;
mod spirv;
mod stats;
mod targets;
mod wgsl;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own chores
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Compile every kernel for GPUs that are not here; write or compare benches/record/lab.tsv
    Lab(lab::Args),
    /// Run every kernel on the simulator; report races, reads of what nobody wrote and the like
    Simulate(simulate::Args),
    /// Compile for one target, from inside the lab; JSON lines
    Stats(stats::Args),
    /// Random problems on every backend against the oracle, for as long as one likes
    Fuzz(fuzz::Args),
    /// Write every kernel as standard WGSL, with an index that says where its lines come from
    Wgsl(wgsl::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Lab(args) => lab::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Stats(args) => stats::run(&args).map(|()| true),
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
