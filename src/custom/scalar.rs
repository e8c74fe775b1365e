//! Result of one operation of a program, on the bits of its operands.

use super::elementary;
use super::program::{Binary, Op, Scalar, Unary};

/// Applies an operation whose first operand has the type `from` and whose result has the type `to`. Inputs and loads are
/// not operations of this kind.
pub(crate) fn apply(op: Op, from: Scalar, to: Scalar, [a, b, c]: [u32; 3]) -> u32 {
    match (op, from) {
        (Op::Select(..), _) => {
            if a != 0 {
                b
            } else {
                c
            }
        }
        (Op::Bitcast(_), _) => a,
        (Op::Convert(_), _) => convert(from, to, a),
        (Op::Unary(op, _), Scalar::F32) => unary_f32(op, f32::from_bits(a)).to_bits(),
        (Op::Unary(op, _), _) => unary_integer(op, from, a),
        (Op::Binary(op, ..), Scalar::F32) => binary_f32(op, f32::from_bits(a), f32::from_bits(b)),
        (Op::Binary(op, ..), Scalar::I32) => binary_i32(op, a as i32, b),
        (Op::Binary(op, ..), _) => binary_u32(op, a, b),
        _ => unreachable!("an input has no operands"),
    }
}

/// Reads a table at an index by its bits; at the nearest element where it is outside.
#[inline(always)]
pub(crate) fn element(table: &[u32], signed: bool, index: u32) -> u32 {
    let index = if signed { (index as i32).max(0) as u32 } else { index };
    table[(index as usize).min(table.len() - 1)]
}

/// Largest f32 that an i32 and a u32 can hold.
const LARGEST_I32: f32 = 2_147_483_520.0;
const LARGEST_U32: f32 = 4_294_967_040.0;

/// Converts by value: saturating at the last f32 that fits, NaN to 0.
pub(crate) fn convert(from: Scalar, to: Scalar, a: u32) -> u32 {
    let x = f32::from_bits(a);
    match (from, to) {
        (Scalar::F32, Scalar::I32 | Scalar::U32) if x.is_nan() => 0,
        (Scalar::F32, Scalar::I32) => (x.min(LARGEST_I32) as i32) as u32,
        (Scalar::F32, Scalar::U32) => x.min(LARGEST_U32) as u32,
        (Scalar::F32, Scalar::Bool) => (x != 0.0).into(),
        (Scalar::I32, Scalar::F32) => (a as i32 as f32).to_bits(),
        (Scalar::U32, Scalar::F32) => (a as f32).to_bits(),
        (Scalar::Bool, Scalar::F32) => f32::from(u8::from(a != 0)).to_bits(),
        (_, Scalar::Bool) => (a != 0).into(),
        _ => a,
    }
}

pub(crate) fn unary_f32(op: Unary, x: f32) -> f32 {
    match op {
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Trunc => x.trunc(),
        Unary::Exp => elementary::exp(x),
        Unary::Exp2 => elementary::exp2(x),
        Unary::Log => elementary::ln(x),
        Unary::Log2 => elementary::log2(x),
        Unary::Sqrt => x.sqrt(),
        Unary::InverseSqrt => 1.0 / x.sqrt(),
        Unary::Sin => x.sin(),
        Unary::Cos => x.cos(),
        Unary::Tan => x.tan(),
        Unary::Asin => x.asin(),
        Unary::Acos => x.acos(),
        Unary::Atan => x.atan(),
        Unary::Sinh => x.sinh(),
        Unary::Cosh => x.cosh(),
        Unary::Tanh => elementary::tanh(x),
        Unary::Asinh => x.asinh(),
        Unary::Acosh => x.acosh(),
        Unary::Atanh => x.atanh(),
        _ => unreachable!("{op:?} of a float"),
    }
}

fn unary_integer(op: Unary, ty: Scalar, a: u32) -> u32 {
    match op {
        Unary::Neg => a.wrapping_neg(),
        Unary::Not if ty == Scalar::Bool => u32::from(a == 0),
        Unary::Not => !a,
        Unary::Abs if ty == Scalar::I32 => (a as i32).wrapping_abs() as u32,
        Unary::Abs => a,
        Unary::CountOneBits => a.count_ones(),
        Unary::CountLeadingZeros => a.leading_zeros(),
        Unary::CountTrailingZeros => a.trailing_zeros(),
        Unary::ReverseBits => a.reverse_bits(),
        _ => unreachable!("{op:?} of an integer"),
    }
}

