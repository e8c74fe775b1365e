//! Derivative of a score function by its score or by an element of a table, by the forward mode: each operation gets the
//! derivative of its result.
//!
//! A branch is derived as it is taken. Steps (floor, comparisons, conversions to integers) have the derivative 0. Where
//! min and max meet, both count half, or the one that depends on the score not at all if the other is a bound; abs has
//! 0 at 0.

use super::builder::Builder;
use super::program::{Binary, Id, Op, Program, Scalar, Unary};

/// Variable by which a score function is derived.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Seed {
    Score,
    /// The element of a table that is read.
    Table(u32),
}

impl Seed {
    fn is(self, op: Op) -> bool {
        match (self, op) {
            (Self::Score, Op::Score) => true,
            (Self::Table(table), Op::Load(other, _)) => table == other,
            _ => false,
        }
    }
}

/// Returns the program of the derivative, or the operation that has none with the reason.
pub(super) fn derive(score: &Program, seed: Seed) -> Result<Program, (u32, String)> {
    let mut tangents = Tangents { builder: Builder::of(score), seed, all: Vec::with_capacity(score.nodes.len()) };
    for (id, node) in score.nodes.iter().enumerate() {
        tangents.builder.place = node.place;
        let tangent = tangents.of(id as Id).map_err(|why| (node.place, why))?;
        tangents.all.push(tangent);
    }
    let result = tangents.all.last().copied().flatten().unwrap_or_else(|| tangents.builder.f32(0.0));
    tangents.builder.finish(result).ok_or_else(|| (0, "its derivative is too long".into()))
}

/// Derivatives of the operations so far; `None` is 0.
struct Tangents {
    builder: Builder,
    seed: Seed,
    all: Vec<Option<Id>>,
}

impl Tangents {
    fn f32(&mut self, x: f32) -> Id {
        self.builder.f32(x)
    }

    fn bin(&mut self, op: Binary, a: Id, b: Id) -> Id {
        self.builder.binary(op, a, b)
    }

    fn mul(&mut self, a: Id, b: Id) -> Id {
        self.bin(Binary::Mul, a, b)
    }

    /// tangent * factor, where a factor may be infinite or NaN: 0 if the tangent is.
    fn chain(&mut self, tangent: Id, factor: Id) -> Id {
        let product = self.mul(tangent, factor);
        if self.builder.constant_of(tangent).is_some_and(|bits| bits != 0) {
            return product;
        }
        let zero = self.f32(0.0);
        let none = self.bin(Binary::Equal, tangent, zero);
        self.builder.select(none, zero, product)
    }

