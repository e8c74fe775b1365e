//! The recipes of docs/guide.md, compared with the files that they change.

use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Blocks of diffs of a text, each with the file that was named last before it.
fn diffs(text: &str) -> Vec<(String, Vec<&str>)> {
    let mut all = Vec::new();
    let mut file = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix('`').and_then(|rest| rest.split('`').next()).filter(|name| name.contains('.')) {
            file = name.to_string();
        }
        if line == "```diff" {
            all.push((file.clone(), lines.by_ref().take_while(|&line| line != "```").collect()));
        }
    }
    all
}

/// True if the old lines of a diff stand together in a text.
fn applies(diff: &[&str], text: &str) -> bool {
    let old: Vec<&str> = diff.iter().filter(|line| !line.starts_with('+')).map(|line| &line[1..]).collect();
    let lines: Vec<&str> = text.lines().collect();
    !old.is_empty() && lines.windows(old.len()).any(|window| window == old)
}

#[test]
fn diffs_apply() {
    let guide = read("docs/guide.md");
    let diffs = diffs(&guide);
    assert!(diffs.len() >= 8, "{} diffs were found", diffs.len());
    for (file, diff) in diffs {
        assert!(applies(&diff, &read(&file)), "this diff does not apply to {file}:\n{}", diff.join("\n"));
    }
}

#[test]
fn a_stale_diff_is_noticed() {
    assert!(applies(&[" one", "+two"], "zero\none\nthree"));
    assert!(!applies(&[" one", "+two", " four"], "zero\none\nthree"));
    assert!(!applies(&["+two"], "zero"), "a diff without a place");
}

#[test]
fn files_that_documents_name_exist() {
    let folders = ["src/", "shaders/", "tests/", "attn/", "xtask/", "simulator/", "docs/", "scripts/", "examples/", "benches/"];
    for document in ["README.md", "docs/guide.md", "docs/terms.md", "docs/gallery.md", "docs/architecture.md", "docs/speed.md"] {
        let text = read(document);
        let named = text.split('`').skip(1).step_by(2).filter(|name| !name.contains(char::is_whitespace) && !name.contains('*'));
        for name in named.filter(|name| folders.iter().any(|folder| name.starts_with(folder)) && !name.contains("dilated")) {
            assert!(Path::new(ROOT).join(name).exists(), "{document} names `{name}`, which does not exist");
        }
    }
}
