//! Options for terms in WGSL: `--score`, `--visible` and the tables that they read.

use std::path::Path;

use wgpu_attention::{Error, Owner, Problem, Table, TableData, TableType, Term};

use crate::arrays::{Array, Data, read_npy};
use crate::failure::Failure;

/// Parameters of the two functions that a body may read.
const SIGNATURES: [(&str, &str); 2] = [("score", "fn score(x: f32, at: Pair) -> f32 { "), ("visible", "fn visible(at: Pair) -> bool { ")];

/// Options for terms in WGSL.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct TermArgs {
    /// Score function in WGSL, a file or the text itself: `fn score(x: f32, at: Pair) -> f32`, or its body,
    /// 'x - 0.1 * f32(abs(at.position - at.key))'. `at` has batch, head, kv_head, row, key, position, key_position,
    /// len_q, len_kv
    #[arg(long, value_name = "FILE|WGSL", allow_hyphen_values = true)]
    score: Option<String>,
    /// Mask function in WGSL, likewise: `fn visible(at: Pair) -> bool`, or its body, 'at.key <= at.position'
    #[arg(long, value_name = "FILE|WGSL", allow_hyphen_values = true)]
    visible: Option<String>,
    /// Table that --score or --visible reads by its name, an array of f32, i32 or u32 by the type in the file;
    /// may be repeated. Where values do not matter, in `attn shader` and `attn bench`, also NAME=LENGTH:TYPE, as in
    /// slopes=8:f32, which has zeros. NAME:OWNER also has a gradient, which `attn run --gradients` writes; OWNER, who sums an
    /// element of it, is scalar, head, row, key, distance or pair, as in slopes:head=slopes.npy
    #[arg(long, value_name = "NAME[:OWNER]=T.npy")]
    table: Vec<String>,
}

/// Table with its data.
struct Loaded {
    name: String,
    owner: Option<Owner>,
    data: Elements,
}

enum Elements {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U32(Vec<u32>),
}

impl Loaded {
    /// Reads `NAME=T.npy`, or `NAME=LEN:TYPE` for zeros where the values do not matter.
    fn read(text: &str, allow_sizes: bool) -> Result<Self, Failure> {
        let option = format!("--table {text}");
        let needed = if allow_sizes { "NAME=T.npy or NAME=LENGTH:TYPE, as in slopes=8:f32, is" } else { "NAME=T.npy is" };
        let Some((name, value)) = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty()) else {
            return Err(Failure::at(option, format!("{needed} needed")));
        };
        let (name, owner) = match name.split_once(':') {
            Some((name, owner)) => (name, Some(owner_of(owner).map_err(|why| Failure::at(&option, why))?)),
            None => (name, None),
        };
        let sized = value.split_once(':').and_then(|(len, ty)| Some((len.parse::<usize>().ok()?, ty))).filter(|_| allow_sizes);
        let data = match sized {
            Some((len, "f32")) => Elements::F32(vec![0.0; len]),
            Some((len, "i32")) => Elements::I32(vec![0; len]),
            Some((len, "u32")) => Elements::U32(vec![0; len]),
            Some((_, ty)) => return Err(Failure::at(option, format!("`{ty}` is no type of a table; say f32, i32 or u32"))),
            None => elements(read_npy(Path::new(value))?)?,
        };
        Ok(Self { name: name.into(), owner, data })
    }

    fn table(&self) -> Table<'_> {
        let (ty, len) = match &self.data {
            Elements::F32(data) => (TableType::F32, data.len()),
            Elements::I32(data) => (TableType::I32, data.len()),
            Elements::U32(data) => (TableType::U32, data.len()),
        };
        Table { name: &self.name, ty, len, owner: self.owner }
    }

    fn data(&self) -> TableData<'_> {
        match &self.data {
            Elements::F32(data) => TableData::F32(data),
            Elements::I32(data) => TableData::I32(data),
            Elements::U32(data) => TableData::U32(data),
        }
    }
}

/// Owner of this name.
fn owner_of(name: &str) -> Result<Owner, String> {
    let named = |owner: &Owner| format!("{owner:?}").to_lowercase();
    let found = Owner::ALL.into_iter().find(|owner| named(owner) == name);
    found.ok_or_else(|| format!("`{name}` is no owner; say {}", Owner::ALL.each_ref().map(named).join(", ")))
}

/// Elements of a table, in the type that the file has. Wider integers are i32.
fn elements(array: Array) -> Result<Elements, Failure> {
    Ok(match &array.data {
        Data::Floats(_) => Elements::F32(array.floats()?.into_f32()),
        Data::Unsigned(_) => Elements::U32(array.integers()?),
        Data::Integers(_) => Elements::I32(array.integers()?),
        Data::Bools(_) => return Err(Failure::at(&array.source, "is bool; a table is float32, int32 or uint32: x.astype(np.int32)")),
    })
}

