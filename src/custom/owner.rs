//! Owners of tables: who adds to an element's gradient, and the proof that no other does.
//!
//! A gradient is summed where its pairs are: along rows, along keys, along diagonals. The index of a table may change
//! only between these lines. Its program is followed in integers: by how much each operation changes when the pair moves
//! one step along a line. What changes by a constant is known; the result must not change at all.

#[cfg(test)]
mod tests;

use super::builder::Builder;
use super::derive::{self, Seed};
use super::program::{Binary, Field, Id, Op, Program, Scalar, Unary};

/// Who adds to an element of a table: what the index at which `score` reads the table may depend on, besides constants,
/// other tables and lengths.
///
/// The gradient of a table is computed for owners alone: each element is summed by one owner, in a fixed order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// One element, whatever the pair: `gain[0]`.
    Scalar,
    /// Batch and head: `rates[at.head]`.
    Head,
    /// Batch, head, and the distance of row and key: `values[at.head * 32 + bucket(at.position - at.key)]`.
    Distance,
    /// Batch, head and row: `gates[at.row]`.
    Row,
    /// Batch, head and key: `gates[at.key]`.
    Key,
    /// All of them, each times a constant, so that each element has its own pairs, as an additive bias has:
    /// `biases[at.row * 64 + at.key]`. The index must stay inside the table.
    Pair,
}

/// Gradient of a table that has an owner.
#[derive(Clone, Debug)]
pub(crate) struct TableGradient {
    /// Index among the tables of the term.
    pub(crate) table: u32,
    pub(crate) owner: Owner,
    /// Element that a pair reads, as u32 inside the table.
    pub(crate) index: Program,
    /// Derivative of the score after the term by this element.
    pub(crate) slope: Program,
}

/// Step of a pair along a line: the change of each field, `None` if it may be any.
type Move = fn(Field) -> Option<u32>;

const ALONG_KEYS: Move = |field| Some(u32::from(matches!(field, Field::Key | Field::KeyPosition)));
const ALONG_ROWS: Move = |field| Some(u32::from(matches!(field, Field::Row | Field::Position)));
const ALONG_DIAGONALS: Move = |field| Some(u32::from(matches!(field, Field::Row | Field::Position | Field::Key | Field::KeyPosition)));
const ANYWHERE: Move = |_| None;
const NOWHERE: Move = |_| Some(0);

impl Owner {
    /// All owners, those of fewer elements first.
    pub const ALL: [Self; 6] = [Self::Scalar, Self::Head, Self::Row, Self::Key, Self::Distance, Self::Pair];

    /// Steps that must not change the index, and what they move.
    const fn moves(self) -> &'static [(Move, &'static str)] {
        match self {
            Self::Scalar => &[(ANYWHERE, "pair")],
            Self::Head => &[(ALONG_KEYS, "key"), (ALONG_ROWS, "row")],
            Self::Distance => &[(ALONG_DIAGONALS, "row and the key, not with their difference alone")],
            Self::Row => &[(ALONG_KEYS, "key")],
            Self::Key => &[(ALONG_ROWS, "row")],
            Self::Pair => &[(NOWHERE, "score")],
        }
    }
}

/// Returns the gradient of a table, or the place and the reason for which it has none.
pub(super) fn gradient(
    table: u32,
    owner: Owner,
    score: Option<&Program>,
    visible: Option<&Program>,
) -> Result<TableGradient, (u32, String)> {
    let load = |program: &Program| program.nodes.iter().position(|node| matches!(node.op, Op::Load(other, _) if other == table));
    if let Some((program, at)) = visible.and_then(|program| Some((program, load(program)?))) {
        return Err((program.nodes[at].place, "it is read in `visible`, which has no derivative".into()));
    }
    let Some((score, at)) = score.and_then(|program| Some((program, load(program)?))) else {
        return Err((0, "the result of `score` does not depend on it".into()));
    };
    let Op::Load(_, index) = score.nodes[at].op else { unreachable!("it is a load") };
    if let Some(other) = score.nodes[at + 1..].iter().find(|node| matches!(node.op, Op::Load(other, _) if other == table)) {
        return Err((other.place, "it is read at a second index; one index must do, or two tables".into()));
    }
    for &(step, what) in owner.moves() {
        if let Err(place) = unchanged(score, index, step) {
            return Err((place, format!("its index changes with the {what}")));
        }
    }
    let too_long = || (score.nodes[at].place, "its index is too long".into());
    Ok(TableGradient {
        table,
        owner,
        index: clamped(score, table, index).ok_or_else(too_long)?,
        slope: derive::derive(score, Seed::Table(table))?,
    })
}

