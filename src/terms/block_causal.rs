//! Block-causal: keys before the end of the row's block are visible, `key < (floor(position / size) + 1) * size`.

use super::chunk::WHOLE;
use super::term::{Term, TermText, size};
use crate::error::Error;
use crate::problem::Problem;

pub(super) const TERM: Term = Term {
    name: "block_causal",
    wgsl: files!("terms/block_causal.wgsl")[0],
    is_present: |p| p.visibility.block_causal.is_some(),
    uses_position: true,
    values: |p, _| [p.visibility.block_causal.map_or(0, |size| size.min(WHOLE)), 0, 0, 0],
    check: |p| match p.visibility.block_causal {
        Some(0) => Err(Error::invalid("block_causal", "is 0; a block has at least 1 key")),
        _ => Ok(()),
    },
    interval: Some(|p, at, keys| {
        let size = i64::from(p.visibility.block_causal.unwrap_or(1));
        keys.start..keys.end.min(at.position.div_euclid(size).saturating_add(1).saturating_mul(size))
    }),
    reach: |p| [None, p.visibility.block_causal.map(|size| size - 1)],
    draw: |p, kind, rest| {
        let keys = p.dims.seq_len_kv;
        p.visibility.block_causal = kind.one_in(10).then(|| 1 + rest.below(keys + 1) as u32);
    },
    remove: |p| p.visibility.block_causal = None,
    text: TermText {
        word: "block-causal",
        value: "SIZE",
        help: "Keep only the keys before the end of the row's block of SIZE positions",
        write: |p| p.visibility.block_causal.map_or_else(String::new, |size| size.to_string()),
        needs_data: false,
        read: |p, value| size(value).map(|size| p.visibility.block_causal = Some(size)),
    },
    ..Term::NOTHING
};

impl Problem {
    /// Masks the keys after the row's own block of `size` positions.
    #[must_use]
    pub const fn block_causal(mut self, size: u32) -> Self {
        self.visibility.block_causal = Some(size);
        self
    }
}
