//! Relative bias: a learned table by head and clamped distance.

use super::term::{Term, TermText};
use crate::error::Error;
use crate::problem::Problem;

pub(super) const TERM: Term = Term {
    name: "relative_bias",
    wgsl: files!("terms/relative_bias.wgsl")[0],
    is_present: |p| p.relative_bias_max_distance.is_some(),
    uses_position: true,
    values: |p, tables| [tables.relative_bias, p.relative_bias_max_distance.unwrap_or(0), 0, 0],
    check: |p| match p.relative_bias_max_distance {
        Some(max) if (p.dims.num_heads as u64).saturating_mul(2 * u64::from(max) + 1) > isize::MAX as u64 / 4 => {
            let heads = p.dims.num_heads;
            Err(Error::invalid("relative_bias", format!("a table of distances up to {max} for {heads} heads overflows")))
        }
        _ => Ok(()),
    },
    add: Some(|p, inputs, at, first, to| {
        let max = i64::from(p.relative_bias_max_distance.unwrap_or(0));
        let columns = p.relative_bias_columns();
        let table = &inputs.relative_bias[at.head * columns..][..columns];
        let distance = at.position - first as i64;
        for (j, x) in to.iter_mut().enumerate() {
            *x += table[((distance - j as i64).clamp(-max, max) + max) as usize];
        }
    }),
    draw: |p, kind, rest| p.relative_bias_max_distance = kind.one_in(6).then(|| rest.pick(&[0, 1, 4, 16])),
    remove: |p| p.relative_bias_max_distance = None,
    text: TermText {
        word: "relative-bias",
        value: "MAX",
        help: "Add a learned bias by distance, clamped to MAX",
        needs_data: true,
        write: |p| p.relative_bias_max_distance.map_or_else(String::new, |max| max.to_string()),
        read: |p, value| {
            p.relative_bias_max_distance = Some(value.parse().map_err(|_| format!("`{value}` is not a whole number from 0 on"))?);
            Ok(())
        },
    },
    ..Term::NOTHING
};

impl Problem {
    /// Adds a learned bias by distance.
    #[must_use]
    pub const fn relative_bias(mut self, max_distance: u32) -> Self {
        self.relative_bias_max_distance = Some(max_distance);
        self
    }
}
