//! Softcap: `softcap * tanh(x / softcap)`, before the biases or after them. On the CPU it is part of the softmax kernels.

use super::term::{Term, TermText};
use crate::error::Error;
use crate::problem::{Problem, ScoreOrder};

pub(super) const TERM: Term = Term {
    name: "softcap",
    wgsl: files!("terms/softcap.wgsl")[0],
    is_present: |p| p.softcap.is_some() && p.score_order == ScoreOrder::SoftcapThenBias,
    values: |p, _| [p.softcap.unwrap_or(0.0).to_bits(), 0, 0, 0],
    check: |p| match p.softcap {
        Some(softcap) if !(softcap.is_finite() && softcap > 0.0) => {
            Err(Error::invalid("softcap", format!("{softcap} is not a finite number above 0; use None for no softcap")))
        }
        _ => Ok(()),
    },
    draw: |p, kind, rest| {
        p.softcap = kind.one_in(4).then(|| rest.pick(&[0.5, 5.0, 30.0]));
        p.score_order = if kind.one_in(3) { ScoreOrder::BiasThenSoftcap } else { ScoreOrder::SoftcapThenBias };
    },
    remove: |p| (p.softcap, p.score_order) = (None, ScoreOrder::SoftcapThenBias),
    text: TermText {
        word: "softcap",
        value: "CAP",
        help: "Cap the scores: CAP * tanh(score / CAP)",
        write: |p| p.softcap.map_or_else(String::new, |softcap| softcap.to_string()),
        needs_data: false,
        read: |p, value| {
            let softcap = value.parse().ok().filter(|softcap: &f32| softcap.is_finite() && *softcap > 0.0);
            p.softcap = Some(softcap.ok_or_else(|| format!("`{value}` is not a finite number above 0; leave the softcap out for none"))?);
            Ok(())
        },
    },
    ..Term::NOTHING
};

/// Softcap after the biases: a second place for the functions of [`TERM`].
pub(super) const AFTER_BIASES: Term = Term {
    is_present: |p| p.softcap.is_some() && p.score_order == ScoreOrder::BiasThenSoftcap,
    draw: |_, _, _| {},
    remove: |p| p.score_order = ScoreOrder::SoftcapThenBias,
    text: TermText {
        word: "softcap-after-biases",
        value: "CAP",
        help: "Cap the scores after the biases",
        read: |p, value| {
            p.score_order = ScoreOrder::BiasThenSoftcap;
            (TERM.text.read)(p, value)
        },
        ..TERM.text
    },
    ..TERM
};

impl Problem {
    /// Caps the scores before the biases.
    #[must_use]
    pub const fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self.score_order = ScoreOrder::SoftcapThenBias;
        self
    }

    /// Caps the scores after the biases.
    #[must_use]
    pub const fn softcap_after_biases(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self.score_order = ScoreOrder::BiasThenSoftcap;
        self
    }
}
