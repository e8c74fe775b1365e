//! Visibility of whole tiles of rows and keys, for those who draw or count them.

use std::ops::Range;

use super::kernel::Isa;
use super::tile_list::TileList;
use super::user_term::UserTerm;
use super::visible::Item;
use crate::custom::tile::Status;
use crate::error::Result;
use crate::problem::{Inputs, Problem};
use crate::terms::TileAt;

/// Tiles of rows and keys as kernels see them before they test a pair: which are skipped, which need no test.
///
/// ```
/// use wgpu_attention::cpu::{TileStatus, Tiles};
/// use wgpu_attention::{Alignment, Dims, Inputs, Problem, Term};
///
/// let causal = Term::wgsl("fn visible(at: Pair) -> bool { return at.key <= at.position; }")?;
/// let problem = Problem::new(Dims::self_attention(1, 1, 128, 1)).aligned(Alignment::TopLeft).with_term(causal);
/// let zeros = [0.0f32; 128];
/// let inputs = Inputs::new(&zeros, &zeros, &zeros);
/// let tiles = Tiles::new(&problem, &inputs)?;
/// let status = |rows, keys| tiles.status(0, 0, rows, keys);
/// assert_eq!(status(0..64, 64..128), TileStatus::None);
/// assert_eq!(status(64..128, 0..64), TileStatus::All);
/// assert_eq!(status(64..128, 64..128), TileStatus::Some);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Debug)]
pub struct Tiles<'a> {
    problem: &'a Problem,
    inputs: &'a Inputs<'a>,
    items: Vec<Item>,
    users: Vec<UserTerm<'a>>,
    list: Option<TileList>,
    /// True if a built-in option masks pairs and does not know tiles.
    tests_pairs: bool,
}

impl<'a> Tiles<'a> {
    /// Checks the problem and its data.
    pub fn new(problem: &'a Problem, inputs: &'a Inputs<'_>) -> Result<Self> {
        problem.check()?;
        inputs.check(problem)?;
        let items: Vec<Item> = (0..problem.dims.batch).map(|batch| Item::new(problem, inputs, batch)).collect();
        let users = UserTerm::all(problem, inputs);
        let list = TileList::build(problem, &users, Isa::best(), &items, 1);
        let tests_pairs = problem.terms().any(|term| term.mask.is_some() && term.status.is_none());
        Ok(Self { problem, inputs, items, users, list, tests_pairs })
    }

    /// Returns the visibility of a tile of a head; `None` where the item has none of its rows or keys.
    pub fn status(&self, batch: usize, head: usize, rows: Range<usize>, keys: Range<usize>) -> Status {
        let item = &self.items[batch];
        let (rows, keys) = (rows.start..rows.end.min(item.rows), keys.start..keys.end.min(item.length));
        if rows.is_empty() || keys.is_empty() {
            return Status::None;
        }
        let seen = || rows.clone().map(|i| item.interval(self.problem, i));
        let some = item.seen_by_some(self.problem, rows.clone());
        if some.end <= keys.start || keys.end <= some.start {
            return Status::None;
        }
        let is_whole = !self.tests_pairs && seen().all(|seen| seen.start <= keys.start && keys.end <= seen.end);
        let of_pairs = if is_whole { Status::All } else { Status::Some };
        let tile = TileAt { batch, heads: head..head + 1, rows, keys };
        let of_terms = item.status(self.problem, self.inputs, &tile);
        let kv_head = head / self.problem.dims.group();
        let of_users = TileList::status(self.list.as_ref(), &self.users, self.problem, (item, kv_head), &tile);
        of_users.min(of_terms).min(of_pairs)
    }
}
