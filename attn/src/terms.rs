//! Options for the terms of a problem, made from the library's list.

use clap::{Arg, ArgMatches, Command};
use wgpu_attention::{Error, Problem, term_words};

use crate::failure::Failure;

/// Terms whose data comes in files, with options of their own.
const WITH_DATA: [&str; 5] = ["segments", "mask", "bias", "alibi", "relative-bias"];

/// Terms that were asked for, as the library reads them: `WORD` or `WORD=VALUE`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms(Vec<String>);

impl Terms {
    /// Adds the terms to `problem`. Errors name the option.
    pub(crate) fn add_to(&self, problem: &mut Problem) -> Result<(), Failure> {
        self.0.iter().try_for_each(|term| {
            problem.add_term(term).map_err(|error| match error {
                Error::Invalid { why, .. } => {
                    let why = why.strip_prefix(&format!("`{term}`: ")).unwrap_or(&why);
                    Failure::input(format!("--{}: {why}", term.replacen('=', " ", 1)))
                }
                other => other.into(),
            })
        })
    }
}

impl clap::Args for Terms {
    fn augment_args(command: Command) -> Command {
        let words = term_words().filter(|(word, ..)| !WITH_DATA.contains(word));
        command.args(words.map(|(word, value, help)| Arg::new(word).long(word).value_name(value).help(help).allow_hyphen_values(true)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Terms {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |word: &str| matches.get_one::<String>(word).map(|value| format!("{word}={value}"));
        Ok(Self(term_words().filter(|(word, ..)| !WITH_DATA.contains(word)).filter_map(|(word, ..)| given(word)).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
