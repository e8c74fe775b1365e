//! Segments: rows see only keys of their own segment, `segment_ids_q[batch, row] == segment_ids_kv[batch, key]`.

use super::term::{Term, TermText};
use crate::problem::Problem;

pub(super) const TERM: Term = Term {
    name: "segments",
    wgsl: files!("terms/segments.wgsl")[0],
    is_present: |p| p.visibility.segments,
    values: |_, tables| [tables.segment_ids_q, tables.segment_ids_kv, 0, 0],
    mask: Some(|p, inputs, at, first, to| {
        let own = inputs.segment_ids_q[at.batch * p.dims.seq_len_q + at.row];
        for (x, &segment) in to.iter_mut().zip(&inputs.segment_ids_kv[at.batch * p.dims.seq_len_kv + first..]) {
            *x = if segment == own { *x } else { f32::NEG_INFINITY };
        }
    }),
    draw: |p, kind, _| p.visibility.segments = p.varlen.is_none() && kind.one_in(8),
    remove: |p| p.visibility.segments = false,
    text: TermText {
        word: "segments",
        help: "Let rows see only keys of their own segment",
        needs_data: true,
        read: |p, _| {
            p.visibility.segments = true;
            Ok(())
        },
        ..Term::NOTHING.text
    },
    ..Term::NOTHING
};

impl Problem {
    /// Masks the keys of other segments: see [`crate::Inputs::segment_ids_q`].
    #[must_use]
    pub const fn segments(mut self) -> Self {
        self.visibility.segments = true;
        self
    }
}
