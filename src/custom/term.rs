//! The public form of users' terms.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::functions::{Functions, TableType};
use super::owner::Owner;
use super::parse;
use super::program::Program;
use super::status::TileRule;
use crate::error::{Error, Result};

/// True if terms are read: the feature `terms`.
pub(crate) const ARE_READ: bool = cfg!(feature = "terms");

/// Term that a user writes in WGSL.
///
/// The text defines one or both of
///
/// ```wgsl
/// fn visible(at: Pair) -> bool            // false masks the pair
/// fn score(x: f32, at: Pair) -> f32       // the score after this term; -inf masks the pair
/// ```
///
/// and, if the derivative of `score` is not to be derived from it, `fn slope(x: f32, y: f32, at: Pair) -> f32`: d y / d x,
/// where y = `score(x, at)`. `at` has `batch`, `head`, `kv_head`, `row`, `key`, `position` (of the row among the keys),
/// `key_position`, `len_q` and `len_kv` (of the item), all i32. In caches and pages all of them are logical.
///
/// Kernels skip tiles of rows and keys without a visible pair, and do not test tiles that are visible as a whole. Which
/// tiles these are is derived from `visible` by interval arithmetic over its integers and their tables
/// ([`Table::sorted`]). A text may say more, if it defines `fn status(at: Tile) -> u32`: `NONE` (0), `SOME` (1) or
/// `ALL` (2) of the pairs of a tile are visible; any other number is `SOME`. `Tile` has `batch`, `kv_head`,
/// `first_head`, `last_head`, `first_row`, `last_row`, `first_key`, `last_key`, `first_position`, `last_position`,
/// `len_q` and `len_kv`, all i32; the last of a range is part of it. A wrong `status` masks pairs wrongly: checked engines
/// ([`crate::gpu::ShaderOptions::checked`]) and `verify` report it with its tile and a pair.
///
/// Helper functions, `const`, `let`, `var`, branches, and loops whose trips are known from constants are allowed. Every
/// function is pure. Tables are read by their names, like arrays; an index outside reads the nearest element. An integer
/// divided by 0 is itself, without a rest; a float out of an integer's range becomes the nearest one, NaN 0. A score that
/// is NaN stays NaN.
///
/// ```
/// use wgpu_attention::{Alignment, Dims, Problem, Table, Term};
///
/// let tail = Term::wgsl("fn visible(at: Pair) -> bool { return at.key <= at.position && at.position - at.key < 128; }")?;
/// let decay = Term::with_tables(
///     "fn score(x: f32, at: Pair) -> f32 { return x - rates[at.head] * abs(f32(at.position - at.key)); }",
///     &[Table::f32("rates", 8)],
/// )?;
/// let problem = Problem::new(Dims::self_attention(1, 8, 1024, 64)).aligned(Alignment::TopLeft).with_term(tail).with_term(decay);
/// # problem.check()
/// # ?;
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Term {
    functions: Arc<Functions>,
    /// Number of elements of each table.
    lengths: Vec<u32>,
    owners: Vec<Option<Owner>>,
}

/// Table that a user's term reads: its name in the text, its type and its number of elements. The data comes with
/// [`crate::Inputs::term_tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    /// Name in the text.
    pub name: &'a str,
    /// Type of its elements.
    pub ty: TableType,
    /// Number of elements, at least 1.
    pub len: usize,
    /// True if the elements, which are integers, never decrease; see [`Self::sorted`].
    pub is_sorted: bool,
    /// Owner of its elements, if it has a gradient ([`crate::WantGradients::term_tables`]).
    pub owner: Option<Owner>,
}

impl<'a> Table<'a> {
    /// Table of f32.
    pub const fn f32(name: &'a str, len: usize) -> Self {
        Self { name, ty: TableType::F32, len, is_sorted: false, owner: None }
    }

    /// Table of i32.
    pub const fn i32(name: &'a str, len: usize) -> Self {
        Self { name, ty: TableType::I32, len, is_sorted: false, owner: None }
    }

    /// Table of u32.
    pub const fn u32(name: &'a str, len: usize) -> Self {
        Self { name, ty: TableType::U32, len, is_sorted: false, owner: None }
    }

