//! Options for terms in WGSL: `--score`, `--visible` and the tables that they read.

use std::path::Path;

use bytemuck::{allocation::cast_vec, cast_slice};
use wgpu_attention::{Error, Owner, Problem, Table, TableData, TableType, Term};

use crate::arrays::{Array, Data, read_npy};
use crate::failure::Failure;

/// Options of functions, and what their bodies stand in.
const SCORE: (&str, &str) = ("--score", "fn score(x: f32, at: Pair) -> f32 { ");
const VISIBLE: (&str, &str) = ("--visible", "fn visible(at: Pair) -> bool { ");

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
    /// Table that --score or --visible reads by its name; may be repeated. A file of f32, i32 or u32, or the numbers
    /// themselves: slopes=0.5,0.25 is f32, ids=0*50,1*78 (50 zeros, 78 ones) i32, bits=1,3:u32 what it says.
    /// NAME:OWNER also has a gradient, which `attn run --gradients` writes; OWNER, who sums an element of it, is scalar,
    /// head, row, key, distance or pair, as in slopes:head=0.5,0.25
    #[arg(long, value_name = "NAME[:OWNER]=T.npy|NUMBERS")]
    table: Vec<String>,
}

/// Most elements of a table that the command line has in place; a repeated number is quick to write.
const MOST_IN_PLACE: usize = 1 << 24;

/// Table with its data, as bits.
struct Loaded {
    name: String,
    owner: Option<Owner>,
    ty: TableType,
    words: Vec<u32>,
}

impl Loaded {
    /// Reads `NAME=T.npy` or `NAME=NUMBERS`.
    fn read(text: &str) -> Result<Self, Failure> {
        let option = format!("--table {text}");
        let Some((name, value)) = text.split_once('=').filter(|(name, value)| !name.is_empty() && !value.is_empty()) else {
            return Err(Failure::at(option, "NAME=T.npy or NAME=NUMBERS, as in slopes=0.5,0.25, is needed"));
        };
        let (name, owner) = match name.split_once(':') {
            Some((name, owner)) => (name, Some(owner_of(owner).map_err(|why| Failure::at(&option, why))?)),
            None => (name, None),
        };
        let (ty, words) = match in_place(value, owner.map(|_| TableType::F32)) {
            Some(read) => read.map_err(|why| Failure::at(&option, why))?,
            None if !Path::new(value).exists() && !value.ends_with(".npy") => {
                return Err(Failure::at(option, format!("`{value}` is neither a file nor numbers separated by commas")));
            }
            None => of_array(read_npy(Path::new(value))?)?,
        };
        Ok(Self { name: name.into(), owner, ty, words })
    }

    /// The table as a term reads it, declared sorted if it is.
    fn table(&self) -> Table<'_> {
        let is_sorted = match self.data() {
            TableData::F32(_) => false,
            TableData::I32(data) => data.is_sorted(),
            TableData::U32(data) => data.is_sorted(),
        };
        Table { name: &self.name, ty: self.ty, len: self.words.len(), is_sorted, owner: self.owner }
    }

    fn data(&self) -> TableData<'_> {
        match self.ty {
            TableType::F32 => TableData::F32(cast_slice(&self.words)),
            TableType::I32 => TableData::I32(cast_slice(&self.words)),
            TableType::U32 => TableData::U32(&self.words),
        }
    }
}

/// Owner of this name.
fn owner_of(name: &str) -> Result<Owner, String> {
    let named = |owner: &Owner| format!("{owner:?}").to_lowercase();
    let found = Owner::ALL.into_iter().find(|owner| named(owner) == name);
    found.ok_or_else(|| format!("`{name}` is no owner; say {}", Owner::ALL.each_ref().map(named).join(", ")))
}

/// Elements of an array, in the type that the file has. Wider integers are i32.
fn of_array(array: Array) -> Result<(TableType, Vec<u32>), Failure> {
    Ok(match &array.data {
        Data::Floats(_) => (TableType::F32, cast_vec(array.floats()?.into_f32())),
        Data::Unsigned(_) => (TableType::U32, array.integers()?),
        Data::Integers(_) => (TableType::I32, cast_vec(array.integers::<i32>()?)),
        Data::Bools(_) => return Err(Failure::at(&array.source, "is bool; a table is float32, int32 or uint32: x.astype(np.int32)")),
    })
}

