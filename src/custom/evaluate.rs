//! Programs on the CPU, for many pairs at once.

use super::program::{Binary, Field, Id, Op, Program, Scalar, Unary};
use super::{elementary, scalar};

/// Pairs that are evaluated at once.
pub(crate) const LANES: usize = 128;

/// One value of each pair, by its bits.
pub(crate) type Lanes = [u32; LANES];

/// Inputs of a program, for each pair.
#[derive(Clone, Debug)]
pub(crate) struct Pairs {
    pub(crate) score: Lanes,
    pub(crate) after: Lanes,
    /// By [`Field`], as i32.
    pub(crate) fields: [Lanes; Field::ALL.len()],
}

impl Default for Pairs {
    fn default() -> Self {
        Self { score: [0; LANES], after: [0; LANES], fields: [[0; LANES]; Field::ALL.len()] }
    }
}

impl Pairs {
    /// Sets a field of every pair.
    pub(crate) fn fill(&mut self, field: Field, value: usize) {
        self.fields[field as usize] = [value as u32; LANES];
    }
}

/// Evaluates some of the program's operations for all lanes, in order, into the registers of their indices; what they
/// read and is not among them must be there, except for scores. Each operation is a loop over the lanes, which the
/// compiler turns into vectors of the instruction set that the caller is compiled for.
#[inline(always)]
pub(crate) fn evaluate_some(program: &Program, operations: &[Id], pairs: &Pairs, tables: &[&[u32]], registers: &mut Vec<Lanes>) {
    if registers.len() < program.nodes.len() {
        registers.resize(program.nodes.len(), [0; LANES]);
    }
    for &id in operations {
        let (id, node) = (id as usize, program.nodes[id as usize]);
        let (below, rest) = registers.split_at_mut(id);
        let to = &mut rest[0];
        let from = |id: Id| match program.nodes[id as usize].op {
            Op::Score => &pairs.score,
            Op::ScoreAfter => &pairs.after,
            _ => &below[id as usize],
        };
        let ty = |id: u32| program.nodes[id as usize].ty;
        match node.op {
            Op::Score => *to = pairs.score,
            Op::ScoreAfter => *to = pairs.after,
            Op::Pair(field) => *to = pairs.fields[field as usize],
            Op::Tile(..) => unreachable!("only `status` reads a tile"),
            Op::Constant(bits) => *to = [bits; LANES],
            Op::Length(table) => *to = [tables[table as usize].len() as u32; LANES],
            Op::Load(table, index) => {
                let (table, signed) = (tables[table as usize], ty(index) == Scalar::I32);
                map(from(index), to, |index| scalar::element(table, signed, index));
            }
            Op::Unary(op, a) => unary(op, ty(a), from(a), to),
            Op::Binary(op, a, b) => binary(op, ty(a), from(a), from(b), to),
            Op::Select(c, a, b) => {
                let (c, a, b) = (from(c), from(a), from(b));
                for lane in 0..LANES {
                    to[lane] = if c[lane] != 0 { a[lane] } else { b[lane] };
                }
            }
            Op::Convert(a) => {
                let (was, is) = (ty(a), node.ty);
                match (was, is) {
                    (Scalar::I32, Scalar::F32) => map(from(a), to, |a| (a as i32 as f32).to_bits()),
                    _ => map(from(a), to, |a| scalar::convert(was, is, a)),
                }
            }
            Op::Bitcast(a) => *to = *from(a),
        }
    }
}

/// Evaluates the whole program for all lanes, and returns its result.
#[cfg(test)]
pub(crate) fn evaluate<'a>(program: &Program, pairs: &Pairs, tables: &[&[u32]], registers: &'a mut Vec<Lanes>) -> &'a Lanes {
    let all: Vec<Id> = (0..program.nodes.len() as Id).collect();
    evaluate_some(program, &all, pairs, tables, registers);
    &registers[program.nodes.len() - 1]
}

#[inline(always)]
fn map(from: &Lanes, to: &mut Lanes, f: impl Fn(u32) -> u32) {
    for lane in 0..LANES {
        to[lane] = f(from[lane]);
    }
}

#[inline(always)]
fn zip(a: &Lanes, b: &Lanes, to: &mut Lanes, f: impl Fn(u32, u32) -> u32) {
    for lane in 0..LANES {
        to[lane] = f(a[lane], b[lane]);
    }
}

