//! Mask: a boolean tensor; true = may attend.

use super::term::{Term, TermTensor, TermText, extents};
use crate::problem::{BroadcastShape, Problem, along_keys};

pub(super) const TERM: Term = Term {
    name: "mask",
    wgsl: files!("terms/mask.wgsl")[0],
    is_present: |p| p.visibility.mask.is_some(),
    values: |p, _| p.visibility.mask.map_or([0; 4], |shape| shape.strides().map(|step| step as u32)),
    tensor: Some(TermTensor::Mask),
    check: |p| p.visibility.mask.map_or(Ok(()), |shape| shape.check("mask", &p.dims)),
    mask: Some(|p, inputs, at, first, to| match along_keys(p.visibility.mask, [at.batch, at.head, at.row, first]) {
        (start, 0) if inputs.mask[start] => {}
        (_, 0) => to.fill(f32::NEG_INFINITY),
        (start, _) => {
            for (x, &visible) in to.iter_mut().zip(&inputs.mask[start..]) {
                *x = if visible { *x } else { f32::NEG_INFINITY };
            }
        }
    }),
    draw: |p, kind, rest| p.visibility.mask = kind.one_in(4).then(|| BroadcastShape::draw(&p.dims, rest)),
    remove: |p| p.visibility.mask = None,
    text: TermText {
        word: "mask",
        value: "B,H,Q,K",
        help: "Mask by a boolean tensor of this shape; extents are full or 1",
        needs_data: true,
        write: |p| p.visibility.mask.map_or_else(String::new, BroadcastShape::text),
        read: |p, value| extents(value).map(|shape| p.visibility.mask = Some(BroadcastShape(shape))),
    },
    ..Term::NOTHING
};

impl Problem {
    /// Adds a boolean mask of this shape.
    #[must_use]
    pub const fn mask(mut self, shape: BroadcastShape) -> Self {
        self.visibility.mask = Some(shape);
        self
    }
}