    /// Declares that the elements never decrease, so that the values at a range of indices are between those at its ends.
    /// Masks that compare such values, as `documents[at.row] == documents[at.key]`, then skip tiles of rows and keys
    /// without a test of each pair. Data from host memory is checked; in a device buffer it is the caller's word, and
    /// wrong order masks pairs wrongly. Tables of integers only.
    #[must_use]
    pub const fn sorted(self) -> Self {
        Self { is_sorted: true, ..self }
    }

    /// Declares who sums the elements of the table's gradient ([`crate::WantGradients::term_tables`]). `score` must read
    /// the table, at one index that changes with its owner alone, and `visible` must not: [`Term::with_tables`] checks it.
    #[must_use]
    pub const fn owner(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }
}

impl PartialEq for Term {
    fn eq(&self, other: &Self) -> bool {
        (&self.functions, &self.lengths, &self.owners) == (&other.functions, &other.lengths, &other.owners)
    }
}

impl Eq for Term {}

impl Hash for Term {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.functions, &self.lengths, &self.owners).hash(state);
    }
}

impl Term {
    /// Reads a term that needs no tables.
    pub fn wgsl(text: &str) -> Result<Self> {
        Self::with_tables(text, &[])
    }

    /// Reads a term that reads `tables`. Errors name the line and column of the text.
    pub fn with_tables(text: &str, tables: &[Table<'_>]) -> Result<Self> {
        for table in tables {
            if table.len == 0 || u32::try_from(table.len).is_err() {
                let why = format!("table `{}` has {} elements; it needs at least 1 and fewer than 2^32", table.name, table.len);
                return Err(Error::invalid("term", why));
            }
        }
        if let Some(table) = tables.iter().find(|table| table.is_sorted && table.ty == TableType::F32) {
            let why = format!("table `{}` has elements of f32; only tables of integers can be declared sorted", table.name);
            return Err(Error::invalid("term", why));
        }
        let named = tables.iter().map(|table| (table.name.to_string(), table.ty)).collect();
        let sorted = tables.iter().map(|table| table.is_sorted).collect();
        let owners: Vec<Option<Owner>> = tables.iter().map(|table| table.owner).collect();
        if !ARE_READ {
            return Err(Error::unsupported("users' terms in a build without the feature `terms`", "build with it"));
        }
        let functions = Arc::new(parse::functions(text, named, sorted, &owners)?);
        Ok(Self { functions, lengths: tables.iter().map(|table| table.len as u32).collect(), owners })
    }

    /// The text that the term was read from.
    pub fn text(&self) -> &str {
        &self.functions().text
    }

    /// Tables of the term.
    pub fn tables(&self) -> impl Iterator<Item = Table<'_>> {
        let all = self.functions().tables.iter().zip(&self.lengths).zip(&self.functions().sorted).zip(&self.owners);
        all.map(|((((name, ty), &len), &is_sorted), &owner)| Table { name, ty: *ty, len: len as usize, is_sorted, owner })
    }

    /// True if the text defines `score`.
    pub fn has_score(&self) -> bool {
        self.functions().function("score").is_some()
    }

    /// True if the text defines `status`.
    pub fn has_status(&self) -> bool {
        self.functions().function("status").is_some()
    }

    /// True if the text defines `visible`.
    pub fn has_visible(&self) -> bool {
        self.functions().function("visible").is_some()
    }

    pub(crate) fn functions(&self) -> &Arc<Functions> {
        // A build without terms can leave out all that follows.
        if !ARE_READ {
            unreachable!("there is no term");
        }
        &self.functions
    }

    /// True if a function reads the position of the row, or of those of a tile.
    pub(crate) fn uses_position(&self) -> bool {
        let Functions { visible, score, status, .. } = &**self.functions();
        visible.iter().chain(score).any(Program::uses_position) || status.as_ref().is_some_and(TileRule::uses_position)
    }

    /// True if a function reads the head, of the query or of the key.
    pub(crate) fn uses_head(&self) -> bool {
        let Functions { visible, score, .. } = &**self.functions();
        visible.iter().chain(score).chain(self.functions().slope()).any(Program::uses_head)
    }

    /// Refuses a term whose score has no derivative.
    pub(crate) fn check_slope(&self) -> Result<()> {
        match &self.functions().slope {
            Some(Err(why)) => Err(Error::unsupported(format!("gradients through a score function that {why}"), "define `slope`")),
            _ => Ok(()),
        }
    }
}