#[inline(always)]
fn unary(op: Unary, ty: Scalar, a: &Lanes, to: &mut Lanes) {
    match (op, ty) {
        (Unary::Neg, Scalar::F32) => map(a, to, |a| a ^ 1 << 31),
        (Unary::Abs, Scalar::F32) => map(a, to, |a| a & !(1 << 31)),
        (Unary::Floor, _) => map(a, to, |a| f32::from_bits(a).floor().to_bits()),
        (Unary::Ceil, _) => map(a, to, |a| f32::from_bits(a).ceil().to_bits()),
        (Unary::Round, _) => map(a, to, |a| f32::from_bits(a).round_ties_even().to_bits()),
        (Unary::Trunc, _) => map(a, to, |a| f32::from_bits(a).trunc().to_bits()),
        (Unary::Sqrt, _) => map(a, to, |a| f32::from_bits(a).sqrt().to_bits()),
        (Unary::InverseSqrt, _) => map(a, to, |a| (1.0 / f32::from_bits(a).sqrt()).to_bits()),
        (Unary::Exp, _) => map(a, to, |a| elementary::exp(f32::from_bits(a)).to_bits()),
        (Unary::Exp2, _) => map(a, to, |a| elementary::exp2(f32::from_bits(a)).to_bits()),
        (Unary::Log, _) => map(a, to, |a| elementary::ln(f32::from_bits(a)).to_bits()),
        (Unary::Log2, _) => map(a, to, |a| elementary::log2(f32::from_bits(a)).to_bits()),
        (Unary::Tanh, _) => map(a, to, |a| elementary::tanh(f32::from_bits(a)).to_bits()),
        (Unary::Abs, Scalar::I32) => map(a, to, |a| (a as i32).wrapping_abs() as u32),
        (Unary::Not, Scalar::Bool) => map(a, to, |a| a ^ 1),
        (op, ty) => map(a, to, |a| scalar::apply(Op::Unary(op, 0), ty, ty, [a, 0, 0])),
    }
}

#[inline(always)]
fn binary(op: Binary, ty: Scalar, a: &Lanes, b: &Lanes, to: &mut Lanes) {
    // Constant operations, so that each arm is a loop of its own.
    match (ty, op) {
        (Scalar::F32, Binary::Add) => zip(a, b, to, |a, b| scalar::binary_f32(Binary::Add, f32::from_bits(a), f32::from_bits(b))),
        (Scalar::F32, Binary::Sub) => zip(a, b, to, |a, b| scalar::binary_f32(Binary::Sub, f32::from_bits(a), f32::from_bits(b))),
        (Scalar::F32, Binary::Mul) => zip(a, b, to, |a, b| scalar::binary_f32(Binary::Mul, f32::from_bits(a), f32::from_bits(b))),
        (Scalar::F32, Binary::Div) => zip(a, b, to, |a, b| scalar::binary_f32(Binary::Div, f32::from_bits(a), f32::from_bits(b))),
        (Scalar::F32, Binary::Min) => zip(a, b, to, |a, b| scalar::binary_f32(Binary::Min, f32::from_bits(a), f32::from_bits(b))),
        (Scalar::F32, Binary::Max) => zip(a, b, to, |a, b| scalar::binary_f32(Binary::Max, f32::from_bits(a), f32::from_bits(b))),
        (Scalar::F32, Binary::Less) => zip(a, b, to, |a, b| (f32::from_bits(a) < f32::from_bits(b)).into()),
        (Scalar::F32, Binary::LessEqual) => zip(a, b, to, |a, b| (f32::from_bits(a) <= f32::from_bits(b)).into()),
        (Scalar::F32, op) => zip(a, b, to, |a, b| scalar::binary_f32(op, f32::from_bits(a), f32::from_bits(b))),
        (Scalar::I32, Binary::Less) => zip(a, b, to, |a, b| ((a as i32) < b as i32).into()),
        (Scalar::I32, Binary::LessEqual) => zip(a, b, to, |a, b| (a as i32 <= b as i32).into()),
        (Scalar::I32, Binary::Min) => zip(a, b, to, |a, b| (a as i32).min(b as i32) as u32),
        (Scalar::I32, Binary::Max) => zip(a, b, to, |a, b| (a as i32).max(b as i32) as u32),
        (Scalar::I32, Binary::Div) => zip(a, b, to, |a, b| scalar::binary_i32(Binary::Div, a as i32, b)),
        (Scalar::I32, Binary::Rem) => zip(a, b, to, |a, b| scalar::binary_i32(Binary::Rem, a as i32, b)),
        (Scalar::I32, Binary::ShiftRight) => zip(a, b, to, |a, b| (a as i32).wrapping_shr(b) as u32),
        (_, Binary::Add) => zip(a, b, to, u32::wrapping_add),
        (_, Binary::Sub) => zip(a, b, to, u32::wrapping_sub),
        (_, Binary::Mul) => zip(a, b, to, u32::wrapping_mul),
        (_, Binary::And) => zip(a, b, to, |a, b| a & b),
        (_, Binary::Or) => zip(a, b, to, |a, b| a | b),
        (_, Binary::Equal) => zip(a, b, to, |a, b| (a == b).into()),
        (_, Binary::NotEqual) => zip(a, b, to, |a, b| (a != b).into()),
        (_, Binary::Xor) => zip(a, b, to, |a, b| a ^ b),
        (_, Binary::ShiftLeft) => zip(a, b, to, u32::wrapping_shl),
        (_, Binary::ShiftRight) => zip(a, b, to, u32::wrapping_shr),
        (_, Binary::Less) => zip(a, b, to, |a, b| (a < b).into()),
        (_, Binary::LessEqual) => zip(a, b, to, |a, b| (a <= b).into()),
        (_, Binary::Min) => zip(a, b, to, u32::min),
        (_, Binary::Max) => zip(a, b, to, u32::max),
        (_, Binary::Div) => zip(a, b, to, |a, b| scalar::binary_u32(Binary::Div, a, b)),
        (_, Binary::Rem) => zip(a, b, to, |a, b| scalar::binary_u32(Binary::Rem, a, b)),
        (_, Binary::Pow | Binary::Atan2) => unreachable!("{op:?} of integers"),
    }
}
