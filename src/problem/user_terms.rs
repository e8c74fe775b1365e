//! Terms that users write, as a problem has them: their tables and the checks of them.

use std::ops::Range;

use crate::custom::{Table, TableType};
use crate::error::{Error, Result};
use crate::problem::Problem;

/// Most tables of all user's terms of a problem, whose places and lengths are in the params of a kernel.
pub(crate) const MOST_TABLES: usize = 8;

/// Data of a table of a user's term.
#[derive(Clone, Copy, Debug)]
pub enum TableData<'a> {
    /// `array<f32>`.
    F32(&'a [f32]),
    /// `array<i32>`.
    I32(&'a [i32]),
    /// `array<u32>`.
    U32(&'a [u32]),
}

impl<'a> From<&'a [f32]> for TableData<'a> {
    fn from(data: &'a [f32]) -> Self {
        Self::F32(data)
    }
}

impl<'a> From<&'a [i32]> for TableData<'a> {
    fn from(data: &'a [i32]) -> Self {
        Self::I32(data)
    }
}

impl<'a> From<&'a [u32]> for TableData<'a> {
    fn from(data: &'a [u32]) -> Self {
        Self::U32(data)
    }
}

impl TableData<'_> {
    /// Table of this type and length, by its name in a text.
    pub fn table<'n>(&self, name: &'n str) -> Table<'n> {
        Table { name, ty: self.ty(), len: self.words().len(), is_sorted: false, owner: None }
    }

    fn words(&self) -> &[u32] {
        match self {
            Self::F32(data) => bytemuck::cast_slice(data),
            Self::I32(data) => bytemuck::cast_slice(data),
            Self::U32(data) => data,
        }
    }

    const fn ty(&self) -> TableType {
        match self {
            Self::F32(_) => TableType::F32,
            Self::I32(_) => TableType::I32,
            Self::U32(_) => TableType::U32,
        }
    }
}

impl Problem {
    /// Joins the data of the tables of the user's terms, by their names, for [`crate::Inputs::term_tables`].
    pub fn term_tables(&self, data: &[(&str, TableData<'_>)]) -> Result<Vec<u32>> {
        if let Some((name, _)) = data.iter().find(|&&(name, _)| self.user_tables().all(|table| table.name != name)) {
            return Err(Error::invalid("term_tables", format!("no term has a table `{name}`")));
        }
        let mut words = Vec::new();
        for Table { name, ty, len, .. } in self.user_tables() {
            let Some((_, data)) = data.iter().find(|&&(other, _)| other == name) else {
                return Err(Error::invalid("term_tables", format!("table `{name}` is missing")));
            };
            if data.ty() != ty || data.words().len() != len {
                let why = format!("table `{name}` has {} elements of {:?}, the term reads {len} of {ty:?}", data.words().len(), data.ty());
                return Err(Error::invalid("term_tables", why));
            }
            words.extend_from_slice(data.words());
        }
        self.check_sorted(&words)?;
        Ok(words)
    }

    /// Refuses the data of tables that are declared sorted and are not.
    pub(super) fn check_sorted(&self, words: &[u32]) -> Result<()> {
        let tables = self.user_tables().zip(self.user_table_ranges()).filter(|(table, _)| table.is_sorted);
        for (Table { name, ty, .. }, range) in tables {
            let number = |word: u32| if ty == TableType::U32 { i64::from(word) } else { i64::from(word as i32) };
            let elements = &words[range];
            if let Some(at) = elements.windows(2).position(|pair| number(pair[0]) > number(pair[1])) {
                let (before, after) = (number(elements[at]), number(elements[at + 1]));
                let why = format!("table `{name}` is declared sorted, but element {} is {after}, after {before}", at + 1);
                return Err(Error::invalid("term_tables", why));
            }
        }
        Ok(())
    }

    /// True if a user's term masks pairs or changes scores or their derivatives.
    pub(crate) fn has_user_terms(&self) -> bool {
        self.user_terms.iter().any(|term| !term.functions().is_identity())
    }

    /// Tables of all user's terms.
    pub(crate) fn user_tables(&self) -> impl Iterator<Item = Table<'_>> {
        self.user_terms.iter().flat_map(|term| term.tables())
    }

    /// Words of all tables of the user's terms; `usize::MAX` on overflow.
    pub(super) fn term_table_words(&self) -> usize {
        self.user_tables().fold(0, |sum, table| sum.saturating_add(table.len))
    }

    /// Place of each table in [`crate::Inputs::term_tables`].
    pub(crate) fn user_table_ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.user_tables().scan(0, |end, table| {
            let start = *end;
            *end += table.len;
            Some(start..*end)
        })
    }

    /// Tables of the user's term `index`, of all of them in `words`.
    pub(crate) fn tables_of<'w>(&self, index: usize, words: &'w [u32]) -> Vec<&'w [u32]> {
        let before = self.user_terms[..index].iter().map(|term| term.tables().count()).sum();
        self.user_table_ranges().skip(before).take(self.user_terms[index].tables().count()).map(|range| &words[range]).collect()
    }

    /// Checks that the tables are few and have different names.
    pub(crate) fn check_user_terms(&self) -> Result<()> {
        let names: Vec<&str> = self.user_tables().map(|table| table.name).collect();
        if names.len() > MOST_TABLES {
            let why = format!("they have {} tables, at most {MOST_TABLES} are possible; join some into one", names.len());
            return Err(Error::invalid("user_terms", why));
        }
        match names.iter().enumerate().find(|&(at, name)| names[..at].contains(name)) {
            Some((_, name)) => Err(Error::invalid("user_terms", format!("two tables have the name `{name}`"))),
            None => Ok(()),
        }
    }
}
