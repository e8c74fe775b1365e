//! One of the user's terms, prepared for a job.

use crate::custom::Term;
use crate::custom::schedule::Schedule;
use crate::custom::status::TileRule;
use crate::problem::{Inputs, Problem};

/// Term of a job, prepared once for all tiles.
#[derive(Debug)]
pub(super) struct UserTerm<'a> {
    pub(super) tables: Vec<&'a [u32]>,
    /// `None` if the term shows every pair.
    pub(super) visible: Option<Schedule<'a>>,
    pub(super) rule: Option<&'a TileRule>,
    pub(super) score: Option<Schedule<'a>>,
    pub(super) slope: Option<Schedule<'a>>,
}

impl<'a> UserTerm<'a> {
    /// Prepares all terms of a problem.
    pub(super) fn all(problem: &'a Problem, inputs: &'a Inputs<'_>) -> Vec<Self> {
        let term = |(index, term): (usize, &'a Term)| {
            let functions = term.functions();
            Self {
                tables: problem.tables_of(index, inputs.term_tables),
                visible: functions.visible.as_ref().map(Schedule::new),
                rule: functions.status.as_ref(),
                score: functions.score.as_ref().map(Schedule::new),
                slope: functions.slope().map(Schedule::new),
            }
        };
        problem.user_terms.iter().enumerate().map(term).collect()
    }

    /// True unless its score's derivative is 1 everywhere.
    pub(super) const fn has_slope(&self) -> bool {
        self.slope.is_some()
    }
}
