//! WGSL's operators and mathematical functions in terms of a program's operations.

use naga::MathFunction as Math;

use super::lower::{Lowering, Result};
use super::program::{Binary, Id, Op, Scalar, Unary};

impl Lowering<'_> {
    /// Adds a function of values; most work component by component.
    pub(super) fn math(&mut self, fun: Math, arguments: &[Vec<Id>]) -> Result<Vec<Id>> {
        let [a, b] = [0, 1].map(|at| arguments.get(at).map_or(&[][..], Vec::as_slice));
        match fun {
            Math::Dot => Ok(vec![self.dot(a, b)]),
            Math::Length => Ok(vec![self.length(a)]),
            Math::Distance => {
                let difference = self.zip(Binary::Sub, a, b);
                Ok(vec![self.length(&difference)])
            }
            Math::Normalize => {
                let length = self.length(a);
                Ok(self.zip(Binary::Div, a, &vec![length; a.len()]))
            }
            Math::Cross => {
                let mut part = |i: usize, j: usize| {
                    let (x, y) = (self.builder.binary(Binary::Mul, a[i], b[j]), self.builder.binary(Binary::Mul, a[j], b[i]));
                    self.builder.binary(Binary::Sub, x, y)
                };
                Ok(vec![part(1, 2), part(2, 0), part(0, 1)])
            }
            _ => {
                let component = |at: usize| arguments.iter().map(|argument| argument[at.min(argument.len() - 1)]).collect::<Vec<_>>();
                (0..a.len()).map(|at| self.of_scalars(fun, &component(at))).collect()
            }
        }
    }

    /// Adds a binary operation of values, of which one may be a number.
    pub(super) fn binary(&mut self, op: naga::BinaryOperator, left: &[Id], right: &[Id]) -> Result<Vec<Id>> {
        use naga::BinaryOperator as From;
        let count = left.len().max(right.len());
        let at = |side: &[Id], at: usize| side[at.min(side.len() - 1)];
        let mut all = Vec::with_capacity(count);
        for index in 0..count {
            let (a, b) = (at(left, index), at(right, index));
            let b = match op {
                // The amount of a shift counts modulo 32.
                From::ShiftLeft | From::ShiftRight => {
                    let bits = self.builder.constant(Scalar::U32, 31);
                    self.builder.and(b, bits)
                }
                _ => b,
            };
            all.push(match op {
                From::Add => self.builder.binary(Binary::Add, a, b),
                From::Subtract => self.builder.binary(Binary::Sub, a, b),
                From::Multiply => self.builder.binary(Binary::Mul, a, b),
                From::Divide => self.builder.binary(Binary::Div, a, b),
                From::Modulo if self.builder.ty(a) == Scalar::F32 => {
                    let quotient = self.builder.binary(Binary::Div, a, b);
                    let whole = self.builder.unary(Unary::Trunc, quotient);
                    let product = self.builder.binary(Binary::Mul, b, whole);
                    self.builder.binary(Binary::Sub, a, product)
                }
                From::Modulo => self.builder.binary(Binary::Rem, a, b),
                From::Equal => self.builder.binary(Binary::Equal, a, b),
                From::NotEqual => self.builder.binary(Binary::NotEqual, a, b),
                From::Less => self.builder.binary(Binary::Less, a, b),
                From::LessEqual => self.builder.binary(Binary::LessEqual, a, b),
                From::Greater => self.builder.binary(Binary::Less, b, a),
                From::GreaterEqual => self.builder.binary(Binary::LessEqual, b, a),
                From::And | From::LogicalAnd => self.builder.and(a, b),
                From::InclusiveOr | From::LogicalOr => self.builder.or(a, b),
                From::ExclusiveOr => self.builder.binary(Binary::Xor, a, b),
                From::ShiftLeft => self.builder.binary(Binary::ShiftLeft, a, b),
                From::ShiftRight => self.builder.binary(Binary::ShiftRight, a, b),
            });
        }
        Ok(all)
    }

    fn zip(&mut self, op: Binary, a: &[Id], b: &[Id]) -> Vec<Id> {
        a.iter().zip(b).map(|(&a, &b)| self.builder.binary(op, a, b)).collect()
    }

    fn dot(&mut self, a: &[Id], b: &[Id]) -> Id {
        let products = self.zip(Binary::Mul, a, b);
        products.into_iter().reduce(|x, y| self.builder.binary(Binary::Add, x, y)).unwrap_or(0)
    }

    fn length(&mut self, a: &[Id]) -> Id {
        if let &[one] = a {
            return self.builder.unary(Unary::Abs, one);
        }
        let square = self.dot(a, a);
        self.builder.unary(Unary::Sqrt, square)
    }

    fn of_scalars(&mut self, fun: Math, all: &[Id]) -> Result<Id> {
        let (a, b, c) = (all[0], all.get(1).copied().unwrap_or(0), all.get(2).copied().unwrap_or(0));
        let ty = self.builder.ty(a);
        if let Some(op) = unary(fun) {
            return Ok(self.builder.unary(op, a));
        }
        let builder = &mut self.builder;
        Ok(match fun {
            Math::Min => builder.binary(Binary::Min, a, b),
            Math::Max => builder.binary(Binary::Max, a, b),
            Math::Pow => builder.binary(Binary::Pow, a, b),
            Math::Atan2 => builder.binary(Binary::Atan2, a, b),
            Math::Clamp | Math::Saturate => {
                let [low, high] = if fun == Math::Clamp { [b, c] } else { [builder.f32(0.0), builder.f32(1.0)] };
                let above = builder.binary(Binary::Max, a, low);
                builder.binary(Binary::Min, above, high)
            }
            Math::Fract => {
                let whole = builder.unary(Unary::Floor, a);
                builder.binary(Binary::Sub, a, whole)
            }
            Math::Radians | Math::Degrees => {
                let factor = if fun == Math::Radians { 1f32.to_radians() } else { 1f32.to_degrees() };
                let factor = builder.f32(factor);
                builder.binary(Binary::Mul, a, factor)
            }
            Math::Fma => {
                let product = builder.binary(Binary::Mul, a, b);
                builder.binary(Binary::Add, product, c)
            }
            Math::Mix => {
                let difference = builder.binary(Binary::Sub, b, a);
                let product = builder.binary(Binary::Mul, difference, c);
                builder.binary(Binary::Add, a, product)
            }
            Math::Step => {
                let (reached, one, zero) = (builder.binary(Binary::LessEqual, a, b), builder.f32(1.0), builder.f32(0.0));
                builder.select(reached, one, zero)
            }
            Math::SmoothStep => self.smooth_step(a, b, c),
            Math::Sign => {
                let zero = builder.constant(ty, 0);
                let [one, minus] = if ty == Scalar::F32 {
                    [1f32, -1.0].map(|x| builder.f32(x))
                } else {
                    [1i32, -1].map(|x| builder.constant(ty, x as u32))
                };
                let (below, above) = (builder.binary(Binary::Less, a, zero), builder.binary(Binary::Less, zero, a));
                let rest = builder.select(above, one, zero);
                builder.select(below, minus, rest)
            }
            Math::FirstTrailingBit => {
                let (found, none) = (builder.unary(Unary::CountTrailingZeros, a), builder.constant(ty, u32::MAX));
                let zero = builder.constant(ty, 0);
                let is_zero = builder.binary(Binary::Equal, a, zero);
                builder.select(is_zero, none, found)
            }
            Math::FirstLeadingBit => self.first_leading_bit(a),
            Math::ExtractBits => self.extract_bits(a, b, c),
            Math::InsertBits => self.insert_bits(all),
            _ => return self.refuse(format!("uses {fun:?}, which a function of a pair cannot")),
        })
    }

    fn smooth_step(&mut self, low: Id, high: Id, x: Id) -> Id {
        let builder = &mut self.builder;
        let (from_low, width) = (builder.binary(Binary::Sub, x, low), builder.binary(Binary::Sub, high, low));
        let (zero, one, two, three) = (builder.f32(0.0), builder.f32(1.0), builder.f32(2.0), builder.f32(3.0));
        let share = builder.binary(Binary::Div, from_low, width);
        let above = builder.binary(Binary::Max, share, zero);
        let t = builder.binary(Binary::Min, above, one);
        let (square, twice) = (builder.binary(Binary::Mul, t, t), builder.binary(Binary::Mul, two, t));
        let rest = builder.binary(Binary::Sub, three, twice);
        builder.binary(Binary::Mul, square, rest)
    }

    /// Index of the highest bit that differs from the sign; all ones if there is none.
    fn first_leading_bit(&mut self, a: Id) -> Id {
        let ty = self.builder.ty(a);
        let builder = &mut self.builder;
        let (zero, bits, none) = (builder.constant(ty, 0), builder.constant(ty, 31), builder.constant(ty, u32::MAX));
        let magnitude = if ty == Scalar::I32 {
            let (negative, not) = (builder.binary(Binary::Less, a, zero), builder.not(a));
            builder.select(negative, not, a)
        } else {
            a
        };
        let zeros = builder.unary(Unary::CountLeadingZeros, magnitude);
        let found = builder.binary(Binary::Sub, bits, zeros);
        let is_zero = builder.binary(Binary::Equal, magnitude, zero);
        builder.select(is_zero, none, found)
    }

    /// `count` bits from `offset` on, both cut to the word; of an i32, with the sign of the highest one.
    fn extract_bits(&mut self, a: Id, offset: Id, count: Id) -> Id {
        let ty = self.builder.ty(a);
        let (offset, count) = self.range_of_bits(offset, count);
        let builder = &mut self.builder;
        let (zero, thirty_two, most) = (builder.constant(ty, 0), builder.constant(Scalar::U32, 32), builder.constant(Scalar::U32, 31));
        let rest = builder.binary(Binary::Sub, thirty_two, count);
        let (up, down) = (builder.binary(Binary::Sub, rest, offset), builder.and(rest, most));
        let up = builder.and(up, most);
        let high = builder.binary(Binary::ShiftLeft, a, up);
        let low = builder.binary(Binary::ShiftRight, high, down);
        let no_bits = builder.constant(Scalar::U32, 0);
        let empty = builder.binary(Binary::Equal, count, no_bits);
        builder.select(empty, zero, low)
    }

    /// The first argument with `count` bits from `offset` on replaced by the low ones of the second.
    fn insert_bits(&mut self, all: &[Id]) -> Id {
        let (a, new) = (all[0], all[1]);
        let ty = self.builder.ty(a);
        let (offset, count) = self.range_of_bits(all[2], all[3]);
        let builder = &mut self.builder;
        let (ones, thirty_two, most) =
            (builder.constant(Scalar::U32, u32::MAX), builder.constant(Scalar::U32, 32), builder.constant(Scalar::U32, 31));
        let rest = builder.binary(Binary::Sub, thirty_two, count);
        let rest = builder.and(rest, most);
        let low = builder.binary(Binary::ShiftRight, ones, rest);
        let shift = builder.and(offset, most);
        let mask = builder.binary(Binary::ShiftLeft, low, shift);
        let mask = builder.push(Op::Bitcast(mask), ty);
        let shifted = builder.binary(Binary::ShiftLeft, new, shift);
        let (inside, not) = (builder.and(shifted, mask), builder.not(mask));
        let outside = builder.and(a, not);
        let both = builder.or(inside, outside);
        let no_bits = builder.constant(Scalar::U32, 0);
        let empty = builder.binary(Binary::Equal, count, no_bits);
        builder.select(empty, a, both)
    }

    /// Offset and count of bits, cut to a word of 32.
    fn range_of_bits(&mut self, offset: Id, count: Id) -> (Id, Id) {
        let builder = &mut self.builder;
        let word = builder.constant(Scalar::U32, 32);
        let offset = builder.binary(Binary::Min, offset, word);
        let rest = builder.binary(Binary::Sub, word, offset);
        (offset, builder.binary(Binary::Min, count, rest))
    }
}

