//! Terms: everything that masks a (row, key) pair or changes its score.
//!
//! A term is one WGSL file, one Rust file and one row of [`TERMS`]. The variant key, the params, the WGSL that joins
//! the terms, the CPU path, tuning classes, the generator of test problems, its shrinker, and the words of the command
//! line and of benchmarks follow from the list. The oracle never sees it. See docs/guide.md, "Adding a term".

mod alibi;
mod bias;
mod block_causal;
mod causal;
mod chunk;
mod mask;
mod relative_bias;
mod segments;
mod softcap;
mod window;

use std::ops::Range;

use crate::random::Random;
use crate::tables::TableLayout;
use crate::visibility::along_keys;
use crate::{Alignment, Error, Inputs, Problem, Result};

/// All terms. Scores change in this order; a term's index is its bit in [`TermSet`] and its place in the params.
pub(crate) const TERMS: [Term; 11] = [
    causal::TERM,
    window::TERM,
    chunk::TERM,
    block_causal::TERM,
    segments::TERM,
    mask::TERM,
    softcap::TERM,
    bias::TERM,
    alibi::TERM,
    relative_bias::TERM,
    softcap::AFTER_BIASES,
];

/// One option that masks pairs or changes scores. Its WGSL file defines one or more of these functions:
///
/// ```text
/// fn NAME_interval(keys: Span, item: Item, position: i32) -> Span    the keys left by arithmetic; ends never decrease
/// fn NAME_visible(at: Pair) -> bool                                  false masks the pair
/// fn NAME_score(x: f32, at: Pair) -> f32                             the score after this term; -inf masks the pair
/// fn NAME_slope(x: f32, y: f32, at: Pair) -> f32                     d y / d x of `NAME_score`; 1 where it is missing
/// ```
pub(crate) struct Term {
    /// Prefix of the WGSL functions.
    pub(crate) name: &'static str,
    /// Name and text of the WGSL file.
    pub(crate) wgsl: (&'static str, &'static str),
    /// True if the problem has the term.
    pub(crate) is_present: fn(&Problem) -> bool,
    /// True if it counts from the row's position, so that the problem needs an [`Alignment`].
    pub(crate) uses_position: bool,
    /// Runtime values, which the WGSL reads as `NAME_values()`.
    pub(crate) values: fn(&Problem, &TableLayout) -> [u32; 4],
    /// Tensor with a binding of its own, which the WGSL reads.
    pub(crate) tensor: Option<TermTensor>,
    /// Checks the term's own parameters.
    pub(crate) check: fn(&Problem) -> Result<()>,
    /// `NAME_interval` on the CPU. A term that has it looks at no pairs.
    pub(crate) interval: Option<IntervalFn>,
    /// Distance before and after a row's position beyond which every key is masked; `None` where it is unbounded.
    pub(crate) reach: fn(&Problem) -> [Option<u32>; 2],
    /// `NAME_score` on the CPU, of a row's keys from `first` on, if it adds something that the score does not matter to.
    pub(crate) add: Option<RowFn>,
    /// `NAME_visible` on the CPU: writes -inf to the masked ones of a row's keys from `first` on.
    pub(crate) mask: Option<RowFn>,
    /// Draws the term for a test problem, or leaves it out: what kernels depend on from the first source, the rest from
    /// the second.
    pub(crate) draw: fn(&mut Problem, &mut Random, &mut Random),
    /// Removes the term.
    pub(crate) remove: fn(&mut Problem),
    /// Text form of its parameters.
    pub(crate) text: TermText,
}

/// Narrows the keys of a row.
pub(crate) type IntervalFn = fn(&Problem, RowAt, Range<i64>) -> Range<i64>;

/// Changes the additive mask of a row's keys from `first` on.
pub(crate) type RowFn = fn(&Problem, &Inputs<'_>, RowAt, first: usize, &mut [f32]);

/// Text form of a term, `WORD` or `WORD=VALUE`, in command lines, benchmarks and tuning classes.
pub(crate) struct TermText {
    pub(crate) word: &'static str,
    /// Form of the value, empty if there is none.
    pub(crate) value: &'static str,
    /// Line of help.
    pub(crate) help: &'static str,
    /// True if the term reads data that comes with the inputs.
    pub(crate) needs_data: bool,
    pub(crate) write: fn(&Problem) -> String,
    pub(crate) read: fn(&mut Problem, &str) -> std::result::Result<(), String>,
}

/// Tensors that terms read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TermTensor {
    Mask,
    Bias,
}

/// A query row on the CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowAt {
    pub(crate) batch: usize,
    pub(crate) head: usize,
    pub(crate) row: usize,
    /// Position among the keys.
    pub(crate) position: i64,
    /// Prefix length of the item, or 0.
    pub(crate) prefix: usize,
}

