//! Tables of the user's terms that have an owner, and the places of their gradients in one vector.

use std::ops::Range;

use crate::custom::program::Field;
use crate::custom::{Owner, Strides, TableGradient};
use crate::error::{Error, Result};
use crate::problem::{Alignment, Problem};

/// Table that has a gradient.
#[derive(Clone, Debug)]
pub(crate) struct OwnedTable<'a> {
    pub(crate) name: &'a str,
    /// Index of its term.
    pub(crate) term: usize,
    /// Index among all tables of the problem.
    pub(crate) table: usize,
    pub(crate) gradient: &'a TableGradient,
    /// Places of its elements in the vector of all gradients.
    pub(crate) range: Range<usize>,
}

impl Problem {
    /// Tables that have an owner, in order.
    pub(crate) fn owned_tables(&self) -> impl Iterator<Item = OwnedTable<'_>> {
        let (mut first_table, mut end) = (0, 0);
        self.user_terms.iter().enumerate().flat_map(move |(term, user)| {
            let tables: Vec<_> = user.tables().collect();
            let owned = user.functions().gradients.iter().map(|gradient| {
                let table = tables[gradient.table as usize];
                let range = end..end + table.len;
                end = range.end;
                OwnedTable { name: table.name, term, table: first_table + gradient.table as usize, gradient, range }
            });
            let owned: Vec<_> = owned.collect();
            first_table += tables.len();
            owned
        })
    }

    /// Number of elements of all tables that have an owner: of [`crate::Gradients::term_tables`].
    pub fn d_term_tables_len(&self) -> usize {
        self.owned_tables().last().map_or(0, |table| table.range.end)
    }

    /// Part of [`crate::Gradients::term_tables`] that is the gradient of one table.
    pub fn d_term_table<'g>(&self, gradients: &'g [f32], name: &str) -> Result<&'g [f32]> {
        let Some(table) = self.owned_tables().find(|table| table.name == name) else {
            return Err(no_owner(name));
        };
        gradients.get(table.range.clone()).ok_or_else(|| {
            let why = format!("has {} elements, the problem's tables have {}", gradients.len(), self.d_term_tables_len());
            Error::invalid("term_tables", why)
        })
    }

    /// Strides of a table that is owned by pairs.
    pub(crate) fn strides_of(&self, table: &OwnedTable<'_>) -> Option<Strides> {
        let (d, v) = (&self.dims, &self.visibility);
        let axis = |axis: usize, start: i64| {
            let mut axes = [0; 4];
            axes[axis] = 1;
            Some(Strides { start, axes })
        };
        let constant = |x: usize| Some(Strides { start: x as i64, axes: [0; 4] });
        let lengths_vary = self.varlen.is_some() || v.kv_lengths;
        let offset = match v.alignment {
            None | Some(Alignment::TopLeft) => Some(0),
            Some(Alignment::Offset(offset)) => Some(offset.into()),
            Some(Alignment::BottomRight) => (!lengths_vary).then_some(d.seq_len_kv as i64 - d.seq_len_q as i64),
        };
        table.gradient.strides([d.batch, d.num_heads, d.seq_len_q, d.seq_len_kv], table.range.len(), |field| match field {
            Field::Batch => axis(0, 0),
            Field::Head => axis(1, 0),
            Field::KvHead => axis(1, 0).filter(|_| d.group() == 1),
            Field::Row => axis(2, 0),
            Field::Position => axis(2, offset?),
            Field::Key | Field::KeyPosition => axis(3, 0),
            Field::LenQ => constant(d.seq_len_q).filter(|_| self.varlen.is_none()),
            Field::LenKv => constant(d.seq_len_kv).filter(|_| !lengths_vary),
        })
    }

    /// Refuses gradients of tables that this problem does not have, or cannot have.
    pub(super) fn check_owned_tables(&self) -> Result<()> {
        if self.owned_tables().next().is_none() {
            return Err(match self.user_tables().next() {
                Some(table) => no_owner(table.name),
                None => Error::invalid("term_tables", "its gradient is wanted, but the user's terms have no tables"),
            });
        }
        for table in self.owned_tables().filter(|table| table.gradient.owner == Owner::Pair) {
            if self.strides_of(&table).is_none() {
                let what = format!(
                    "the gradient of table `{}` by Owner::Pair: for these sizes its index is no sum of batch, head, row and key, \
                     each times a constant, that stays inside of its {} elements and has others for other pairs",
                    table.name,
                    table.range.len()
                );
                let remedy = "index it like an additive bias, as in `(at.head * ROWS + at.row) * KEYS + at.key`, or declare another owner";
                return Err(Error::unsupported(what, remedy));
            }
        }
        Ok(())
    }
}

fn no_owner(name: &str) -> Error {
    let why = format!(
        "table `{name}` has no gradient, because no owner sums it; declare it as in Table::f32(\"{name}\", len).owner(Owner::Head)"
    );
    Error::invalid("term_tables", why)
}