/// Checks that a step leaves an integer as it is; else returns the place where it changes.
fn unchanged(program: &Program, id: Id, step: Move) -> Result<(), u32> {
    let mut changes: Vec<Option<u32>> = Vec::with_capacity(id as usize + 1);
    for node in &program.nodes[..=id as usize] {
        let change = |id: Id| changes[id as usize];
        let is_integer = |id: Id| matches!(program.nodes[id as usize].ty, Scalar::I32 | Scalar::U32);
        let constant = |id: Id| match program.nodes[id as usize].op {
            Op::Constant(bits) => Some(bits),
            _ => None,
        };
        // Integers wrap, here as there.
        let known = match node.op {
            Op::Pair(field) => step(field),
            Op::Score | Op::ScoreAfter => None,
            Op::Binary(op @ (Binary::Add | Binary::Sub), a, b) if is_integer(a) => {
                let op = if op == Binary::Add { u32::wrapping_add } else { u32::wrapping_sub };
                change(a).zip(change(b)).map(|(a, b)| op(a, b))
            }
            Op::Binary(Binary::Mul, a, b) if is_integer(a) && (constant(a).is_some() || constant(b).is_some()) => {
                let (factor, other) = if let Some(factor) = constant(a) { (factor, b) } else { (constant(b).unwrap_or(0), a) };
                change(other).map(|other| factor.wrapping_mul(other))
            }
            Op::Unary(Unary::Neg, a) if is_integer(a) => change(a).map(u32::wrapping_neg),
            Op::Convert(a) | Op::Bitcast(a) if is_integer(a) && node.ty != Scalar::F32 && node.ty != Scalar::Bool => change(a),
            op => op.operands().all(|operand| change(operand) == Some(0)).then_some(0),
        };
        changes.push(known);
    }
    match changes[id as usize] {
        Some(0) => Ok(()),
        _ => Err(program.nodes[changing(program, &changes, id)].place),
    }
}

/// First operation on the way to the result whose change is no constant.
fn changing(program: &Program, changes: &[Option<u32>], id: Id) -> usize {
    let mut at = id;
    while let Some(operand) = program.nodes[at as usize].op.operands().find(|&operand| changes[operand as usize].is_none()) {
        at = operand;
    }
    at as usize
}

/// Program of an index that is clamped into the table.
fn clamped(score: &Program, table: u32, index: Id) -> Option<Program> {
    let mut builder = Builder::of(score);
    let mut index = index;
    if builder.ty(index) == Scalar::I32 {
        let zero = builder.constant(Scalar::I32, 0);
        let above = builder.binary(Binary::Max, index, zero);
        index = builder.push(Op::Convert(above), Scalar::U32);
    }
    let (length, one) = (builder.push(Op::Length(table), Scalar::U32), builder.constant(Scalar::U32, 1));
    let last = builder.binary(Binary::Sub, length, one);
    let index = builder.binary(Binary::Min, index, last);
    builder.finish(index)
}

/// Place of the element that a pair reads: `start`, plus each axis of batch, head, row and key times its stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strides {
    pub(crate) start: i64,
    pub(crate) axes: [i64; 4],
}

impl Strides {
    const fn constant(start: i64) -> Self {
        Self { start, axes: [0; 4] }
    }

