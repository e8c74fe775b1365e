//! The pictures and numbers of docs/gallery.md are those that its commands make. With WRITE_GALLERY=1 they are written
//! instead of compared (scripts/gallery.sh).

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{command, folder, ran, text};

/// Masks of the table at 4,096 tokens: those without a table of tokens.
const LONG: [&str; 9] =
    ["causal", "window", "window_sinks", "chunked", "dilated", "prefix_lm", "block_diffusion", "neighbourhood_2d", "swin_shifted"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Command of the page, and its place there.
struct Entry {
    /// Arguments without the name of the program.
    arguments: Vec<String>,
    /// Bytes of the page that have what it prints.
    printed: std::ops::Range<usize>,
}

impl Entry {
    fn after(&self, option: &str) -> &str {
        let at = self.arguments.iter().position(|argument| argument == option);
        &self.arguments[at.unwrap_or_else(|| panic!("{option} is not in {:?}", self.arguments)) + 1]
    }

    /// Name of the term.
    fn name(&self) -> String {
        let file = self.arguments.iter().find(|argument| argument.ends_with(".wgsl")).expect("a file");
        Path::new(file).file_stem().expect("a name").to_string_lossy().into_owned()
    }

    /// Runs the command with other values of some options, or without them.
    fn run(&self, changed: &[(&str, Option<&str>)]) -> String {
        let mut arguments = self.arguments.clone();
        for (option, value) in changed {
            if let Some(at) = arguments.iter().position(|argument| argument == option) {
                arguments.drain(at..at + 2);
            }
            arguments.extend(value.iter().flat_map(|value| [option.to_string(), value.to_string()]));
        }
        arguments.extend(["--backend", "cpu"].map(str::to_string));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        ran(command(&arguments).current_dir(root()).output().expect("the program starts")).ok().out
    }
}

fn page() -> String {
    std::fs::read_to_string(root().join("docs/gallery.md")).expect("the page")
}

/// Returns the commands of the page. Each is followed by what it prints.
fn entries(page: &str) -> Vec<Entry> {
    let starts = page.match_indices("```sh\nattn ").map(|(at, found)| at + found.len());
    let entry = |start: usize| {
        let line = page[start..].lines().next().expect("a line");
        let rest = start + line.len();
        let from = rest + page[rest..].find("```text\n").expect("what it prints") + "```text\n".len();
        assert!(page[rest..from].lines().count() <= 4, "what `{line}` prints comes next");
        Entry { arguments: line.split(' ').map(str::to_string).collect(), printed: from..from + page[from..].find("```").expect("an end") }
    };
    starts.map(entry).collect()
}

/// Rows of the table of long sequences.
fn long(entries: &[Entry]) -> String {
    let row = |name: &&str| {
        let entry = entries.iter().find(|entry| entry.name() == *name).expect("an entry");
        let told = entry.run(&[("--svg", None), ("--shape", Some("1,1,1,4096,4096,64")), ("--tile", Some("64,64"))]);
        let cells: Vec<&str> = told.lines().last().expect("a line").split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        format!("| `{name}` | {} |\n", cells[1..].join(" | "))
    };
    LONG.iter().map(row).collect()
}

/// Place of the table's rows in the page.
fn long_rows(page: &str) -> std::ops::Range<usize> {
    const HEAD: &str = "|---|---|---|---|---|---|\n";
    let start = page.find(HEAD).expect("the table") + HEAD.len();
    let rows = page[start..].split_inclusive('\n').take_while(|line| line.starts_with('|'));
    start..start + rows.map(str::len).sum::<usize>()
}

/// Differences of the page from what its commands make, in a folder of this name. `picture` has what is committed under a name.
fn differences(name: &str, page: &str, picture: impl Fn(&str) -> String) -> Vec<String> {
    let made = folder(name).join("made.svg");
    let mut found = Vec::new();
    for entry in entries(page) {
        let printed = entry.run(&[("--svg", Some(text(&made)))]);
        if printed != page[entry.printed.clone()] {
            found.push(format!("{} prints\n{printed}", entry.name()));
        }
        let file = entry.after("--svg");
        if std::fs::read_to_string(&made).expect("the picture") != picture(file) {
            found.push(format!("{file} is another picture"));
        }
    }
    found
}

#[test]
fn the_page_has_what_its_commands_make() {
    let page = page();
    if std::env::var_os("WRITE_GALLERY").is_some() {
        return write(page);
    }
    let found = differences("gallery", &page, |file| std::fs::read_to_string(root().join(file)).unwrap_or_default());
    assert!(found.is_empty(), "run scripts/gallery.sh, and look at the pictures: {}", found.join("\n"));
    assert_eq!(page[long_rows(&page)], long(&entries(&page)), "run scripts/gallery.sh");
}

fn write(mut page: String) {
    // From the end, so that the places before stay.
    for entry in entries(&page).iter().rev() {
        let printed = entry.run(&[]);
        page.replace_range(entry.printed.clone(), &printed);
    }
    let rows = long(&entries(&page));
    page.replace_range(long_rows(&page), &rows);
    std::fs::write(root().join("docs/gallery.md"), page).expect("written");
}

#[test]
fn another_picture_or_number_is_noticed() {
    let page = page();
    let start = page.find("### Causal").expect("its entry");
    let causal = &page[start..start + page[start..].find("\n### ").expect("the next one")];
    let committed = |file: &str| std::fs::read_to_string(root().join(file)).unwrap_or_default();
    assert_eq!(differences("gallery-causal", causal, committed), [""; 0]);
    assert_eq!(differences("gallery-causal", causal, |file| committed(file).replacen("h1v", "h2v", 1)).len(), 1);
    let lie = causal.replacen("50.39 %", "49.39 %", 1);
    assert_ne!(lie, causal, "the density of causal is on the page");
    assert_eq!(differences("gallery-causal", &lie, committed).len(), 1);
}

#[test]
fn every_term_has_an_entry_and_every_picture_is_small() {
    let page = page();
    let entries = entries(&page);
    let files = |folder: &str, extension: &str| -> BTreeSet<String> {
        let files = std::fs::read_dir(root().join(folder)).expect("a folder").map(|file| file.expect("readable").path());
        files
            .filter(|file| file.extension().is_some_and(|found| found == extension))
            .map(|file| file.file_stem().expect("a name").to_string_lossy().into_owned())
            .collect()
    };
    let names: BTreeSet<String> = entries.iter().map(Entry::name).collect();
    assert_eq!(files("examples/terms", "wgsl"), names);
    assert_eq!(files("docs/gallery", "svg"), names);
    for entry in &entries {
        let (name, file) = (entry.name(), entry.after("--svg"));
        assert_eq!(file, format!("docs/gallery/{name}.svg"));
        assert!(page.contains(&format!("](gallery/{name}.svg)")) && page.contains(&format!("](../examples/terms/{name}.wgsl)")), "{name}");
        let bytes = std::fs::metadata(root().join(file)).expect("there").len();
        assert!(bytes < 24_000, "{file} has {bytes} bytes");
    }
    // The lines that the page shows are those of the files.
    for block in page.split("```wgsl\n").skip(1) {
        let shown = block.split("```").next().expect("a block");
        let is_there = |name: &String| {
            let file = std::fs::read_to_string(root().join(format!("examples/terms/{name}.wgsl"))).expect("there");
            let lines: Vec<&str> = file.lines().map(str::trim).collect();
            let shown: Vec<&str> = shown.lines().map(str::trim).collect();
            lines.windows(shown.len()).any(|lines| lines == shown)
        };
        assert!(names.iter().any(is_there), "no file has\n{shown}");
    }
}
