//! Tokens that a cache with a window keeps, and problems that see no others.

use std::ops::Range;

use crate::custom::Term;
use crate::error::{Error, Result};
use crate::problem::{Alignment, Problem};

/// At least the largest distance between two positions in a shader.
const OPEN: u32 = (1 << 30) - 1;

/// Tokens of each sequence that a cache keeps. By default all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Retention {
    /// Distance before a row's position beyond which its keys are masked.
    pub(super) window_left: Option<u32>,
    /// Number of first tokens that every row sees.
    pub(super) first_tokens: u32,
}

impl Retention {
    /// Pages without a token that a row at `position` or later sees:
    /// `ceil(first_tokens / page_size) .. floor((position - window_left) / page_size)`.
    pub(super) fn unseen(&self, page_size: usize, position: usize) -> Range<usize> {
        let Some(left) = self.window_left else { return 0..0 };
        let start = (self.first_tokens as usize).div_ceil(page_size);
        start..start.max(position.saturating_sub(left as usize) / page_size)
    }

    /// Masks what the cache does not keep.
    pub(super) fn masked(&self, problem: Problem) -> Result<Problem> {
        let Some(left) = self.window_left else { return Ok(problem) };
        let problem = problem.aligned(Alignment::BottomRight);
        if self.first_tokens == 0 { Ok(problem.window(Some(left), None)) } else { Ok(problem.with_term(self.term(left)?)) }
    }

    /// Refuses a problem that may see what the cache does not keep.
    pub(super) fn check(&self, problem: &Problem) -> Result<()> {
        let Some(left) = self.window_left else { return Ok(()) };
        let visibility = &problem.visibility;
        if visibility.alignment != Some(Alignment::BottomRight) {
            let why = format!("is {:?}, but the window of a cache counts from its last key: say BottomRight", visibility.alignment);
            return Err(Error::invalid("alignment", why));
        }
        let within = visibility.window_left.is_some_and(|asked| asked <= left);
        if within || (self.first_tokens > 0 && problem.user_terms.contains(&self.term(left)?)) {
            return Ok(());
        }
        let first = self.first_tokens;
        let why = format!(
            "is {:?}: rows would see more than the {left} tokens before them and the first {first}, which the cache keeps; begin with \
             the cache's own `problem`",
            visibility.window_left
        );
        Err(Error::invalid("window_left", why))
    }

    /// Term that shows the first tokens and the window. The window alone would hide the first tokens.
    fn term(&self, left: u32) -> Result<Term> {
        let [first, left] = [self.first_tokens, left].map(|tokens| tokens.min(OPEN));
        Term::wgsl(&format!("fn visible(at: Pair) -> bool {{ return at.key < {first} || at.position - at.key <= {left}; }}"))
    }
}
