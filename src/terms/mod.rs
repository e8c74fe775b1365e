//! Terms: everything that masks a (row, key) pair or changes its score.
//!
//! A term is one WGSL file, one Rust file and one row of [`TERMS`], beside a field of the problem. The variant key, the params, the WGSL that joins
//! the terms, the CPU path, tuning classes, the generator of test problems, its shrinker, and the words of the command
//! line and of benchmarks follow from the list. The oracle never sees it. See docs/guide.md, "Adding a term".

mod alibi;
mod bias;
mod block_causal;
mod block_list;
mod causal;
mod chunk;
mod mask;
mod relative_bias;
mod segments;
mod softcap;
mod term;
mod tile_list;
mod window;

use std::ops::Range;

pub(crate) use block_list::TileBits;
use term::TermText;
pub(crate) use term::{RowAt, Status, Term, TermTensor, TileAt};

use crate::error::{Error, Result};
use crate::problem::Problem;

/// All terms. Scores change in this order; a term's index is its bit in [`TermSet`] and its place in the params.
pub(crate) const TERMS: [Term; 12] = Term::in_this_build([
    causal::TERM,
    window::TERM,
    chunk::TERM,
    block_causal::TERM,
    segments::TERM,
    block_list::TERM,
    mask::TERM,
    softcap::TERM,
    bias::TERM,
    alibi::TERM,
    relative_bias::TERM,
    softcap::AFTER_BIASES,
]);

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

    /// Returns the terms that mask pairs.
    pub(crate) fn visible() -> Self {
        Self::those(|term| term.mask.is_some())
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
        self.terms().any(|term| term.uses_position) || self.user_terms.iter().any(|term| term.uses_position())
    }

    /// Checks the problem for contradictions. Every computation calls it first.
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        self.check_terms()
    }

    /// Checks the parameters of every term.
    fn check_terms(&self) -> Result<()> {
        if self.uses_position() && self.visibility.alignment.is_none() {
            let users = self.user_terms.iter().filter(|term| term.uses_position()).map(|_| "a user's term");
            let counting: Vec<&str> = self.terms().filter(|term| term.uses_position).map(|term| term.text.word).chain(users).collect();
            return Err(Error::invalid(
                "alignment",
                format!("{} counts from the row's position: say TopLeft, BottomRight or Offset", counting.join(", ")),
            ));
        }
        self.check_user_terms()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::Random;
    use crate::problem::{Alignment, Dims, Varlen, Visibility};

    #[test]
    fn intervals() {
        let interval = |visibility: Visibility, position: i64, prefix: usize| {
            let problem = Problem { visibility, ..Problem::new(Dims::self_attention(1, 1, 8, 8)) };
            problem.interval(TermSet::of(&problem), RowAt { position, prefix, ..RowAt::default() }, 8)
        };
        let open = Visibility::default();
        assert_eq!(interval(open, 3, 0), 0..8);
        let causal = Visibility { causal: true, ..open };
        assert_eq!(interval(causal, 3, 0), 0..4);
        assert_eq!(interval(causal, -1, 0), 0..0);
        assert_eq!(interval(causal, 3, 6), 0..6);
        assert_eq!(interval(causal, 20, 0), 0..8);
        let window = Visibility { window_left: Some(1), window_right: Some(2), ..open };
        assert_eq!(interval(window, 3, 0), 2..6);
        assert_eq!(interval(window, -5, 0), 0..0);
        assert!(interval(window, 30, 0).is_empty());
        let all = Visibility { chunk: Some(u32::MAX), block_causal: Some(u32::MAX), window_left: Some(1), window_right: Some(1), ..causal };
        assert!([i64::MIN, i64::MAX].iter().all(|&position| interval(all, position, usize::MAX >> 1).is_empty()));
        let chunk = Visibility { chunk: Some(3), ..open };
        assert_eq!([0, 2, 3, 7, 8].map(|position| interval(chunk, position, 0)), [0..3, 0..3, 3..6, 6..8, 6..8]);
        assert!(interval(chunk, -1, 0).is_empty());
        let block = Visibility { block_causal: Some(3), ..open };
        assert_eq!([-1, 0, 2, 3, 7].map(|position| interval(block, position, 0)), [0..0, 0..3, 0..3, 0..6, 0..8]);
    }

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
                let mut without = drawn.clone();
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
            "block-list=0,1,1,1",
            "block-list=8,8,1",
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
            let hooks = ["interval", "visible", "score", "status", "slope"].map(|hook| term.defines(hook));
            let scores = term.interval.is_none() && term.mask.is_none();
            let expected = [term.interval.is_some(), term.mask.is_some(), scores, term.status.is_some()];
            assert_eq!(hooks[..4], expected, "{}", term.name);
            assert_eq!(term.wgsl.0, format!("shaders/terms/{}.wgsl", term.name));
        }
    }
}
