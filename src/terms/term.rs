//! The form of a term: one option that masks pairs or changes scores.

use std::ops::Range;

pub(crate) use crate::custom::tile::Status;
use crate::error::Result;
use crate::numbers::Random;
use crate::problem::{Alignment, Inputs, Problem, TableLayout};

/// One option that masks pairs or changes scores. Its WGSL file defines one or more of these functions:
///
/// ```text
/// fn NAME_interval(keys: Span, item: Item, position: i32) -> Span    the keys left by arithmetic; ends never decrease
/// fn NAME_visible(at: Pair) -> bool                                  false masks the pair
/// fn NAME_status(tile: Tile) -> u32                                  what `NAME_visible` shows of a tile, exactly
/// fn NAME_score(x: f32, at: Pair) -> f32                             the score after this term; -inf masks the pair
/// fn NAME_slope(x: f32, y: f32, at: Pair) -> f32                     d y / d x of `NAME_score`; 1 where it is missing
/// ```
pub(crate) struct Term {
    /// Prefix of the WGSL functions.
    pub(crate) name: &'static str,
    /// Name and text of the WGSL file.
    pub(crate) wgsl: (&'static str, &'static str),
    /// True if the problem has the term.
    pub(crate) is_present: fn(&Problem) -> bool,
    /// True if it counts from the row's position, so that the problem needs an [`Alignment`].
    pub(crate) uses_position: bool,
    /// Runtime values, which the WGSL reads as `NAME_values()`.
    pub(crate) values: fn(&Problem, &TableLayout) -> [u32; 4],
    /// Tensor with a binding of its own, which the WGSL reads.
    pub(crate) tensor: Option<TermTensor>,
    /// Checks the term's own parameters.
    pub(crate) check: fn(&Problem) -> Result<()>,
    /// `NAME_interval` on the CPU. A term that has it looks at no pairs.
    pub(crate) interval: Option<IntervalFn>,
    /// Distance before and after a row's position beyond which every key is masked; `None` where it is unbounded.
    pub(crate) reach: fn(&Problem) -> [Option<u32>; 2],
    /// `NAME_score` on the CPU, of a row's keys from `first` on, if it adds something that the score does not matter to.
    pub(crate) add: Option<RowFn>,
    /// `NAME_visible` on the CPU: writes -inf to the masked ones of a row's keys from `first` on.
    pub(crate) mask: Option<RowFn>,
    /// `NAME_status` on the CPU, of a tile with rows and keys.
    pub(crate) status: Option<StatusFn>,
    /// Draws the term for a test problem, or leaves it out: what kernels depend on from the first source, the rest from
    /// the second.
    pub(crate) draw: fn(&mut Problem, &mut Random, &mut Random),
    /// Removes the term.
    pub(crate) remove: fn(&mut Problem),
    /// Text form of its parameters.
    pub(crate) text: TermText,
}

/// Narrows the keys of a row.
pub(crate) type IntervalFn = fn(&Problem, RowAt, Range<i64>) -> Range<i64>;

/// Changes the additive mask of a row's keys from `first` on.
pub(crate) type RowFn = fn(&Problem, &Inputs<'_>, RowAt, first: usize, &mut [f32]);

/// Returns what is visible of a tile of rows and keys.
pub(crate) type StatusFn = fn(&Problem, &Inputs<'_>, &TileAt) -> Status;

/// Text form of a term, `WORD` or `WORD=VALUE`, in command lines, benchmarks and tuning classes.
pub(crate) struct TermText {
    pub(crate) word: &'static str,
    /// Form of the value, empty if there is none.
    pub(crate) value: &'static str,
    /// Line of help.
    pub(crate) help: &'static str,
    /// True if the term reads data that comes with the inputs.
    pub(crate) needs_data: bool,
    pub(crate) write: fn(&Problem) -> String,
    pub(crate) read: fn(&mut Problem, &str) -> std::result::Result<(), String>,
}

/// Tensors that terms read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TermTensor {
    Mask,
    Bias,
}

/// A query row on the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowAt {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) row: usize,
    /// Position among the keys.
    pub(crate) position: i64,
    /// Prefix length of the item, or 0.
    pub(crate) prefix: usize,
}

/// A tile of rows and keys of an item on the CPU.
#[derive(Clone, Debug)]
pub(crate) struct TileAt {
    pub(crate) batch: usize,
    pub(crate) heads: Range<usize>,
    pub(crate) rows: Range<usize>,
    pub(crate) keys: Range<usize>,
}

impl Term {
    /// Defaults of a term that does nothing.
    pub(super) const NOTHING: Self = Self {
        name: "",
        wgsl: ("", ""),
        is_present: |_| false,
        uses_position: false,
        values: |_, _| [0; 4],
        tensor: None,
        check: |_| Ok(()),
        interval: None,
        reach: |_| [None; 2],
        add: None,
        mask: None,
        status: None,
        draw: |_, _, _| {},
        remove: |_| {},
        text: TermText { word: "", value: "", help: "", needs_data: false, write: |_| String::new(), read: |_, _| Ok(()) },
    };

    /// Terms without functions that this build never calls, which are then left out of it: tests draw terms, programs read
    /// them.
    pub(super) const fn in_this_build<const N: usize>(mut terms: [Self; N]) -> [Self; N] {
        let mut at = 0;
        while at < N {
            if !cfg!(feature = "verify") {
                terms[at].draw = Self::NOTHING.draw;
                terms[at].remove = Self::NOTHING.remove;
            }
            if cfg!(target_family = "wasm") {
                terms[at].text.read = Self::NOTHING.text.read;
            }
            at += 1;
        }
        terms
    }

    /// True if the WGSL file defines `NAME_hook`.
    pub(crate) fn defines(&self, hook: &str) -> bool {
        self.wgsl.1.contains(&format!("fn {}_{hook}(", self.name))
    }
}

/// Reads a whole number of at least 1.
pub(super) fn size(text: &str) -> std::result::Result<u32, String> {
    text.parse().ok().filter(|&size| size >= 1).ok_or_else(|| format!("`{text}` is not a whole number from 1 on"))
}

/// Reads the four extents of a mask or bias, separated by commas.
pub(super) fn extents(text: &str) -> std::result::Result<[usize; 4], String> {
    let extents: Vec<usize> = text.split(',').filter_map(|extent| extent.trim().parse().ok()).collect();
    extents.try_into().map_err(|_| format!("`{text}` is not four extents, BATCH,HEADS,ROWS,KEYS"))
}

/// Sets the alignment. A second one must be the same.
pub(super) fn align(problem: &mut Problem, alignment: Alignment) -> std::result::Result<(), String> {
    match problem.visibility.alignment.replace(alignment) {
        Some(other) if other != alignment => Err(format!("rows are aligned {other:?} already")),
        _ => Ok(()),
    }
}
