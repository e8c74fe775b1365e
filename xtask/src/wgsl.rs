//! `cargo xtask wgsl`: writes the text of every kernel, for other compilers than ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use wgpu_attention::plan::Shader;

use crate::kernels;

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Folder to write to; created if there is none
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Write only kernels with TEXT in the words for their device and problem
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Write the text for naga, which may use cooperative matrices and enables no subgroups, instead of standard WGSL
    #[arg(long)]
    naga: bool,
}

/// Entry of index.json.
#[derive(Serialize)]
struct Entry {
    file: String,
    case: String,
    kernel: String,
    /// First line (from 1) of each run of lines, the file that the run is from, and its first line in that file.
    lines: Vec<(usize, String, usize)>,
}

pub(crate) fn run(args: &Args) -> Result<(), String> {
    fs::create_dir_all(&args.out).map_err(|error| format!("{}: {error}", args.out.display()))?;
    let (mut entries, mut left_out) = (Vec::new(), BTreeMap::new());
    for (case, shader) in kernels::everywhere()? {
        if !case.contains(&args.only) {
            continue;
        }
        let Some(text) = (if args.naga { Some(shader.clone()) } else { shader.standard() }) else {
            *left_out.entry(shader.name).or_insert(0) += 1;
            continue;
        };
        let file = format!("{:04}.wgsl", entries.len());
        write(&args.out.join(&file), text.text())?;
        entries.push(Entry { file, case, kernel: shader.name, lines: origins(&text) });
    }
    let index = serde_json::to_string(&entries).map_err(|error| error.to_string())?;
    write(&args.out.join("index.json"), &index)?;
    for (name, count) in left_out {
        eprintln!("left out, not standard: {count} x {name}");
    }
    eprintln!("{} kernels in {}", entries.len(), args.out.display());
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Returns the origins of a kernel's lines, with a new entry at every change of file.
fn origins(shader: &Shader) -> Vec<(usize, String, usize)> {
    let mut origins: Vec<(usize, String, usize)> = Vec::new();
    for line in 1..=shader.text().lines().count() {
        let place = shader.locate(line);
        let (file, own) = place.rsplit_once(':').unwrap_or((&place, "1"));
        if origins.last().is_none_or(|(_, last, _)| last != file) {
            origins.push((line, file.into(), own.parse().unwrap_or(1)));
        }
    }
    origins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_agree_with_the_files() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (case, shader) in kernels::everywhere().expect("all plans can be made").into_iter().step_by(50) {
            let Some(standard) = shader.standard() else { continue };
            let lines: Vec<_> = standard.text().lines().collect();
            let origins = origins(&standard);
            assert!(origins.len() > 1, "{case}");
            for (line, file, own) in &origins[1..] {
                let text = fs::read_to_string(root.join(file)).expect("a file of the project");
                assert_eq!(lines.get(line - 1).copied(), text.lines().nth(own - 1), "{case}: {file}");
            }
        }
    }
}
