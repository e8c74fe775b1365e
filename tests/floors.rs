//! Floors of the modules: imports go to the own or a lower floor, never between `cpu` and `gpu`; only `gpu` uses wgpu.

use std::path::Path;

/// Modules by floor, lowest first; docs/architecture.md describes the floors.
const FLOORS: &[&[&str]] = &[
    &["error", "dtype", "blocks"],
    &["tensor", "visibility", "paged", "dropout", "problem", "inputs", "gradients", "control", "choice", "rotary"],
    &["cpu", "cache", "merge", "shader", "plan"],
    &["gpu"],
    &["engine", "tune", "canary"],
    &["layer", "onnx"],
    &["verify"],
];

/// Re-exports of lib.rs that are defined on a high floor, with their module. A `use crate::{..}` of one of them counts
/// as an import of that module.
const EXPORTS: &[(&str, &str)] = &[("Engine", "engine"), ("EngineOptions", "engine"), ("AttentionFn", "engine")];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).expect("src is there") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else {
            let relative = path.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).expect("below src").display().to_string();
            found.push((relative, std::fs::read_to_string(&path).expect("text")));
        }
    }
}

/// Returns the modules that a source file names after `crate::` and in `use crate::{..}` lists.
fn imports(text: &str) -> Vec<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(list) = rest.strip_prefix('{') {
            let list = list.split_once(';').map_or(list, |(list, _)| list);
            found.extend(list.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_string));
        } else {
            found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    found
}

#[test]
fn every_floor_imports_only_lower_ones() {
    let mut files = Vec::new();
    sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut files);
    assert!(files.len() > 20, "only {} files", files.len());
    let mut wrong = Vec::new();
    for (path, text) in &files {
        let own = path.split(['/', '.']).next().unwrap_or_default();
        if own == "lib" {
            continue;
        }
        let own_floor = floor(own).unwrap_or_else(|| panic!("{path} has no floor"));
        for import in imports(text) {
            let module = EXPORTS.iter().find(|(name, _)| *name == import).map_or(import.as_str(), |(_, module)| module);
            let Some(other) = floor(module) else { continue };
            if other > own_floor || (own, module) == ("cpu", "gpu") || (own, module) == ("gpu", "cpu") {
                wrong.push(format!("{path} imports {import}"));
            }
        }
        let tests = path.ends_with("tests.rs");
        if text.contains("wgpu::")
            && own != "gpu"
            && !tests
            && text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("wgpu::"))
        {
            wrong.push(format!("{path} names wgpu"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_reader_of_imports_sees_them() {
    let text = "use crate::{Error, gpu::Gpu};\nfn f() -> crate::Result<()> { crate::cpu::tiled::x() }\n// crate::engine\n";
    let found = imports(text);
    for name in ["Error", "gpu", "Gpu", "Result", "cpu"] {
        assert!(found.contains(&name.to_string()), "{name} in {found:?}");
    }
    assert!(!found.contains(&"engine".to_string()));
}
