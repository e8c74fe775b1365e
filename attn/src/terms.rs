//! Options for the terms of a problem, made from the library's list.

use clap::{Arg, ArgMatches, Command};
use wgpu_attention::{Error, Problem, TermWord, term_words};

use crate::failure::Failure;

/// Terms with an option here. What needs data comes in files, by options of its own.
fn without_data() -> impl Iterator<Item = TermWord> {
    term_words().filter(|term| !term.needs_data)
}

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
        let option = |term: TermWord| Arg::new(term.word).long(term.word).value_name(term.value).help(term.help).allow_hyphen_values(true);
        command.args(without_data().map(option))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Terms {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |TermWord { word, .. }| matches.get_one::<String>(word).map(|value| format!("{word}={value}"));
        Ok(Self(without_data().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