impl Term {
    /// Defaults of a term that does nothing.
    const NOTHING: Self = Self {
        name: "",
        wgsl: ("", ""),
        is_present: |_| false,
        uses_position: false,
        values: |_, _| [0; 4],
        tensor: None,
        check: |_| Ok(()),
        interval: None,
        reach: |_| [None; 2],
        add: None,
        mask: None,
        draw: |_, _, _| {},
        remove: |_| {},
        text: TermText { word: "", value: "", help: "", needs_data: false, write: |_| String::new(), read: |_, _| Ok(()) },
    };

    /// True if the WGSL file defines `NAME_hook`.
    pub(crate) fn defines(&self, hook: &str) -> bool {
        self.wgsl.1.contains(&format!("fn {}_{hook}(", self.name))
    }
}

/// Terms of a kernel or a problem, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TermSet(pub(crate) u32);

impl TermSet {
    /// Returns the terms of `problem`.
    pub(crate) fn of(problem: &Problem) -> Self {
        Self::those(|term| (term.is_present)(problem))
    }

    /// Returns the terms that leave each row an interval.
    pub(crate) fn intervals() -> Self {
        Self::those(|term| term.interval.is_some())
    }

    /// Returns the terms that look at pairs.
    pub(crate) fn pairs() -> Self {
        Self::those(|term| term.interval.is_none())
    }

    fn those(wanted: impl Fn(&Term) -> bool) -> Self {
        Self(TERMS.iter().enumerate().map(|(bit, term)| u32::from(wanted(term)) << bit).sum())
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Returns the terms with their bits, in the order of the list.
    pub(crate) fn iter(self) -> impl Iterator<Item = (usize, &'static Term)> {
        const ALL: &[Term] = &TERMS;
        ALL.iter().enumerate().filter(move |(bit, _)| self.0 >> bit & 1 != 0)
    }
}

impl Problem {
    /// Returns the terms that the problem has.
    pub(crate) fn terms(&self) -> impl Iterator<Item = &'static Term> {
        TermSet::of(self).iter().map(|(_, term)| term)
    }

    /// True if an option depends on the position of a row.
    pub fn uses_position(&self) -> bool {
        self.terms().any(|term| term.uses_position)
    }

    /// Checks the parameters of every term.
    pub(crate) fn check_terms(&self) -> Result<()> {
        if self.uses_position() && self.visibility.alignment.is_none() {
            let counting: Vec<&str> = self.terms().filter(|term| term.uses_position).map(|term| term.text.word).collect();
            return Err(Error::invalid(
                "alignment",
                format!("{} counts from the row's position: say TopLeft, BottomRight or Offset", counting.join(", ")),
            ));
        }
        self.terms().try_for_each(|term| (term.check)(self))
    }

    /// Interval of `0..length` that is visible to a row, before the terms that look at pairs. `terms` are the problem's.
    pub(crate) fn interval(&self, terms: TermSet, at: RowAt, length: usize) -> Range<usize> {
        let all = 0..i64::try_from(length).unwrap_or(i64::MAX);
        let hooks = terms.iter().filter_map(|(_, term)| term.interval);
        let keys = hooks.fold(all, |keys, interval| interval(self, at, keys));
        let end = keys.end.max(0);
        keys.start.clamp(0, end) as usize..end as usize
    }

    /// Most keys that `rows` consecutive rows may see in their intervals.
    pub(crate) fn most_keys(&self, rows: usize) -> usize {
        let least = |side: usize| self.terms().filter_map(|term| (term.reach)(self)[side]).min();
        match (least(0), least(1)) {
            (Some(before), Some(after)) if !self.visibility.prefix_lengths => {
                self.dims.seq_len_kv.min(rows.saturating_add(before as usize).saturating_add(after as usize))
            }
            _ => self.dims.seq_len_kv,
        }
    }

    /// Returns the number of keys that each row of a padded batch may see, padding and terms that look at pairs aside.
    pub fn interval_lengths(&self) -> impl Iterator<Item = usize> {
        let d = self.dims;
        let offset = self.visibility.alignment.map_or(0, |alignment| alignment.offset(d.seq_len_q, d.seq_len_kv));
        let terms = TermSet::of(self);
        let at = move |row: usize| RowAt { row, position: row as i64 + offset, ..RowAt::default() };
        (0..d.seq_len_q).map(move |row| self.interval(terms, at(row), d.seq_len_kv).len())
    }

    /// Returns the problem's terms as text: `causal=bottom-right`, `window=127,0`, ...
    pub fn terms_text(&self) -> Vec<String> {
        let text = |text: &TermText| match (text.write)(self) {
            value if value.is_empty() => text.word.to_string(),
            value => format!("{}={value}", text.word),
        };
        self.terms().map(|term| text(&term.text)).collect()
    }

