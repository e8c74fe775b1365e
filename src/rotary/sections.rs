//! Pairs that take their angle from one of three positions of a token (M-RoPE).

use crate::error::{Error, Result};

/// Sections of a head's pairs: each pair takes the position in time, height or width of its token. The three numbers are
/// those of pairs, in this order; their sum is that of all pairs. A token of text has three equal positions.
///
/// Wang et al., *Qwen2-VL*, arXiv:2409.12191; configurations call them `mrope_section`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sections {
    /// Pairs of time, then of height, then of width, as in Qwen2-VL and Qwen2.5-VL.
    Chunks([usize; 3]),
    /// Pairs 1, 4, 7, .. are of height and 2, 5, 8, .. of width, as many as there are, the others of time, as in Qwen3-VL.
    Interleaved([usize; 3]),
}

impl Sections {
    /// Numbers of pairs of time, height and width.
    pub const fn pairs(self) -> [usize; 3] {
        let (Self::Chunks(pairs) | Self::Interleaved(pairs)) = self;
        pairs
    }

    /// Coordinate from which a pair takes its position: 0 is time, 1 height, 2 width.
    pub const fn coordinate(self, pair: usize) -> usize {
        match self {
            Self::Chunks([time, height, _]) => (pair >= time) as usize + (pair >= time + height) as usize,
            Self::Interleaved([_, height, _]) if pair % 3 == 1 && pair < 3 * height => 1,
            Self::Interleaved([.., width]) if pair % 3 == 2 && pair < 3 * width => 2,
            Self::Interleaved(_) => 0,
        }
    }

    pub(super) fn check(self, pairs: usize) -> Result<()> {
        let [time, height, width] = self.pairs();
        let sum = time.checked_add(height).and_then(|sum| sum.checked_add(width));
        // Pair 3 height - 2 is the last of height, pair 3 width - 1 the last of width.
        let fits = matches!(self, Self::Chunks(_)) || (height <= (pairs + 1) / 3 && width <= pairs / 3);
        if sum != Some(pairs) || !fits {
            let why = format!("{self:?} are no parts of {pairs} pairs, interleaved ones about a third at most for height and for width");
            return Err(Error::invalid("sections", why));
        }
        Ok(())
    }
}