/// Reads numbers separated by commas, `X*COUNT` for repeated ones, and `:TYPE` at the end. Else the type is `usual`,
/// or i32 of whole numbers and f32 of others. `None` if the text is something else.
fn in_place(text: &str, usual: Option<TableType>) -> Option<Result<(TableType, Vec<u32>), String>> {
    let (list, ty) = text.rsplit_once(':').map_or((text, None), |(list, ty)| (list, Some(ty)));
    let run = |item: &str| match item.split_once('*') {
        Some((number, count)) => Some((number.trim().to_string(), count.trim().parse::<usize>().ok()?)),
        None => Some((item.trim().to_string(), 1)),
    };
    let runs: Vec<(String, usize)> = list.split(',').map(run).collect::<Option<_>>()?;
    let all = |is_one: &dyn Fn(&str) -> bool| runs.iter().all(|(number, _)| is_one(number));
    if !all(&|number| number.parse::<f64>().is_ok()) {
        return None;
    }
    let ty = match ty {
        Some("f32") => TableType::F32,
        Some("i32") => TableType::I32,
        Some("u32") => TableType::U32,
        Some(other) => return Some(Err(format!("`{other}` is no type of a table; say f32, i32 or u32"))),
        None if usual.is_none() && all(&|number| number.parse::<i64>().is_ok()) => TableType::I32,
        None => usual.unwrap_or(TableType::F32),
    };
    if runs.iter().fold(0usize, |sum, run| sum.saturating_add(run.1)) > MOST_IN_PLACE {
        return Some(Err(format!("has more than {MOST_IN_PLACE} numbers; give an .npy file")));
    }
    let bits = |number: &str| match ty {
        TableType::F32 => number.parse().ok().map(f32::to_bits),
        TableType::I32 => number.parse().ok().map(|x: i32| x as u32),
        TableType::U32 => number.parse().ok(),
    };
    let words = runs.iter().map(|(number, count)| match bits(number) {
        Some(bits) => Ok(std::iter::repeat_n(bits, *count)),
        None => Err(format!("`{number}` is no {}", format!("{ty:?}").to_lowercase())),
    });
    Some(words.collect::<Result<Vec<_>, _>>().map(|runs| (ty, runs.into_iter().flatten().collect())))
}

/// Text of an option, as the library reads it.
struct Text {
    option: &'static str,
    /// Line that a body stands in.
    signature: &'static str,
    /// File that the text came from.
    file: Option<String>,
    wgsl: String,
    /// Columns of the first line that the user did not write.
    before: usize,
    /// Number of lines that the user wrote.
    lines: usize,
}

impl Text {
    /// Reads an option's value: a file if one has this name, else the text itself.
    fn read((option, signature): (&'static str, &'static str), value: &str) -> Result<Self, Failure> {
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
        Ok(Self { option, signature, file, wgsl: format!("{before}{text}{after}"), before: before.len(), lines: text.lines().count() })
    }