/// Text of an option, as the library reads it.
struct Text {
    option: &'static str,
    /// File that the text came from.
    file: Option<String>,
    wgsl: String,
    /// Columns of the first line that the user did not write.
    before: usize,
}

impl Text {
    /// Reads an option's value: a file if one has this name, else the text itself.
    fn read(name: &'static str, value: &str) -> Result<Self, Failure> {
        let (_, signature) = SIGNATURES[usize::from(name == "visible")];
        let option = if name == "score" { "--score" } else { "--visible" };
        let path = Path::new(value);
        let is_name = !value.contains(char::is_whitespace) && path.extension().is_some_and(|extension| extension == "wgsl");
        let (file, text) = if path.is_file() || is_name {
            let text = std::fs::read_to_string(path).map_err(|error| Failure::at(format!("{option} {value}"), error))?;
            (Some(value.to_string()), text)
        } else {
            (None, value.to_string())
        };
        let words: Vec<&str> = words(&text).collect();
        let (before, after) = match (words.contains(&"fn"), words.contains(&"return")) {
            (true, _) => (String::new(), ""),
            (false, true) => (signature.to_string(), "\n}"),
            (false, false) => (format!("{signature}return ("), "\n); }"),
        };
        Ok(Self { option, file, wgsl: format!("{before}{text}{after}"), before: before.len() })
    }

    /// Reads the term, with those of the tables that the text names.
    fn term(&self, name: &str, tables: &[Loaded]) -> Result<Term, Failure> {
        let used: Vec<Table<'_>> = tables.iter().map(Loaded::table).filter(|table| self.reads(table.name)).collect();
        let term = Term::with_tables(&self.wgsl, &used).map_err(|error| self.refused(&error))?;
        let is_defined = if name == "score" { term.has_score() } else { term.has_visible() };
        if !is_defined {
            let (_, signature) = SIGNATURES[usize::from(name == "visible")];
            let form = signature.trim_end_matches(" { ");
            return Err(Failure::at(self.place(), format!("does not define `{form}`")));
        }
        Ok(term)
    }

    fn reads(&self, table: &str) -> bool {
        words(&self.wgsl).any(|word| word == table)
    }

    fn place(&self) -> String {
        self.file.as_ref().map_or_else(|| self.option.to_string(), |file| format!("{} {file}", self.option))
    }

    /// Describes an error of this text. Columns are those of what the user wrote.
    fn refused(&self, error: &Error) -> Failure {
        let why = match error {
            Error::Invalid { why, .. } => why.clone(),
            other => other.to_string(),
        };
        Failure::at(self.place(), shifted(&why, self.before))
    }
}

/// Counts a column of the first line from the end of the first `before` ones.
fn shifted(why: &str, before: usize) -> String {
    const FIRST: &str = "line 1, column ";
    let Some((start, rest)) = why.split_once(FIRST).filter(|_| before > 0) else { return why.into() };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let column = rest[..digits].parse::<usize>().unwrap_or(1).saturating_sub(before).max(1);
    format!("{start}{FIRST}{column}{}", &rest[digits..])
}

/// Words of a text of WGSL, without its comments.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            if rest.starts_with("//") {
                rest = rest.find('\n').map_or("", |end| &rest[end..]);
            } else if rest.starts_with("/*") {
                rest = after_comment(rest);
            } else if rest.starts_with(is_word) {
                let word;
                (word, rest) = rest.split_at(rest.find(|c| !is_word(c)).unwrap_or(rest.len()));
                return Some(word);
            } else {
                rest = &rest[rest.chars().next()?.len_utf8()..];
            }
        }
    })
}

/// Text after a block comment, which may hold others.
fn after_comment(text: &str) -> &str {
    let (mut depth, mut at) = (0, 0);
    while let Some(pair) = text.as_bytes().get(at..at + 2) {
        match pair {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return &text[at..];
        }
    }
    ""
}

/// The term of one row of a problem, which is row 0 of a problem of its own: batch, head, kv_head, row and len_q are
/// those of `place`.
pub(crate) fn of_row(term: &Term, place: [usize; 5]) -> Result<Term, Error> {
    const FUNCTIONS: [&str; 3] = ["visible", "score", "slope"];
    let text = term.text();
    let (mut own, mut end) = (String::new(), 0);
    for word in words(text) {
        let start = word.as_ptr() as usize - text.as_ptr() as usize;
        let prefix = if FUNCTIONS.contains(&word) { "whole_" } else { "" };
        own += &format!("{}{prefix}{word}", &text[end..start]);
        end = start + word.len();
    }
    let [batch, head, kv_head, row, len_q] = place;
    own += &text[end..];
    own += &format!(
        "\nfn whole_pair(at: Pair) -> Pair {{ \
         return Pair({batch}, {head}, {kv_head}, {row}, at.key, at.position, at.key_position, {len_q}, at.len_kv); }}\n"
    );
    if term.has_visible() {
        own += "fn visible(at: Pair) -> bool { return whole_visible(whole_pair(at)); }\n";
    }
    if term.has_score() {
        own += "fn score(x: f32, at: Pair) -> f32 { return whole_score(x, whole_pair(at)); }\n";
    }
    Term::with_tables(&own, &term.tables().collect::<Vec<_>>())
}

