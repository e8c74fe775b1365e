//! Additive bias: an f32 tensor added to the scores; -inf masks.

use super::term::{Term, TermTensor, TermText, extents};
use crate::problem::{BroadcastShape, Problem, along_keys};

pub(super) const TERM: Term = Term {
    name: "bias",
    wgsl: files!("terms/bias.wgsl")[0],
    is_present: |p| p.bias.is_some(),
    values: |p, _| p.bias.map_or([0; 4], |shape| shape.strides().map(|step| step as u32)),
    tensor: Some(TermTensor::Bias),
    check: |p| p.bias.map_or(Ok(()), |shape| shape.check("bias", &p.dims)),
    add: Some(|p, inputs, at, first, to| match along_keys(p.bias, [at.batch, at.head, at.row, first]) {
        (start, 0) => to.iter_mut().for_each(|x| *x += inputs.bias[start]),
        (start, _) => to.iter_mut().zip(&inputs.bias[start..]).for_each(|(x, bias)| *x += bias),
    }),
    draw: |p, kind, rest| p.bias = kind.one_in(4).then(|| BroadcastShape::draw(&p.dims, rest)),
    remove: |p| p.bias = None,
    text: TermText {
        word: "bias",
        value: "B,H,Q,K",
        help: "Add a float tensor of this shape to the scores; extents are full or 1",
        needs_data: true,
        write: |p| p.bias.map_or_else(String::new, BroadcastShape::text),
        read: |p, value| extents(value).map(|shape| p.bias = Some(BroadcastShape(shape))),
    },
    ..Term::NOTHING
};

impl Problem {
    /// Adds an additive bias of this shape.
    #[must_use]
    pub const fn bias(mut self, shape: BroadcastShape) -> Self {
        self.bias = Some(shape);
        self
    }
}
