//! Window: keys from `position - left` to `position + right` are visible, both inclusive.

use super::term::{Term, TermText};
use crate::problem::Problem;

/// At least the largest distance between two positions in a shader.
const OPEN: u32 = (1 << 30) - 1;

pub(super) const TERM: Term = Term {
    name: "window",
    wgsl: files!("terms/window.wgsl")[0],
    is_present: |p| p.visibility.window_left.is_some() || p.visibility.window_right.is_some(),
    uses_position: true,
    values: |p, _| {
        let [left, right] = [p.visibility.window_left, p.visibility.window_right].map(|side| side.unwrap_or(OPEN).min(OPEN));
        [left, right, 0, 0]
    },
    interval: Some(|p, at, keys| {
        let start = p.visibility.window_left.map_or(keys.start, |left| at.position.saturating_sub(left.into()).max(keys.start));
        let end = p.visibility.window_right.map_or(keys.end, |right| at.position.saturating_add(i64::from(right) + 1).min(keys.end));
        start..end
    }),
    reach: |p| [p.visibility.window_left, p.visibility.window_right],
    draw: |p, kind, rest| {
        let [left, right] = [kind.one_in(5), kind.one_in(8)];
        let keys = p.dims.seq_len_kv;
        let mut side = |there: bool| there.then(|| if rest.one_in(12) { u32::MAX } else { rest.below(keys + 2) as u32 });
        (p.visibility.window_left, p.visibility.window_right) = (side(left), side(right));
    },
    remove: |p| (p.visibility.window_left, p.visibility.window_right) = (None, None),
    text: TermText {
        word: "window",
        value: "L,R",
        help: "Keep only the keys from L before to R after each row's position, both inclusive; `-` is unbounded",
        write: |p| {
            let side = |side: Option<u32>| side.map_or("-".into(), |side| side.to_string());
            format!("{},{}", side(p.visibility.window_left), side(p.visibility.window_right))
        },
        needs_data: false,
        read: |p, value| {
            let side = |text: &str| match text.trim() {
                "-" => Ok(None),
                number => {
                    number.parse().map(Some).map_err(|_| format!("`{number}` is neither a whole number from 0 nor `-` for unbounded"))
                }
            };
            let (left, right) = value.split_once(',').ok_or("say L,R: two whole numbers, or `-` for unbounded")?;
            (p.visibility.window_left, p.visibility.window_right) = (side(left)?, side(right)?);
            Ok(())
        },
    },
    ..Term::NOTHING
};

impl Problem {
    /// Masks the keys outside `position - left ..= position + right`; a side that is `None` is open.
    #[must_use]
    pub const fn window(mut self, left: Option<u32>, right: Option<u32>) -> Self {
        self.visibility.window_left = left;
        self.visibility.window_right = right;
        self
    }
}
