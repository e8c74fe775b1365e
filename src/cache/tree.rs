//! Trees of drafted tokens, as speculative decoding verifies them in one step.

use crate::custom::{Table, Term};
use crate::error::{Error, Result};

/// Tree of the tokens that a draft model guessed, in the order in which they are appended: a parent before its children.
///
/// A row of the step sees every token before the tree, and of the tree its ancestors and itself: [`Self::term`] and
/// [`Self::words`]. Its position is that of its depth: [`Self::positions`]. Afterwards the accepted [`Self::path`] stays:
/// [`super::KvCache::keep`], [`crate::gpu::DeviceCache::keep`].
///
/// A step for `rows` tokens serves every tree of at most so many: the tree then takes the last rows, as new tokens do. What
/// it has in front is causal. A chain is plain causal attention.
///
/// ```
/// use wgpu_attention::cache::Tree;
///
/// // The last token of the text; two guesses of the next one; a guess after the second of them.
/// let tree = Tree::from_parents(&[None, Some(0), Some(0), Some(2)])?;
/// assert_eq!(tree.positions(100, 4)?, [100, 101, 101, 102]);
/// assert_eq!(tree.words(4)?, [0b0001, 0b0011, 0b0101, 0b1101]);
/// assert_eq!(tree.path(3)?, [0, 2, 3]);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    parents: Vec<Option<usize>>,
    depths: Vec<u32>,
}

impl Tree {
    /// Most tokens of a tree.
    pub const MOST: usize = 256;

    /// Makes a tree from the index of each token's parent. Tokens without one follow the text before the tree.
    ///
    /// Errors: no tokens, more than [`Self::MOST`], a parent that does not exist, a token that is its own ancestor, a parent
    /// after its child.
    pub fn from_parents(parents: &[Option<usize>]) -> Result<Self> {
        Error::check_sizes([("parents", parents.len())])?;
        check_rows(parents.len(), 0)?;
        let mut depths: Vec<u32> = Vec::new();
        for (row, &parent) in parents.iter().enumerate() {
            if let Some(parent) = parent.filter(|&parent| parent >= row) {
                let is_own = || std::iter::successors(Some(parent), |&at| *parents.get(at)?).take(parents.len()).any(|at| at == row);
                let why = match () {
                    () if parent >= parents.len() => format!("is {parent}, but there are {} tokens", parents.len()),
                    () if is_own() => "leads back to it: the token is its own ancestor".into(),
                    () => format!("is {parent}, which comes after it"),
                };
                return Err(Error::invalid("parents", format!("that of token {row} {why}")));
            }
            depths.push(parent.map_or(0, |parent| depths[parent] + 1));
        }
        Ok(Self { parents: parents.to_vec(), depths })
    }

    /// Parent of each token.
    pub fn parents(&self) -> &[Option<usize>] {
        &self.parents
    }

    /// Number of ancestors of each token.
    pub fn depths(&self) -> &[u32] {
        &self.depths
    }

    /// Positions of the rows of a step after `length` tokens, `length` + depth, for [`crate::gpu::DeviceRotary::at`] or
    /// [`crate::rotary::Rotary::apply_tokens`].
    ///
    /// Errors: fewer rows than tokens, more than [`Self::MOST`], positions that u32 cannot count.
    pub fn positions(&self, length: usize, rows: usize) -> Result<Vec<u32>> {
        let front = check_rows(rows, self.parents.len())?;
        let length = u32::try_from(length).ok().filter(|length| length.checked_add(Self::MOST as u32).is_some());
        let length = length.ok_or_else(|| Error::invalid("length", "is more than u32 counts with the tree"))?;
        let before = (0..front as u32).rev().map(|distance| length.saturating_sub(distance + 1));
        Ok(before.chain(self.depths.iter().map(|depth| length + depth)).collect())
    }

    /// Tokens of a step that each of its rows sees, `[rows, ceil(rows / 32)]`: bit `j % 32` of word `j / 32` is token j. One item
    /// of the table of [`Self::term`].
    ///
    /// Errors: fewer rows than tokens, more than [`Self::MOST`].
    pub fn words(&self, rows: usize) -> Result<Vec<u32>> {
        let front = check_rows(rows, self.parents.len())?;
        let width = rows.div_ceil(32);
        let mut words = vec![0u32; rows * width];
        for row in 0..rows {
            let parent = match row.checked_sub(front) {
                Some(token) => self.parents[token].map(|parent| front + parent).or(front.checked_sub(1)),
                None => row.checked_sub(1),
            };
            if let Some(parent) = parent {
                words.copy_within(parent * width..(parent + 1) * width, row * width);
            }
            words[row * width + row / 32] |= 1 << (row % 32);
        }
        Ok(words)
    }

    /// Tokens from one without a parent to `token`: the rows to keep once it is accepted. Errors: no such token.
    pub fn path(&self, token: usize) -> Result<Vec<usize>> {
        if token >= self.parents.len() {
            return Err(Error::invalid("token", format!("is {token}, but the tree has {}", self.parents.len())));
        }
        let mut path: Vec<usize> = std::iter::successors(Some(token), |&at| self.parents[at]).collect();
        path.reverse();
        Ok(path)
    }

    /// Mask of steps of `rows` tokens in each of `batch` items. Its table `tree` is the items' [`Self::words`], one after the
    /// other, which may change from step to step while the attention stays bound. It may stand beside a causal mask.
    ///
    /// Errors: no items or rows, more rows than [`Self::MOST`].
    pub fn term(batch: usize, rows: usize) -> Result<Term> {
        Error::check_sizes([("batch", batch), ("rows", rows)])?;
        check_rows(rows, 0)?;
        Term::with_tables(TEXT, &[Table::u32("tree", batch.saturating_mul(rows * rows.div_ceil(32)))])
    }
}

const TEXT: &str = "
fn visible(at: Pair) -> bool {
    let token = at.key - (at.len_kv - at.len_q);
    let words = (at.len_q + 31) / 32;
    let word = tree[(at.batch * at.len_q + at.row) * words + token / 32];
    return token < 0 || ((word >> u32(token % 32)) & 1u) != 0u;
}

fn status(at: Tile) -> u32 {
    return select(SOME, ALL, at.last_key < at.len_kv - at.len_q);
}";

/// Returns the number of rows in front of a tree.
fn check_rows(rows: usize, tokens: usize) -> Result<usize> {
    if rows > Tree::MOST {
        return Err(Error::limit("tokens of a tree", rows, Tree::MOST, "draft fewer at a time"));
    }
    rows.checked_sub(tokens).ok_or_else(|| Error::invalid("rows", format!("are {rows}, but the tree has {tokens} tokens")))
}