    /// Reads the term, with those of the tables that the text names.
    fn term(&self, tables: &[Loaded]) -> Result<Term, Failure> {
        let used: Vec<Table<'_>> = tables.iter().map(Loaded::table).filter(|table| self.reads(table.name)).collect();
        let term = Term::with_tables(&self.wgsl, &used).map_err(|error| self.refused(&error))?;
        let is_defined = if self.option == SCORE.0 { term.has_score() } else { term.has_visible() };
        if !is_defined {
            let form = self.signature.trim_end_matches(" { ");
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

    fn title(&self) -> String {
        let name = |file: &str| Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let written = || self.wgsl[self.before..].lines().next().unwrap_or_default().trim().to_string();
        self.file.as_deref().map_or_else(written, name)
    }

    /// Describes an error of this text. Columns are those of what the user wrote.
    fn refused(&self, error: &Error) -> Failure {
        let why = match error {
            Error::Invalid { why, .. } => why.clone(),
            other => other.to_string(),
        };
        let why = shifted(&why, self.before, self.lines);
        let unknown = why.split_once("no definition in scope for identifier: `").and_then(|(_, rest)| rest.split('`').next());
        match unknown.filter(|name| self.wgsl.contains(&format!("{name}["))) {
            Some(name) => Failure::at(self.place(), format!("{why}; if it is a table, give --table {name}=T.npy or {name}=NUMBERS")),
            None => Failure::at(self.place(), why),
        }
    }
}

/// Counts a column of the first line from the end of the first `before` ones. A place after `lines` lines is the end.
fn shifted(why: &str, before: usize, lines: usize) -> String {
    let place = || {
        let (start, rest) = why.split_once("line ")?;
        let (line, rest) = rest.split_once(", column ")?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        Some((start, line.parse::<usize>().ok()?, rest[..digits].parse::<usize>().ok()?, &rest[digits..]))
    };
    match place().filter(|_| before > 0) {
        Some((start, line, _, rest)) if line > lines.max(1) => format!("{start}at the end{rest}"),
        Some((start, 1, column, rest)) => format!("{start}line 1, column {}{rest}", column.saturating_sub(before).max(1)),
        _ => why.into(),
    }
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
    const FUNCTIONS: [&str; 4] = ["visible", "score", "slope", "status"];
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
    // An index may be another where the row is a constant, and nobody asks for gradients.
    let tables: Vec<Table<'_>> = term.tables().map(|table| Table { owner: None, ..table }).collect();
    Term::with_tables(&own, &tables)
}

/// Terms that the options describe, with the data of their tables.
#[derive(Default)]
pub(crate) struct UserTerms {
    texts: Vec<Text>,
    terms: Vec<Term>,
    tables: Vec<Loaded>,
}

impl TermArgs {
    /// True if none of the options is given.
    pub(crate) const fn is_empty(&self) -> bool {
        self.score.is_none() && self.visible.is_none() && self.table.is_empty()
    }

    /// Reads texts and tables.
    pub(crate) fn read(&self) -> Result<UserTerms, Failure> {
        let tables: Vec<Loaded> = self.table.iter().map(|text| Loaded::read(text)).collect::<Result<_, _>>()?;
        let given = [(SCORE, &self.score), (VISIBLE, &self.visible)];
        let given = given.into_iter().filter_map(|(option, value)| Some((option, value.as_deref()?)));
        let texts: Vec<Text> = given.map(|(option, value)| Text::read(option, value)).collect::<Result<_, Failure>>()?;
        for (at, Loaded { name, .. }) in tables.iter().enumerate() {
            if tables[..at].iter().any(|other| other.name == *name) {
                return Err(Failure::at(format!("--table {name}"), "is given twice"));
            }
            if texts.iter().all(|text| !text.reads(name)) {
                return Err(Failure::at(format!("--table {name}"), "neither --score nor --visible reads it"));
            }
        }
        let mut terms: Vec<Term> = texts.iter().map(|text| text.term(&tables)).collect::<Result<_, _>>()?;
        if let [score, visible] = &texts[..] {
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
        Ok(UserTerms { texts, terms, tables })
    }
}

impl UserTerms {
    /// Adds the terms to a problem.
    pub(crate) fn add_to(&self, problem: &mut Problem) {
        problem.user_terms.extend(self.terms.iter().cloned());
    }

    /// Data of the tables, for [`wgpu_attention::Inputs::term_tables`].
    pub(crate) fn table_words(&self, problem: &Problem) -> Result<Vec<u32>, Failure> {
        problem.term_tables(&self.data()).map_err(|error| Failure::at("--table", error))
    }

    /// The terms, in their order.
    pub(crate) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// Tables with their data, by name.
    pub(crate) fn data(&self) -> Vec<(&str, TableData<'_>)> {
        self.tables.iter().map(|table| (table.name.as_str(), table.data())).collect()
    }

    /// Name and length of each table that has a gradient.
    pub(crate) fn gradients(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tables.iter().map(Loaded::table).filter(|table| table.owner.is_some()).map(|table| (table.name, table.len))
    }

    /// Options that were given, for messages.
    pub(crate) fn options(&self) -> Vec<&'static str> {
        self.texts.iter().map(|text| text.option).collect()
    }

    /// Titles of the terms: names of files, and the first lines of texts that come from none.
    pub(crate) fn titles(&self) -> Vec<String> {
        let mut titles: Vec<String> = self.texts.iter().map(Text::title).collect();
        titles.dedup();
        titles
    }

    /// Terms in words, for records: the option and the title of each.
    pub(crate) fn described(&self) -> Vec<String> {
        self.texts.iter().map(|text| format!("{} in WGSL: {}", text.option.trim_start_matches('-'), text.title())).collect()
    }

    /// Describes an error that may be one of a score function, such as that it has no derivative.
    pub(crate) fn explain(&self, error: Error) -> Failure {
        match (&error, self.texts.iter().find(|text| text.option == SCORE.0)) {
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
    fn tables_in_place() {
        let read =
            |text: &str| in_place(text, None).map(|read| read.map(|(ty, words)| (ty, words.into_iter().map(|bits| bits as i32).collect())));
        let ok = |ty, words: &[i32]| Some(Ok((ty, words.to_vec())));
        assert_eq!(read("0.5,-1"), ok(TableType::F32, &[0.5f32, -1.0].map(|x| x.to_bits() as i32)));
        assert_eq!(read("0*2, -1*1"), ok(TableType::I32, &[0, 0, -1]));
        assert_eq!(read("1,4294967295:u32"), ok(TableType::U32, &[1, -1]));
        assert_eq!(read("1*0,2:f32"), ok(TableType::F32, &[2f32.to_bits() as i32]));
        assert_eq!(["s.npy", "8heads", "1,x", "1*x", "", "c:/1"].map(|text| in_place(text, None)), [const { None }; 6]);
        for (text, culprit) in
            [("1:i64", "i64"), ("-1:u32", "-1"), ("1.5:i32", "1.5"), ("3000000000", "3000000000"), ("0*99999999999", "npy")]
        {
            let why = in_place(text, None).expect("numbers").expect_err(text);
            assert!(why.contains(culprit), "{why}");
        }
    }

    #[test]
    fn columns_count_from_what_the_user_wrote() {
        assert_eq!(shifted("line 1, column 40: no", 30, 2), "line 1, column 10: no");
        assert_eq!(shifted("line 2, column 40: no", 30, 2), "line 2, column 40: no");
        assert_eq!(shifted("line 1, column 40: no", 0, 1), "line 1, column 40: no");
        assert_eq!(shifted("x: line 2, column 1: no", 30, 1), "x: at the end: no");
        assert_eq!(shifted("a line of words", 30, 1), "a line of words");
    }
}
