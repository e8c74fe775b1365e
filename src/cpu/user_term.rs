//! The user's terms, prepared for a job.

use super::user_status::tile_of;
use super::visible::Item;
use crate::custom::Term;
use crate::custom::schedule::Schedule;
use crate::custom::status::TileRule;
use crate::custom::tile::Status;
use crate::problem::{Inputs, Problem};
use crate::terms::TileAt;

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
}

/// Status of a tile with rows and keys, by the masks of all terms.
pub(super) fn status_of(users: &[UserTerm<'_>], item: &Item, kv_head: usize, at: &TileAt) -> Status {
    let tile = tile_of(item, kv_head, at);
    users.iter().filter_map(|term| Some(term.rule?.of(&tile, &term.tables))).min().unwrap_or(Status::All)
}