    /// Adds a term given as text, as [`Self::terms_text`] returns it.
    pub fn add_term(&mut self, text: &str) -> Result<()> {
        let (word, value) = text.split_once('=').unwrap_or((text, ""));
        let Some(term) = TERMS.iter().find(|term| term.text.word == word) else {
            let known: Vec<&str> = TERMS.iter().map(|term| term.text.word).collect();
            return Err(Error::invalid("term", format!("`{word}` is not known; there are {}", known.join(", "))));
        };
        (term.text.read)(self, value).map_err(|why| Error::invalid("term", format!("`{text}`: {why}")))
    }
}

/// Text form of a term, for command lines: `WORD` or `WORD=VALUE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TermWord {
    /// Word of the term.
    pub word: &'static str,
    /// Form of the value; empty if there is none.
    pub value: &'static str,
    /// Line of help.
    pub help: &'static str,
    /// True if the term reads data that comes with the inputs.
    pub needs_data: bool,
}

/// Returns the text form of every term.
pub fn term_words() -> impl Iterator<Item = TermWord> {
    const ALL: &[Term] = &TERMS;
    ALL.iter().map(|term| {
        let &TermText { word, value, help, needs_data, .. } = &term.text;
        TermWord { word, value, help, needs_data }
    })
}

/// Reads a whole number of at least 1.
fn size(text: &str) -> std::result::Result<u32, String> {
    text.parse().ok().filter(|&size| size >= 1).ok_or_else(|| format!("`{text}` is not a whole number from 1 on"))
}

/// Reads the four extents of a mask or bias, separated by commas.
fn extents(text: &str) -> std::result::Result<[usize; 4], String> {
    let extents: Vec<usize> = text.split(',').filter_map(|extent| extent.trim().parse().ok()).collect();
    extents.try_into().map_err(|_| format!("`{text}` is not four extents, BATCH,HEADS,ROWS,KEYS"))
}

/// Sets the alignment. A second one must be the same.
fn align(problem: &mut Problem, alignment: Alignment) -> std::result::Result<(), String> {
    match problem.visibility.alignment.replace(alignment) {
        Some(other) if other != alignment => Err(format!("rows are aligned {other:?} already")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dims, Varlen};

    #[test]
    fn terms_are_drawn_written_read_and_removed() {
        let mut seen = TermSet::default();
        for seed in 0..300 {
            let (kind, rest) = (&mut Random::new(seed), &mut Random::new(!seed));
            let mut drawn = Problem::new(Dims { num_heads: 4, ..Dims::self_attention(2, 4, 30, 8) });
            drawn.varlen = kind.one_in(3).then_some(Varlen { tokens_q: 40, tokens_kv: 40 });
            TERMS.iter().for_each(|term| (term.draw)(&mut drawn, kind, rest));
            drawn.visibility.alignment = drawn.uses_position().then_some(Alignment::BottomRight);
            drawn.check_terms().expect("valid");
            seen.0 |= TermSet::of(&drawn).0;

            let mut read = Problem { varlen: drawn.varlen, ..Problem::new(drawn.dims) };
            drawn.terms_text().iter().for_each(|text| read.add_term(text).expect("as written"));
            (read.visibility.alignment, read.visibility.prefix_lengths) = (drawn.visibility.alignment, drawn.visibility.prefix_lengths);
            read.score_order = drawn.score_order; // said by the softcap, if there is one
            assert_eq!(read, drawn);

            for (bit, term) in TermSet::of(&drawn).iter() {
                let mut without = drawn;
                (term.remove)(&mut without);
                assert_eq!(TermSet::of(&without).0 >> bit & 1, 0, "{}", term.name);
            }
        }
        assert_eq!(seen.0, (1 << TERMS.len()) - 1, "every term was drawn");
    }

    #[test]
    fn bad_text_is_refused() {
        for text in [
            "",
            "causl",
            "causal",
            "causal=left",
            "window",
            "window=3",
            "window=-1,0",
            "window=1,2,3",
            "chunk=0",
            "chunk=x",
            "mask=1,2",
            "softcap=soft",
            "alibi",
            "relative-bias=-1",
        ] {
            assert!(Problem::new(Dims::self_attention(1, 1, 2, 2)).add_term(text).is_err(), "{text}");
        }
        let mut twice = Problem::new(Dims::self_attention(1, 1, 2, 2)).aligned(Alignment::TopLeft).causal();
        assert!(twice.add_term("causal=bottom-right").is_err(), "two alignments");
    }

    #[test]
    fn wgsl_defines_what_the_list_says() {
        for term in &TERMS {
            let hooks = ["interval", "visible", "score", "slope"].map(|hook| term.defines(hook));
            let expected = [term.interval.is_some(), term.mask.is_some(), term.interval.is_none() && term.mask.is_none()];
            assert_eq!(hooks[..3], expected, "{}", term.name);
            assert_eq!(term.wgsl.0, format!("shaders/terms/{}.wgsl", term.name));
        }
    }
}