pub(crate) fn binary_f32(op: Binary, x: f32, y: f32) -> u32 {
    let number = match op {
        Binary::Equal => return (x == y).into(),
        Binary::NotEqual => return (x != y).into(),
        Binary::Less => return (x < y).into(),
        Binary::LessEqual => return (x <= y).into(),
        Binary::Add => x + y,
        Binary::Sub => x - y,
        Binary::Mul => x * y,
        Binary::Div => x / y,
        Binary::Rem => x % y,
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::Pow => x.powf(y),
        Binary::Atan2 => x.atan2(y),
        _ => unreachable!("{op:?} of floats"),
    };
    number.to_bits()
}

/// Low 32 bits of the quotient of two integers of at most 32 bits, rounded towards 0, where the divisor is not 0.
///
/// Vectors have no division of integers. That of f64 does not reach the next integer: it is a relative 2^-32 away.
#[inline(always)]
fn whole_quotient(x: f64, y: f64) -> u32 {
    /// Adding it moves the units of an integer to the lowest bit.
    const UNITS: f64 = 6_755_399_441_055_744.0;
    ((x / y).trunc() + UNITS).to_bits() as u32
}

#[inline(always)]
pub(crate) fn binary_i32(op: Binary, x: i32, b: u32) -> u32 {
    let y = b as i32;
    let number = match op {
        Binary::Less => return (x < y).into(),
        Binary::LessEqual => return (x <= y).into(),
        // By 0, or the least number by -1: the dividend, without a rest.
        Binary::Div if y == 0 => x,
        Binary::Div => whole_quotient(x.into(), y.into()) as i32,
        Binary::Rem if y == 0 => 0,
        Binary::Rem => x.wrapping_sub((whole_quotient(x.into(), y.into()) as i32).wrapping_mul(y)),
        Binary::Min => x.min(y),
        Binary::Max => x.max(y),
        Binary::ShiftRight => x.wrapping_shr(b),
        _ => return binary_u32(op, x as u32, b),
    };
    number as u32
}

#[inline(always)]
pub(crate) fn binary_u32(op: Binary, a: u32, b: u32) -> u32 {
    match op {
        Binary::Equal => (a == b).into(),
        Binary::NotEqual => (a != b).into(),
        Binary::Less => (a < b).into(),
        Binary::LessEqual => (a <= b).into(),
        Binary::Add => a.wrapping_add(b),
        Binary::Sub => a.wrapping_sub(b),
        Binary::Mul => a.wrapping_mul(b),
        Binary::Div if b == 0 => a,
        Binary::Div => whole_quotient(a.into(), b.into()),
        Binary::Rem if b == 0 => 0,
        Binary::Rem => a.wrapping_sub(whole_quotient(a.into(), b.into()).wrapping_mul(b)),
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        Binary::And => a & b,
        Binary::Or => a | b,
        Binary::Xor => a ^ b,
        Binary::ShiftLeft => a.wrapping_shl(b),
        Binary::ShiftRight => a.wrapping_shr(b),
        Binary::Pow | Binary::Atan2 => unreachable!("{op:?} of integers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The quotient by floats is that of integers, also beside a multiple.
    #[test]
    fn quotients() {
        const SOME: [u32; 12] = [0, 1, 2, 3, 7, 1000, 65_537, 0x7fff_fffe, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX];
        let beside = |x: u32| [x.wrapping_sub(1), x, x.wrapping_add(1)];
        for x in SOME.into_iter().flat_map(|a| SOME.map(|b| a.wrapping_mul(b))).flat_map(beside) {
            for y in SOME.into_iter().flat_map(beside) {
                let (a, b) = (x as i32, y as i32);
                let of_i32 = [a.checked_div(b).unwrap_or(a), a.checked_rem(b).unwrap_or(0)].map(|x| x as u32);
                assert_eq!([Binary::Div, Binary::Rem].map(|op| binary_i32(op, a, y)), of_i32, "{a} / {b}");
                let of_u32 = [x.checked_div(y).unwrap_or(x), x.checked_rem(y).unwrap_or(0)];
                assert_eq!([Binary::Div, Binary::Rem].map(|op| binary_u32(op, x, y)), of_u32, "{x} / {y}");
            }
        }
    }
}
