//! Options of a problem: its arrays, and its terms from the library's list.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use wgpu_attention::{Error, Problem, TermWord, term_words};

use crate::failure::Failure;

/// Arrays of a problem: option, value and help. In `--input` they are tensors, with `_` for `-`.
pub(super) const ARRAYS: [(&str, &str, &str); 18] = [
    ("query", "Q.npy", "Query [batch, num_heads, seq_len_q, head_dim], float32 or float16"),
    ("key", "K.npy", "Key [batch, num_kv_heads, seq_len_kv, head_dim]"),
    ("value", "V.npy", "Value [batch, num_kv_heads, seq_len_kv, head_dim_v]"),
    ("mask", "M.npy", "Bool, true = may attend; broadcasts from the right to [batch, num_heads, seq_len_q, seq_len_kv]"),
    (
        "block-list",
        "T.npy",
        "Bool, true = the tile of --tile rows and keys is visible, [batch or 1, lists, query tiles, key tiles]; \
         lists divides num_heads. Axes missing on the left are 1",
    ),
    ("bias", "B.npy", "Floats added to the scores, -inf masks; broadcasts like --mask"),
    ("alibi", "S.npy", "ALiBi slopes, float [num_heads]: adds a bias linear in the distance from the row's position"),
    ("relative-bias", "T.npy", "Bias by distance, float [num_heads, 2 * max_distance + 1]; farther keys take the end of the table"),
    ("sinks", "S.npy", "One more logit per head in the denominator of the softmax, float [num_heads]"),
    ("kv-lengths", "L.npy", "Number of valid keys of each item, integer [batch]; the keys after them are padding"),
    ("prefix-lengths", "L.npy", "Number of keys of each item that --causal does not mask, integer [batch]"),
    ("segment-ids", "I.npy", "Segment of each query row, integer [batch, seq_len_q]: rows see only keys of their own segment"),
    ("segment-ids-kv", "I.npy", "Segment of each key, integer [batch, seq_len_kv] [default: --segment-ids]"),
    (
        "cu-seqlens",
        "C.npy",
        "Varlen sequences without padding: boundaries of their query tokens, integer [batch + 1] from 0 on. \
         Query, key and value have all tokens one after the other, as one item",
    ),
    ("cu-seqlens-kv", "C.npy", "Boundaries of the key tokens, integer [batch + 1] [default: --cu-seqlens]"),
    (
        "page-table",
        "P.npy",
        "Pages of each item, integer [batch, pages_per_item]; key and value are pools \
         [pages, num_kv_heads, page_size, dim]. Needs --kv-lengths",
    ),
    ("d-output", "DO.npy", "Gradient of the output, in its shape, for --gradients"),
    ("d-lse", "DL.npy", "Gradient of the lse, in its shape, for --gradients [default: the loss does not depend on it]"),
];

/// Terms with an option of their own. Terms that need data are options above.
fn terms() -> impl Iterator<Item = TermWord> {
    term_words().filter(|term| !term.needs_data)
}

/// Files of the arrays that were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArrayArgs {
    pub(super) files: BTreeMap<&'static str, PathBuf>,
}

/// Terms of the library that were given, as it reads them: `WORD` or `WORD=VALUE`.
#[derive(Clone, Debug, Default)]
pub(crate) struct BuiltInArgs(Vec<String>);

impl BuiltInArgs {
    pub(crate) fn is_given(&self) -> bool {
        !self.0.is_empty()
    }

    /// Adds the terms to `problem`. Errors name the option.
    pub(crate) fn add_to(&self, problem: &mut Problem) -> Result<(), Failure> {
        for term in &self.0 {
            let option = format!("--{}", term.replacen('=', " ", 1));
            match problem.add_term(term) {
                Err(Error::Invalid { why, .. }) => {
                    return Err(Failure::at(option, why.strip_prefix(&format!("`{term}`: ")).unwrap_or(&why)));
                }
                other => other?,
            }
        }
        Ok(())
    }
}

/// Describes an error of the library by the option that the wrong argument came from.
pub(super) fn by_option(error: Error) -> Failure {
    let Error::Invalid { argument, why } = &error else { return error.into() };
    let word = argument.replace('_', "-");
    let words = [word.as_str(), word.trim_end_matches("-q"), word.trim_end_matches("-slopes")];
    let options = ARRAYS.iter().map(|array| array.0).chain(terms().map(|term| term.word)).chain(["scale", "dropout"]);
    match options.into_iter().find(|option| words.contains(option)) {
        Some(option) => Failure::at(format!("--{option}"), why),
        None => error.into(),
    }
}

impl clap::Args for ArrayArgs {
    fn augment_args(command: Command) -> Command {
        let array = |&(name, value, help): &(&'static str, &'static str, &'static str)| {
            let arg = Arg::new(name).long(name).value_name(value).help(help).value_parser(value_parser!(PathBuf));
            match name {
                "query" => arg.required_unless_present("input").conflicts_with("input").requires_all(["key", "value"]),
                "key" | "value" => arg.requires("query"),
                "d-output" | "d-lse" => arg.requires("gradients"),
                _ => arg,
            }
        };
        command.next_help_heading("Arrays").args(ARRAYS.iter().map(array))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for ArrayArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let file = |&(name, ..): &(&'static str, &str, &str)| Some((name, matches.get_one::<PathBuf>(name)?.clone()));
        Ok(Self { files: ARRAYS.iter().filter_map(file).collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for BuiltInArgs {
    fn augment_args(command: Command) -> Command {
        let term = |term: TermWord| Arg::new(term.word).long(term.word).value_name(term.value).help(term.help).allow_hyphen_values(true);
        command.next_help_heading("Terms and numbers").args(terms().map(term))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for BuiltInArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let term = |TermWord { word, .. }| matches.get_one::<String>(word).map(|value| format!("{word}={value}"));
        Ok(Self(terms().filter_map(term).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