    fn combined(self, other: Self, factor: i64) -> Option<Self> {
        let sum = |a: i64, b: i64| a.checked_add(b.checked_mul(factor)?);
        let mut axes = [0; 4];
        for (to, (a, b)) in axes.iter_mut().zip(self.axes.into_iter().zip(other.axes)) {
            *to = sum(a, b)?;
        }
        Some(Self { start: sum(self.start, other.start)?, axes })
    }

    /// Least and greatest place, for axes of these lengths.
    fn range(self, extents: [i64; 4]) -> [i64; 2] {
        let steps = || self.axes.iter().zip(extents).map(|(stride, extent)| stride.saturating_mul((extent - 1).max(0)));
        [self.start.saturating_add(steps().filter(|&x| x < 0).sum()), self.start.saturating_add(steps().filter(|&x| x > 0).sum())]
    }

    /// True if places with other coordinates along axes of these lengths are others.
    fn are_apart(self, extents: [i64; 4]) -> bool {
        let mut axes: Vec<_> =
            self.axes.into_iter().map(i64::abs).zip(extents).filter(|&(stride, extent)| stride != 0 && extent > 1).collect();
        axes.sort_unstable();
        let mut reach = 0i64;
        axes.into_iter().all(|(stride, extent)| {
            let is_apart = stride > reach;
            reach = reach.saturating_add(stride.saturating_mul(extent - 1));
            is_apart
        })
    }
}

impl TableGradient {
    /// Strides of a table that is owned by pairs, for axes of these lengths; `field` has those that are the same for all
    /// items, or a multiple of an axis. `None` if the index is no such sum, may leave the table, or is one element's for
    /// different pairs.
    pub(crate) fn strides(&self, extents: [usize; 4], len: usize, field: impl Fn(Field) -> Option<Strides>) -> Option<Strides> {
        let extents = extents.map(|extent| extent as i64);
        let mut all: Vec<Option<Strides>> = Vec::with_capacity(self.index.nodes.len());
        for node in &self.index.nodes {
            let of = |id: Id| all[id as usize];
            let least_of = |a: Strides, b: Strides, sign: i64| {
                let ([a_low, a_high], [b_low, b_high]) = (a.range(extents), b.range(extents));
                match sign {
                    1 if a_high <= b_low => Some(a),
                    1 if b_high <= a_low => Some(b),
                    -1 if a_low >= b_high => Some(a),
                    -1 if b_low >= a_high => Some(b),
                    _ => None,
                }
            };
            let sum = match node.op {
                Op::Pair(which) => field(which),
                Op::Constant(bits) if node.ty == Scalar::I32 => Some(Strides::constant((bits as i32).into())),
                Op::Constant(bits) if node.ty == Scalar::U32 => Some(Strides::constant(bits.into())),
                Op::Length(table) if table == self.table => Some(Strides::constant(len as i64)),
                Op::Binary(op, a, b) => of(a).zip(of(b)).and_then(|(a, b)| match op {
                    Binary::Add => a.combined(b, 1),
                    Binary::Sub => a.combined(b, -1),
                    Binary::Mul if a.axes == [0; 4] => Strides::constant(0).combined(b, a.start),
                    Binary::Mul if b.axes == [0; 4] => Strides::constant(0).combined(a, b.start),
                    Binary::Min => least_of(a, b, 1),
                    Binary::Max => least_of(a, b, -1),
                    _ => None,
                }),
                Op::Convert(a) | Op::Bitcast(a) => of(a),
                _ => None,
            };
            let [low, high] = if node.ty == Scalar::U32 { [0, u32::MAX.into()] } else { [i32::MIN.into(), i32::MAX.into()] };
            let fits = |sum: &Strides| sum.range(extents)[0] >= low && sum.range(extents)[1] <= high;
            all.push(sum.filter(fits).filter(|_| matches!(node.ty, Scalar::I32 | Scalar::U32)));
        }
        let strides = all.pop().flatten()?;
        (strides.are_apart(extents) && strides.range(extents)[0] >= 0 && strides.range(extents)[1] < len as i64).then_some(strides)
    }
}
