//! Floors of the modules: docs/architecture.md has the table, and every import keeps to it. No files form a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Imports that the floors would allow, but that a module must do without: (importer, imported).
const NEVER: [(&str, &str); 2] = [("oracle", "terms"), ("gpu", "cpu")];

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Source files of a crate by path, `problem/mod.rs`, and what they re-export.
struct Sources {
    files: BTreeMap<String, String>,
    /// Path segments of a re-exported name, by module and name.
    exports: BTreeMap<(Vec<String>, String), Vec<String>>,
}

/// Returns the modules of the documented table, lowest floor first.
fn documented_floors() -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("docs/architecture.md")).expect("text");
    let mut floors = Vec::new();
    for line in text.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (Some(Ok(number)), Some(module)) = (cells.get(1).map(|cell| cell.parse::<usize>()), cells.get(2)) else { continue };
        assert_eq!(number, floors.len(), "{line}");
        floors.push(module.trim_matches('`').to_string());
    }
    floors
}

/// Splits a path or a tree of paths, `a::{b, c::d}`, into paths of segments.
fn paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((start, list)) = tree.strip_suffix('}').and_then(|tree| tree.split_once('{')) else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split("::").map(str::to_string).collect()];
    };
    let mut depth = 0;
    let items = list.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    items.filter(|item| !item.trim().is_empty()).flat_map(|item| paths(&format!("{start}{}", item.trim()))).collect()
}

/// Returns the code without comments, unit tests and line ends.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join(" ")
}

/// Returns the trees of a file's `use` items that re-export (`pub use`) or do not.
fn uses(code: &str, re_exported: bool) -> impl Iterator<Item = &str> {
    code.match_indices("use ").filter_map(move |(at, _)| {
        let before = code[..at].trim_end();
        let starts = before.is_empty() || before.ends_with([';', '}', '{', ']', ')']) || before.ends_with("pub");
        let is_public = before.ends_with("pub") || before.ends_with("pub(crate)") || before.ends_with("pub(super)");
        (starts && is_public == re_exported).then(|| code[at + 4..].split(';').next().unwrap_or_default())
    })
}

/// Returns the paths in the code outside its `use` items that start with `crate`, `super` or a module that it declares.
fn inline_paths(code: &str) -> Vec<Vec<String>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let declared = code.match_indices("mod ").filter_map(|(at, _)| code[at + 4..].split_once(';').map(|(name, _)| name));
    let mut found = Vec::new();
    for start in declared.filter(|name| name.chars().all(is_word)).chain(["crate", "super"]) {
        for (at, _) in code.match_indices(&format!("{start}::")) {
            let before = code[..at].trim_end();
            if !code[..at].ends_with(|c| is_word(c) || c == ':') && !before.ends_with("use") {
                let path: String = code[at..].chars().take_while(|&c| is_word(c) || c == ':').collect();
                found.push(path.trim_end_matches(':').split("::").map(str::to_string).collect());
            }
        }
    }
    found
}

impl Sources {
    fn of(files: BTreeMap<String, String>) -> Self {
        let mut sources = Self { files, exports: BTreeMap::new() };
        for (file, text) in &sources.files {
            let module = module_of(file);
            for path in uses(&code(text), true).flat_map(paths) {
                let name = path.last().cloned().unwrap_or_default();
                sources.exports.insert((module.clone(), name), path);
            }
        }
        sources
    }

    fn of_library() -> Self {
        let mut files = BTreeMap::new();
        let src = Path::new(ROOT).join("src");
        let mut folders = vec![src.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                // Tests compare with modules of any floor.
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with("tests.rs") && !path.ends_with("lib.rs") {
                    let relative = path.strip_prefix(&src).expect("below src").display().to_string();
                    files.insert(relative, std::fs::read_to_string(&path).expect("text"));
                }
            }
        }
        Self::of(files)
    }

    fn file(&self, module: &[String]) -> Option<String> {
        let path = module.join("/");
        [format!("{path}.rs"), format!("{path}/mod.rs")].into_iter().find(|file| self.files.contains_key(file))
    }

    /// Returns the file that defines what an absolute path names, followed through re-exports.
    fn home(&self, path: &[String]) -> Option<String> {
        let mut module = Vec::new();
        for (at, segment) in path.iter().enumerate() {
            module.push(segment.clone());
            if self.file(&module).is_none() {
                module.pop();
                let key = (module.clone(), segment.clone());
                let Some(target) = self.exports.get(&key) else { break };
                let rest = path[at + 1..].iter().cloned();
                return self.home(&absolute(&module, target).into_iter().chain(rest).collect::<Vec<_>>());
            }
        }
        self.file(&module)
    }

    /// Returns the files that each file imports.
    fn imports(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let of = |(file, text): (&'_ String, &String)| {
            let (module, code) = (module_of(file), code(text));
            let used = uses(&code, false).flat_map(paths).chain(inline_paths(&code));
            let homes = used.filter_map(|path| self.home(&absolute(&module, &path))).filter(|home| home != file);
            homes.collect()
        };
        self.files.iter().map(|file| (file.0.as_str(), of(file))).collect()
    }

    /// Returns the names of modules that a file imports below `crate::`, without regard to files.
    fn named(&self, file: &str) -> BTreeSet<String> {
        let code = code(&self.files[file]);
        let all = uses(&code, false).chain(uses(&code, true)).flat_map(paths).chain(inline_paths(&code));
        all.filter(|path| path[0] == "crate").filter_map(|path| path.get(1).cloned()).collect()
    }
}

