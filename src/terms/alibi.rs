//! ALiBi: a bias linear in the distance, with a slope per query head.

use super::term::{Term, TermText};
use crate::problem::{Alibi, Problem};

pub(super) const TERM: Term = Term {
    name: "alibi",
    wgsl: files!("terms/alibi.wgsl")[0],
    is_present: |p| p.alibi.is_some(),
    uses_position: true,
    values: |p, tables| [tables.alibi_slopes, u32::from(p.alibi == Some(Alibi::Symmetric)), 0, 0],
    add: Some(|p, inputs, at, first, to| {
        let slope = inputs.alibi_slopes[at.head];
        let distance = first as i64 - at.position;
        let add = |x: &mut f32, distance: f32| {
            *x += slope * if p.alibi == Some(Alibi::Symmetric) { -distance.abs() } else { distance };
        };
        // Each distance is rounded to f32 once. Few exceed the i32 lanes of vectors.
        match (i32::try_from(distance), i32::try_from(distance + to.len() as i64)) {
            (Ok(distance), Ok(_)) => to.iter_mut().enumerate().for_each(|(j, x)| add(x, (distance + j as i32) as f32)),
            _ => to.iter_mut().enumerate().for_each(|(j, x)| add(x, (distance + j as i64) as f32)),
        }
    }),
    draw: |p, kind, _| p.alibi = kind.one_in(5).then(|| kind.pick(&[Alibi::Signed, Alibi::Symmetric])),
    remove: |p| p.alibi = None,
    text: TermText {
        word: "alibi",
        value: "signed|symmetric",
        help: "Add slope * (key - position), or -slope * |key - position|",
        needs_data: true,
        write: |p| if p.alibi == Some(Alibi::Signed) { "signed".into() } else { "symmetric".into() },
        read: |p, value| {
            p.alibi = Some(match value {
                "signed" => Alibi::Signed,
                "symmetric" => Alibi::Symmetric,
                _ => return Err(format!("`{value}` is neither `signed` nor `symmetric`")),
            });
            Ok(())
        },
    },
    ..Term::NOTHING
};

impl Problem {
    /// Adds ALiBi.
    #[must_use]
    pub const fn alibi(mut self, alibi: Alibi) -> Self {
        self.alibi = Some(alibi);
        self
    }
}
