//! Causal: keys after the row's position are masked, except those of the item's prefix.

use super::term::{Term, TermText, align};
use crate::problem::{Alignment, Problem};

pub(super) const TERM: Term = Term {
    name: "causal",
    wgsl: files!("terms/causal.wgsl")[0],
    is_present: |p| p.visibility.causal,
    uses_position: true,
    interval: Some(|_, at, keys| keys.start..keys.end.min(at.position.saturating_add(1).max(at.prefix as i64))),
    reach: |_| [None, Some(0)],
    draw: |p, kind, _| {
        p.visibility.causal = kind.one_in(3);
        p.visibility.prefix_lengths = p.visibility.causal && kind.one_in(5);
    },
    remove: |p| (p.visibility.causal, p.visibility.prefix_lengths) = (false, false),
    text: TermText {
        word: "causal",
        value: "top-left|bottom-right|OFFSET",
        help: "Mask the keys after each row's position. Row 0 is at key 0 (top-left), the last row at the last key (bottom-right), or \
               row 0 at the given key",
        write: |p| p.visibility.alignment.map_or_else(String::new, Alignment::text),
        needs_data: false,
        read: |p, value| {
            p.visibility.causal = true;
            align(p, value.parse()?)
        },
    },
    ..Term::NOTHING
};

impl Problem {
    /// Masks the keys after each row's position.
    #[must_use]
    pub const fn causal(mut self) -> Self {
        self.visibility.causal = true;
        self
    }
}
