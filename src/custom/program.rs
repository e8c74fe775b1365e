//! Straight-line programs, which users' functions become: scalar operations, one after the other, without control flow.
//!
//! Every operation has a result for every operand: indices are clamped, divisions by 0 and shifts past the last bit
//! have the results that WGSL gives them. So a program can be printed as WGSL, derived, and evaluated for many pairs at
//! once, and none of its branches need be skipped.

/// Type of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scalar {
    Bool,
    I32,
    U32,
    F32,
}

/// Index of an operation, and its result.
pub(crate) type Id = u32;

/// Field of the pair, in the order of the WGSL struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    Batch,
    Head,
    KvHead,
    Row,
    Key,
    Position,
    KeyPosition,
    LenQ,
    LenKv,
}

impl Field {
    pub(crate) const ALL: [Self; 9] =
        [Self::Batch, Self::Head, Self::KvHead, Self::Row, Self::Key, Self::Position, Self::KeyPosition, Self::LenQ, Self::LenKv];

    /// Name in WGSL.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Head => "head",
            Self::KvHead => "kv_head",
            Self::Row => "row",
            Self::Key => "key",
            Self::Position => "position",
            Self::KeyPosition => "key_position",
            Self::LenQ => "len_q",
            Self::LenKv => "len_kv",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unary {
    Neg,
    Not,
    Abs,
    Floor,
    Ceil,
    Round,
    Trunc,
    Exp,
    Exp2,
    Log,
    Log2,
    Sqrt,
    InverseSqrt,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Tanh,
    Asinh,
    Acosh,
    Atanh,
    CountOneBits,
    CountLeadingZeros,
    CountTrailingZeros,
    ReverseBits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Min,
    Max,
    Pow,
    Atan2,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    Equal,
    NotEqual,
    Less,
    LessEqual,
}

impl Binary {
    pub(crate) const fn compares(self) -> bool {
        matches!(self, Self::Equal | Self::NotEqual | Self::Less | Self::LessEqual)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// Score before the term.
    Score,
    /// Score after the term; only slopes read it.
    ScoreAfter,
    Pair(Field),
    /// Least value of a field in the tile, or its greatest; only `status` reads it.
    Tile(Field, bool),
    /// Constant, by its bits; a bool is 0 or 1.
    Constant(u32),
    /// Number of elements of a table, by its index.
    Length(u32),
    /// Element of a table, by its index, at an i32 or u32 that is clamped into the table.
    Load(u32, Id),
    Unary(Unary, Id),
    Binary(Binary, Id, Id),
    /// Condition, result if it is true, result if it is false.
    Select(Id, Id, Id),
    /// Conversion by value, saturating from f32 to integers.
    Convert(Id),
    Bitcast(Id),
}

impl Op {
    /// Operands, in order.
    pub(crate) fn operands(self) -> impl Iterator<Item = Id> {
        let (all, count) = match self {
            Self::Score | Self::ScoreAfter | Self::Pair(_) | Self::Tile(..) | Self::Constant(_) | Self::Length(_) => ([0; 3], 0),
            Self::Load(_, a) | Self::Unary(_, a) | Self::Convert(a) | Self::Bitcast(a) => ([a; 3], 1),
            Self::Binary(_, a, b) => ([a, b, a], 2),
            Self::Select(a, b, c) => ([a, b, c], 3),
        };
        all.into_iter().take(count)
    }
}

/// Marks the last of `len` operations and all that it depends on.
pub(super) fn needed<I: Iterator<Item = Id>>(len: usize, operands: impl Fn(usize) -> I) -> Vec<bool> {
    let mut needed = vec![false; len];
    needed.iter_mut().rev().take(1).for_each(|last| *last = true);
    for id in (0..len).rev() {
        if needed[id] {
            operands(id).for_each(|operand| needed[operand as usize] = true);
        }
    }
    needed
}

/// Operation with the type of its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) op: Op,
    pub(crate) ty: Scalar,
    /// Place in the user's text, in bytes.
    pub(crate) place: u32,
}

/// Program with one result: the last operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) nodes: Vec<Node>,
}

impl Program {
    /// True if an operation satisfies `wanted`.
    pub(crate) fn has(&self, wanted: impl Fn(Op) -> bool) -> bool {
        self.nodes.iter().any(|node| wanted(node.op))
    }

    /// True if the program reads where the row stands among the keys.
    pub(crate) fn uses_position(&self) -> bool {
        self.has(|op| op == Op::Pair(Field::Position))
    }

    /// True if the program reads the head, of the query or of the key.
    pub(crate) fn uses_head(&self) -> bool {
        self.has(|op| matches!(op, Op::Pair(Field::Head | Field::KvHead)))
    }

    /// Result, if it is the same for every pair.
    pub(crate) fn constant(&self) -> Option<u32> {
        match self.nodes.last()?.op {
            Op::Constant(bits) => Some(bits),
            _ => None,
        }
    }
}
