//! `cargo xtask stats`: compiles for one target, inside the lab.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use crate::driver::Driver;
use crate::kernels::{self, Kernel};
use crate::record::{Answer, Entry};
use crate::targets::Target;
use crate::{isa, spirv};

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Target that the lab stands in for: navi31, gfx1201, nv172, nv192, m1 or adreno740
    target: String,
    /// Shaders to compile instead of the planner's kernels
    files: Vec<PathBuf>,
    /// Compile only the planner's kernels with TEXT in their case
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Skip the first COUNT kernels
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    skip: usize,
    /// Compile without robust buffer access, which wgpu always requests
    #[arg(long)]
    fragile: bool,
    /// Write the driver's intermediate and machine code into this folder
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<(), String> {
    let target = Target::find(&args.target)?;
    let kernels = if args.files.is_empty() { kernels::some(&target.caps(), &args.only)? } else { read(&args.files)? };
    let driver = Driver::open(!args.fragile)?;
    say(&Answer::Driver(driver.name.clone()))?;
    for kernel in kernels.iter().skip(args.skip) {
        say(&Answer::Kernel(Box::new(compile(target, &driver, kernel, args)?)))?;
    }
    Ok(())
}

fn compile(target: &Target, driver: &Driver, kernel: &Kernel, args: &Args) -> Result<Entry, String> {
    let started = Instant::now();
    let compiled = spirv::compile(&kernel.text).and_then(|module| driver.compile(&module));
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    let mut entry = Entry::new(target.name, kernel);
    entry.milliseconds = milliseconds.round();
    match compiled {
        Err(error) => entry.error = Some(error),
        Ok(compiled) => {
            entry.figures = target.figures(&compiled.statistics);
            let assembly = compiled.representations.iter().find(|(name, _)| name == "Assembly" || name == "NAK assembly");
            entry.shares = assembly.filter(|_| target.is_amd()).map(|(_, text)| isa::shares(text));
            entry.matrix = assembly.map(|(_, text)| isa::matrix_instructions(text));
            if let Some(folder) = &args.keep {
                for (name, text) in &compiled.representations {
                    write(folder, &file_name(&format!("{} {} {name}.txt", target.name, kernel.case)), text)?;
                }
            }
        }
    }
    Ok(entry)
}

fn read(files: &[PathBuf]) -> Result<Vec<Kernel>, String> {
    let read = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Kernel { case: name.clone(), name, text, workgroup_bytes: 0 })
    };
    files.iter().map(read).collect()
}

fn file_name(text: &str) -> String {
    text.replace([' ', ':', ',', '/', '='], "_")
}

fn write(folder: &std::path::Path, name: &str, text: &str) -> Result<(), String> {
    let path = folder.join(name);
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn say(answer: &Answer) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, answer).map_err(|error| error.to_string())?;
    writeln!(out).and_then(|()| out.flush()).map_err(|error| error.to_string())
}
