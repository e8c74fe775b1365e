//! Chunk: keys of the row's own chunk are visible, `floor(key / size) == floor(position / size)`.

use super::term::{Term, TermText, size};
use crate::error::Error;
use crate::problem::Problem;

/// Larger than any distance between positions in a shader.
pub(super) const WHOLE: u32 = 1 << 30;

pub(super) const TERM: Term = Term {
    name: "chunk",
    wgsl: files!("terms/chunk.wgsl")[0],
    is_present: |p| p.visibility.chunk.is_some(),
    uses_position: true,
    values: |p, _| [p.visibility.chunk.map_or(0, |size| size.min(WHOLE)), 0, 0, 0],
    check: |p| match p.visibility.chunk {
        Some(0) => Err(Error::invalid("chunk", "is 0; a chunk has at least 1 key")),
        _ => Ok(()),
    },
    interval: Some(|p, at, keys| {
        let size = i64::from(p.visibility.chunk.unwrap_or(1));
        let start = at.position.div_euclid(size).saturating_mul(size);
        keys.start.max(start)..keys.end.min(start.saturating_add(size))
    }),
    reach: |p| [p.visibility.chunk.map(|size| size - 1); 2],
    draw: |p, kind, rest| {
        let keys = p.dims.seq_len_kv;
        p.visibility.chunk = kind.one_in(10).then(|| 1 + rest.below(keys + 1) as u32);
    },
    remove: |p| p.visibility.chunk = None,
    text: TermText {
        word: "chunk",
        value: "SIZE",
        help: "Keep only the keys of the row's own chunk of SIZE positions",
        write: |p| p.visibility.chunk.map_or_else(String::new, |size| size.to_string()),
        needs_data: false,
        read: |p, value| size(value).map(|size| p.visibility.chunk = Some(size)),
    },
    ..Term::NOTHING
};

impl Problem {
    /// Masks the keys outside the row's own chunk of `size` positions.
    #[must_use]
    pub const fn chunk(mut self, size: u32) -> Self {
        self.visibility.chunk = Some(size);
        self
    }
}
