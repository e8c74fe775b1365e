//! Case files of users' terms on the simulator: the texts of `examples/terms`, with PyTorch's outputs and gradients.

use std::path::Path;

use rayon::prelude::*;
use wgpu_attention::plan::Specialise;
use wgpu_attention::verify::{CaseFile, Verdict, check_file_backward};
use wgpu_attention::{Algorithm, BackwardInputs, Inputs, Problem, WantGradients};

use super::device::{Device, Shaders};
use super::log::Log;
use super::{Args, CLASSES, SUBGROUPS, caps, lane_order};

/// Runs each file on one device. Classes, subgroups, algorithms and variants take turns from file to file and from seed to
/// seed, so that all of them meet users' terms. Returns the number of runs.
pub(super) fn run(args: &Args, shaders: &Shaders, log: &Log, wanted: impl Fn(&str) -> bool) -> Result<usize, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/flex");
    let mut tasks = Vec::new();
    for (at, path) in CaseFile::find(&folder).map_err(|error| error.to_string())?.iter().enumerate() {
        let file = CaseFile::read(path).map_err(|error| error.to_string())?;
        let name = format!("gallery, {}, f32", file.name());
        if wanted(&name) {
            tasks.push((name, file, at + args.seed as usize % 1000));
        }
    }
    tasks.par_iter().for_each(|(name, file, turn)| {
        let (started, class) = (std::time::Instant::now(), CLASSES[turn % CLASSES.len()]);
        let size = args.subgroup.unwrap_or(SUBGROUPS[turn * 5 / 3 % SUBGROUPS.len()]);
        let specialise = if turn.is_multiple_of(2) { Specialise::Always } else { Specialise::Never };
        let algorithm = if turn % 4 == 2 { Algorithm::Staged } else { Algorithm::Auto };
        let device = Device {
            caps: caps(class, size, specialise),
            subgroup_size: size.max(1),
            seed: args.seed,
            lanes: lane_order(args),
            shaders,
            log,
            edit: None,
            most_iterations: 10_000_000,
        };
        let attend = |problem: &Problem, inputs: &Inputs<'_>| device.attention(problem, inputs, algorithm);
        let backward = |problem: &Problem, inputs: &Inputs<'_>, given: &BackwardInputs<'_>, want: &WantGradients| {
            device.backward(problem, inputs, given, want)
        };
        let (verdict, note) = check_file_backward(file, &attend, &backward);
        if verdict != Verdict::Passed || !note.is_empty() {
            log.complain(format!("{name} on {class:?}, subgroups of {size}: {verdict} {note}"));
        }
        if args.verbose {
            eprintln!("{:.2} s for {name} on {class:?}, subgroups of {size}", started.elapsed().as_secs_f64());
        }
    });
    Ok(tasks.len())
}