/// Returns the module of a file: `problem/mod.rs` and `problem.rs` are `problem`.
fn module_of(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_string).collect()
}

/// Returns a path as seen from the crate's root.
fn absolute(module: &[String], path: &[String]) -> Vec<String> {
    let ups = path.iter().take_while(|segment| *segment == "super").count();
    let rest = path[ups..].iter().filter(|segment| *segment != "self").cloned();
    match path[0].as_str() {
        "crate" => path[1..].iter().filter(|segment| *segment != "self").cloned().collect(),
        _ => module[..module.len() - ups.min(module.len())].iter().cloned().chain(rest).collect(),
    }
}

/// Returns a circle of imports, if there is one.
fn circle(imports: &BTreeMap<&str, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut left: BTreeMap<&str, BTreeSet<&str>> =
        imports.iter().map(|(file, of)| (*file, of.iter().map(String::as_str).collect())).collect();
    loop {
        let before = left.len();
        let remaining: BTreeSet<&str> = left.keys().copied().collect();
        left.retain(|_, of| of.iter().any(|file| remaining.contains(file)));
        if left.len() == before {
            break;
        }
    }
    // Every file that is left imports one that is left: follow them until one comes back.
    let mut way: Vec<&str> = vec![left.keys().next()?];
    loop {
        let next = left[way[way.len() - 1]].iter().find(|file| left.contains_key(*file))?;
        if let Some(at) = way.iter().position(|file| file == next) {
            return Some(way[at..].iter().map(|file| file.to_string()).collect());
        }
        way.push(next);
    }
}

/// Returns the imports of a crate that break the rules.
fn broken(sources: &Sources, floors: &[String]) -> Vec<String> {
    let floor = |module: &str| floors.iter().position(|other| other == module);
    let mut wrong = Vec::new();
    for (file, text) in &sources.files {
        let own = module_of(file).remove(0);
        let own_floor = floor(&own).unwrap_or_else(|| panic!("`{own}` has no floor"));
        for module in sources.named(file) {
            match floor(&module) {
                None => wrong.push(format!("{file} imports {module}, which is no home")),
                Some(other) if other > own_floor || NEVER.contains(&(&own, &module)) => wrong.push(format!("{file} imports {module}")),
                Some(_) => {}
            }
        }
        if code(text).contains("wgpu::") && own != "gpu" {
            wrong.push(format!("{file} names wgpu"));
        }
    }
    wrong.extend(circle(&sources.imports()).map(|files| format!("a circle: {}", files.join(" -> "))));
    wrong
}

#[test]
fn every_import_keeps_to_the_floors() {
    let (sources, floors) = (Sources::of_library(), documented_floors());
    assert!(sources.files.len() > 100, "only {} files", sources.files.len());
    for module in &floors {
        assert!(sources.file(std::slice::from_ref(module)).is_some(), "there is no module `{module}`");
    }
    let wrong = broken(&sources, &floors);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn broken_rules_are_found() {
    let floors = ["low", "middle", "high"].map(str::to_string);
    let find = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(file, text)| (file.to_string(), text.to_string())).collect();
        broken(&Sources::of(files), &floors).join("; ")
    };
    let low = ("low.rs", "pub struct X;");
    let middle = ("middle/mod.rs", "mod part;\npub use part::Y;\n\nuse crate::low::X;\n");
    let part = ("middle/part.rs", "use crate::low::X;\npub struct Y;\n// crate::high\n");
    let high = ("high.rs", "use crate::{low::X, middle::Y};\n#[cfg(test)]\nmod tests { use crate::nothing; }");
    assert_eq!(find(&[low, middle, part, high]), "");
    assert_eq!(find(&[("low.rs", "use crate::middle::Y;"), middle, part]), "low.rs imports middle; a circle: low.rs -> middle/part.rs");
    assert_eq!(
        find(&[("low.rs", "fn f() -> crate::high::Z { wgpu::g() }"), high]),
        "low.rs imports high; low.rs names wgpu; a circle: high.rs -> low.rs"
    );
    assert_eq!(find(&[low, ("high.rs", "use crate::X;")]), "high.rs imports X, which is no home");
    let circular = ("middle/mod.rs", "mod part;\npub use part::Y;\npub struct Z(Y);\nuse part::f;");
    let back = ("middle/part.rs", "use crate::low::X;\nuse super::Z;\npub struct Y;");
    assert_eq!(find(&[low, circular, back]), "a circle: middle/mod.rs -> middle/part.rs");
    let inline = [("middle/mod.rs", "mod part;\nfn f() { part::g() }"), ("middle/part.rs", "fn g() { super::f() }")];
    assert_eq!(find(&inline), "a circle: middle/mod.rs -> middle/part.rs");
    let by_re_export = [
        ("middle/mod.rs", "mod a;\nmod b;\npub use a::A;\npub use b::B;"),
        ("middle/a.rs", "use super::B;"),
        ("middle/b.rs", "use crate::middle::A;"),
    ];
    assert_eq!(find(&by_re_export), "a circle: middle/a.rs -> middle/b.rs");
}