/// Functions that are operations.
const fn unary(fun: Math) -> Option<Unary> {
    Some(match fun {
        Math::Abs => Unary::Abs,
        Math::Floor => Unary::Floor,
        Math::Ceil => Unary::Ceil,
        Math::Round => Unary::Round,
        Math::Trunc => Unary::Trunc,
        Math::Exp => Unary::Exp,
        Math::Exp2 => Unary::Exp2,
        Math::Log => Unary::Log,
        Math::Log2 => Unary::Log2,
        Math::Sqrt => Unary::Sqrt,
        Math::InverseSqrt => Unary::InverseSqrt,
        Math::Sin => Unary::Sin,
        Math::Cos => Unary::Cos,
        Math::Tan => Unary::Tan,
        Math::Asin => Unary::Asin,
        Math::Acos => Unary::Acos,
        Math::Atan => Unary::Atan,
        Math::Sinh => Unary::Sinh,
        Math::Cosh => Unary::Cosh,
        Math::Tanh => Unary::Tanh,
        Math::Asinh => Unary::Asinh,
        Math::Acosh => Unary::Acosh,
        Math::Atanh => Unary::Atanh,
        Math::CountOneBits => Unary::CountOneBits,
        Math::CountLeadingZeros => Unary::CountLeadingZeros,
        Math::CountTrailingZeros => Unary::CountTrailingZeros,
        Math::ReverseBits => Unary::ReverseBits,
        _ => return None,
    })
}