/// Terms that the options describe, with the data of their tables.
#[derive(Default)]
pub(crate) struct UserTerms {
    texts: Vec<Text>,
    terms: Vec<Term>,
    tables: Vec<Loaded>,
}

impl TermArgs {
    /// Reads texts and tables. `allow_sizes` also allows tables of a length and a type, whose values do not matter.
    pub(crate) fn read(&self, allow_sizes: bool) -> Result<UserTerms, Failure> {
        let tables: Vec<Loaded> = self.table.iter().map(|text| Loaded::read(text, allow_sizes)).collect::<Result<_, _>>()?;
        let given = [("score", &self.score), ("visible", &self.visible)];
        let given = given.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let texts: Vec<(&str, Text)> = given.map(|(name, value)| Ok((name, Text::read(name, value)?))).collect::<Result<_, Failure>>()?;
        for (at, Loaded { name, .. }) in tables.iter().enumerate() {
            if tables[..at].iter().any(|other| other.name == *name) {
                return Err(Failure::at(format!("--table {name}"), "is given twice"));
            }
            if texts.iter().all(|(_, text)| !text.reads(name)) {
                return Err(Failure::at(format!("--table {name}"), "neither --score nor --visible reads it"));
            }
        }
        let mut terms: Vec<Term> = texts.iter().map(|(name, text)| text.term(name, &tables)).collect::<Result<_, _>>()?;
        if let [(_, score), (_, visible)] = &texts[..] {
            // One term has each of its tables once.
            if score.wgsl == visible.wgsl {
                terms.truncate(1);
            } else if let Some(shared) = tables.iter().find(|table| score.reads(&table.name) && visible.reads(&table.name)) {
                let both = format!("{}\n{}", score.wgsl, visible.wgsl);
                let all: Vec<Table<'_>> = tables.iter().map(Loaded::table).collect();
                let why = |error| format!("both read `{}`, and are no text together: {error}; put them into one file", shared.name);
                terms = vec![Term::with_tables(&both, &all).map_err(|error| Failure::at("--score and --visible", why(error)))?];
            }
        }
        Ok(UserTerms { texts: texts.into_iter().map(|(_, text)| text).collect(), terms, tables })
    }
}

impl UserTerms {
    /// Adds the terms to a problem.
    pub(crate) fn add_to(&self, problem: &mut Problem) {
        problem.user_terms.extend(self.terms.iter().cloned());
    }

    /// Data of the tables, for [`wgpu_attention::Inputs::term_tables`].
    pub(crate) fn table_words(&self, problem: &Problem) -> Result<Vec<u32>, Failure> {
        let data: Vec<(&str, TableData<'_>)> = self.tables.iter().map(|table| (table.name.as_str(), table.data())).collect();
        problem.term_tables(&data).map_err(|error| Failure::at("--table", error))
    }

    /// Name and length of each table that has a gradient.
    pub(crate) fn gradients(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tables.iter().map(Loaded::table).filter(|table| table.owner.is_some()).map(|table| (table.name, table.len))
    }

    /// Options that were given, for messages.
    pub(crate) fn options(&self) -> Vec<&'static str> {
        self.texts.iter().map(|text| text.option).collect()
    }

    /// Describes an error that may be one of a score function, such as that it has no derivative.
    pub(crate) fn explain(&self, error: Error) -> Failure {
        match (&error, self.texts.iter().find(|text| text.option == "--score")) {
            (Error::Unsupported { what, .. }, Some(text)) if what.contains("score function") => text.refused(&error),
            _ => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_outside_of_comments() {
        let all: Vec<&str> = words("a_1+ /* b /* fn */ c */ d.x // fn\n fn2 é/e").collect();
        assert_eq!(all, ["a_1", "d", "x", "fn2", "é", "e"]);
        assert_eq!(words("/* open").count(), 0);
    }

    #[test]
    fn columns_count_from_what_the_user_wrote() {
        assert_eq!(shifted("line 1, column 40: no", 30), "line 1, column 10: no");
        assert_eq!(shifted("line 2, column 40: no", 30), "line 2, column 40: no");
        assert_eq!(shifted("line 1, column 40: no", 0), "line 1, column 40: no");
    }
}