    /// Sum of two derivatives.
    fn sum(&mut self, a: Option<Id>, b: Option<Id>) -> Option<Id> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.bin(Binary::Add, a, b)),
            (a, b) => a.or(b),
        }
    }

    /// Derivative of an operation.
    fn of(&mut self, id: Id) -> Result<Option<Id>, String> {
        let node = self.builder.node(id);
        let tangent = |id: Id| self.all[id as usize];
        Ok(match node.op {
            op if self.seed.is(op) => Some(self.f32(1.0)),
            Op::Bitcast(a) if self.depends_on_the_seed(a) => {
                let what = if self.seed == Seed::Score { "the score" } else { "the table's element" };
                return Err(format!("a bitcast of {what} has no derivative"));
            }
            _ if node.ty != Scalar::F32 => None,
            Op::Unary(op, a) => tangent(a).and_then(|t| self.unary(op, id, a, t)),
            Op::Binary(op, a, b) => self.binary(op, id, [a, b]),
            Op::Select(c, a, b) => match (tangent(a), tangent(b)) {
                (None, None) => None,
                (a, b) => {
                    let zero = self.f32(0.0);
                    Some(self.builder.select(c, a.unwrap_or(zero), b.unwrap_or(zero)))
                }
            },
            _ => None,
        })
    }

    /// True if bits of the seed reach a value.
    fn depends_on_the_seed(&self, id: Id) -> bool {
        let mut depends = vec![false; id as usize + 1];
        for at in 0..=id {
            let op = self.builder.node(at).op;
            depends[at as usize] = self.seed.is(op) || op.operands().any(|operand| depends[operand as usize]);
        }
        depends[id as usize]
    }

    fn unary(&mut self, op: Unary, y: Id, a: Id, t: Id) -> Option<Id> {
        let one = self.f32(1.0);
        let factor = match op {
            Unary::Neg => return Some(self.builder.unary(Unary::Neg, t)),
            Unary::Abs => {
                let (zero, minus) = (self.f32(0.0), self.builder.unary(Unary::Neg, t));
                let (above, below) = (self.bin(Binary::Less, zero, a), self.bin(Binary::Less, a, zero));
                let rest = self.builder.select(below, minus, zero);
                return Some(self.builder.select(above, t, rest));
            }
            Unary::Exp => y,
            Unary::Exp2 => {
                let ln2 = self.f32(std::f32::consts::LN_2);
                self.mul(ln2, y)
            }
            Unary::Log => self.bin(Binary::Div, one, a),
            Unary::Log2 => {
                let log2e = self.f32(std::f32::consts::LOG2_E);
                self.bin(Binary::Div, log2e, a)
            }
            Unary::Sqrt => {
                let half = self.f32(0.5);
                self.bin(Binary::Div, half, y)
            }
            Unary::InverseSqrt => {
                let (half, square) = (self.f32(-0.5), self.mul(y, y));
                let cube = self.mul(square, y);
                self.mul(half, cube)
            }
            Unary::Sin => self.builder.unary(Unary::Cos, a),
            Unary::Cos => {
                let sin = self.builder.unary(Unary::Sin, a);
                self.builder.unary(Unary::Neg, sin)
            }
            Unary::Tan => {
                let square = self.mul(y, y);
                self.bin(Binary::Add, one, square)
            }
            Unary::Sinh => self.builder.unary(Unary::Cosh, a),
            Unary::Cosh => self.builder.unary(Unary::Sinh, a),
            Unary::Tanh => {
                let square = self.mul(y, y);
                self.bin(Binary::Sub, one, square)
            }
            Unary::Asin | Unary::Acos | Unary::Atan | Unary::Asinh | Unary::Acosh | Unary::Atanh => self.inverse(op, a),
            // Steps.
            _ => return None,
        };
        Some(self.chain(t, factor))
    }

    /// Derivative of an inverse trigonometric or hyperbolic function at a.
    fn inverse(&mut self, op: Unary, a: Id) -> Id {
        let (one, square) = (self.f32(1.0), self.mul(a, a));
        let below = match op {
            Unary::Asin | Unary::Acos | Unary::Atanh => self.bin(Binary::Sub, one, square),
            Unary::Acosh => self.bin(Binary::Sub, square, one),
            _ => self.bin(Binary::Add, one, square),
        };
        match op {
            Unary::Atan | Unary::Atanh => self.bin(Binary::Div, one, below),
            Unary::Acos => {
                let factor = self.builder.unary(Unary::InverseSqrt, below);
                self.builder.unary(Unary::Neg, factor)
            }
            _ => self.builder.unary(Unary::InverseSqrt, below),
        }
    }

    fn binary(&mut self, op: Binary, y: Id, [a, b]: [Id; 2]) -> Option<Id> {
        let [ta, tb] = [a, b].map(|id| self.all[id as usize]);
        if ta.is_none() && tb.is_none() {
            return None;
        }
        match op {
            Binary::Add => self.sum(ta, tb),
            Binary::Sub => {
                let tb = tb.map(|tb| self.builder.unary(Unary::Neg, tb));
                self.sum(ta, tb)
            }
            Binary::Mul => {
                let (of_a, of_b) = (ta.map(|ta| self.mul(ta, b)), tb.map(|tb| self.mul(a, tb)));
                self.sum(of_a, of_b)
            }
            Binary::Div => {
                // d(a / b) = (da - y db) / b.
                let of_b = tb.map(|tb| {
                    let product = self.mul(y, tb);
                    self.builder.unary(Unary::Neg, product)
                });
                let above = self.sum(ta, of_b)?;
                let one = self.f32(1.0);
                let inverse = self.bin(Binary::Div, one, b);
                Some(self.chain(above, inverse))
            }
            Binary::Min | Binary::Max => Some(self.extreme(op, [a, b], [ta, tb])),
            Binary::Pow => {
                let one = self.f32(1.0);
                let of_a = ta.map(|ta| {
                    let less = self.bin(Binary::Sub, b, one);
                    let power = self.bin(Binary::Pow, a, less);
                    let factor = self.mul(b, power);
                    self.chain(ta, factor)
                });
                let of_b = tb.map(|tb| {
                    let log = self.builder.unary(Unary::Log, a);
                    let factor = self.mul(log, y);
                    self.chain(tb, factor)
                });
                self.sum(of_a, of_b)
            }
            Binary::Atan2 => {
                let (aa, bb) = (self.mul(a, a), self.mul(b, b));
                let (one, below) = (self.f32(1.0), self.bin(Binary::Add, aa, bb));
                let inverse = self.bin(Binary::Div, one, below);
                let of_a = ta.map(|ta| self.mul(ta, b));
                let of_b = tb.map(|tb| {
                    let product = self.mul(tb, a);
                    self.builder.unary(Unary::Neg, product)
                });
                let above = self.sum(of_a, of_b)?;
                Some(self.chain(above, inverse))
            }
            _ => None,
        }
    }

    fn extreme(&mut self, op: Binary, [a, b]: [Id; 2], [ta, tb]: [Option<Id>; 2]) -> Id {
        let zero = self.f32(0.0);
        let [ta_or_0, tb_or_0] = [ta, tb].map(|t| t.unwrap_or(zero));
        let a_first = if op == Binary::Min { self.bin(Binary::Less, a, b) } else { self.bin(Binary::Less, b, a) };
        let b_first = if op == Binary::Min { self.bin(Binary::Less, b, a) } else { self.bin(Binary::Less, a, b) };
        let tie = if ta.is_some() && tb.is_some() {
            let (half, sum) = (self.f32(0.5), self.bin(Binary::Add, ta_or_0, tb_or_0));
            self.mul(half, sum)
        } else {
            zero
        };
        let rest = self.builder.select(b_first, tb_or_0, tie);
        self.builder.select(a_first, ta_or_0, rest)
    }
}
