//! Floors of the modules: imports go to the own or a lower floor, never between `cpu` and `gpu`; only `gpu` uses wgpu.

use std::path::Path;

/// Modules by floor, lowest first; docs/architecture.md has the same table, with what each floor is for.
const FLOORS: &[&[&str]] = &[
    &["error", "dtype", "blocks", "random", "control", "choice"],
    &["tensor", "visibility", "paged", "dropout", "problem", "inputs", "tables", "terms", "gradients", "rotary"],
    &["cpu", "cache", "merge", "shader", "plan"],
    &["gpu"],
    &["engine", "tune", "canary"],
    &["layer", "onnx"],
    &["verify"],
];

/// Reads a file of the repository.
fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("text")
}

/// Returns the names that lib.rs re-exports, each with its module: importing such a name imports the module.
fn exports(lib: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in lib.split("pub use ").skip(1) {
        let Some((module, names)) = line.split_once(';').and_then(|(list, _)| list.split_once("::")) else { continue };
        let names = names.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|name| !name.is_empty());
        found.extend(names.map(|name| (name.to_string(), module.to_string())));
    }
    found
}

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
    let exports = exports(&read("src/lib.rs"));
    assert!(exports.iter().any(|(name, module)| name == "Engine" && module == "engine"), "{exports:?}");
    let mut wrong = Vec::new();
    for (path, text) in &files {
        let own = path.split(['/', '.']).next().unwrap_or_default();
        // Tests compare with modules of any floor.
        if own == "lib" || path.ends_with("tests.rs") {
            continue;
        }
        let own_floor = floor(own).unwrap_or_else(|| panic!("{path} has no floor"));
        for import in imports(text) {
            let module = exports.iter().find(|(name, _)| *name == import).map_or(import.as_str(), |(_, module)| module);
            let Some(other) = floor(module) else { continue };
            if other > own_floor || (own, module) == ("cpu", "gpu") || (own, module) == ("gpu", "cpu") {
                wrong.push(format!("{path} imports {import}"));
            }
        }
        if text.contains("wgpu::")
            && own != "gpu"
            && text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("wgpu::"))
        {
            wrong.push(format!("{path} names wgpu"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_documentation_has_the_same_floors() {
    let text = read("docs/architecture.md");
    let mut drawn = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (Some(Ok(number)), Some(modules)) = (cells.get(1).map(|cell| cell.parse::<usize>()), cells.get(2)) else { continue };
        assert_eq!(number, drawn.len(), "{line}");
        drawn.push(modules.split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>());
    }
    assert_eq!(drawn, FLOORS);
    for module in FLOORS.iter().copied().flatten() {
        let [file, folder] = [format!("src/{module}.rs"), format!("src/{module}")];
        let exists = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists();
        assert!(exists(&file) || exists(&folder), "there is no module `{module}`");
    }
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
