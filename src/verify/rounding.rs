//! Rounding errors of users' terms: each operation of a program in f64, with a bound of what f32 makes of it on any device.
//!
//! Bounds of built-in functions are those of the WGSL specification, section "Floating Point Accuracy", doubled.

use crate::custom::Term;
use crate::custom::program::Program;
use crate::custom::program::{Binary, Op, Scalar, Unary};
use crate::custom::scalar;
use crate::problem::{Inputs, OwnedTable, Problem};

/// Safety factor on every bound.
pub(super) const SAFETY: f64 = 2.0;
/// A float, and the bound of its error.
pub(crate) type Rough = (f64, f64);

/// Value of an operation: a float, or the bits of anything else, which is exact.
#[derive(Clone, Copy)]
enum Value {
    Float(Rough),
    Bits(u32),
}

/// Score and slope after all terms of a problem, with the bounds of their errors: infinite or NaN for an unknown slope.
#[derive(Clone, Copy)]
pub(super) struct Rounded {
    pub(super) score: Rough,
    pub(super) slope: Rough,
}

/// Rounding of half a unit in the last place, doubled.
const UNIT: f64 = SAFETY * 5.960_464_477_539_063e-8;

/// Follows the score `x` through the user's terms; `None` where rounding may turn a comparison or a step.
pub(super) fn of_terms(problem: &Problem, inputs: &Inputs<'_>, x: Rough, pair: [i32; 9]) -> Option<Rounded> {
    let mut all = Rounded { score: x, slope: (1.0, 0.0) };
    for (index, term) in problem.user_terms.iter().enumerate() {
        let (functions, tables) = (term.functions(), problem.tables_of(index, inputs.term_tables));
        let Some(program) = &functions.score else { continue };
        let before = all.score;
        all.score = of_program(program, [before, (0.0, 0.0)], pair, &tables)?;
        if let Some(program) = functions.slope() {
            let slope = of_program(program, [before, all.score], pair, &tables)?;
            all.slope = multiplied(all.slope, slope).unwrap_or((f64::NAN, f64::INFINITY));
        }
    }
    Some(all)
}

/// True if rounding cannot turn whether the users' terms show a pair: each of them is sure to, or one is sure not to.
pub(super) fn is_sure(problem: &Problem, inputs: &Inputs<'_>, pair: [i32; 9]) -> bool {
    let terms = problem.user_terms.iter().enumerate();
    let shows = |(index, term): (usize, &Term)| {
        let Some(program) = &term.functions().visible else { return Some(true) };
        let shown = of_program(program, [(0.0, 0.0); 2], pair, &problem.tables_of(index, inputs.term_tables));
        shown.map(|(bits, _)| bits != 0.0)
    };
    let all: Vec<Option<bool>> = terms.map(shows).collect();
    all.contains(&Some(false)) || !all.contains(&None)
}

/// Derivative of the last score by an element of a table, if no rounding may turn a comparison, and the element that the
/// pair reads, if no rounding may make it another. `x` is the score before the user's terms.
pub(super) fn of_table(
    problem: &Problem,
    inputs: &Inputs<'_>,
    table: &OwnedTable<'_>,
    x: Rough,
    pair: [i32; 9],
) -> (Option<usize>, Option<Rough>) {
    let (mut score, mut slope, mut element) = (Some(x), Some((1.0, 0.0)), None);
    for (index, term) in problem.user_terms.iter().enumerate() {
        let (functions, tables) = (term.functions(), problem.tables_of(index, inputs.term_tables));
        let Some(program) = &functions.score else { continue };
        let after = score.and_then(|before| of_program(program, [before, (0.0, 0.0)], pair, &tables));
        if index == table.term {
            element = match value_of(&table.gradient.index, [(0.0, 0.0); 2], pair, &tables) {
                Some(Value::Bits(element)) => Some(element as usize),
                _ => None,
            };
            slope = score.and_then(|x| of_program(&table.gradient.slope, [x, (0.0, 0.0)], pair, &tables));
        } else if let Some(program) = functions.slope().filter(|_| index > table.term) {
            let own = score.zip(after).and_then(|(x, y)| of_program(program, [x, y], pair, &tables));
            slope = slope.zip(own).and_then(|(slope, own)| multiplied(slope, own));
        }
        score = after;
    }
    (element, slope)
}

/// Product of the slopes of two terms; `None` where rounding may make one 0, which hides that the other is NaN.
fn multiplied((a, ea): Rough, (b, eb): Rough) -> Option<Rough> {
    let may_hide = |(x, ex): Rough, other: f64| other.is_nan() && ex > 0.0 && x.abs() <= ex;
    let is_sure = !may_hide((a, ea), b) && !may_hide((b, eb), a);
    is_sure.then(|| (a * b, a.abs() * eb + b.abs() * ea + ea * eb + UNIT * (a * b).abs()))
}

pub(crate) fn of_program(program: &Program, scores: [Rough; 2], pair: [i32; 9], tables: &[&[u32]]) -> Option<Rough> {
    Some(match value_of(program, scores, pair, tables)? {
        Value::Float(rough) => rough,
        Value::Bits(bits) => (f32::from_bits(bits).into(), 0.0),
    })
}

fn value_of(program: &Program, [x, y]: [Rough; 2], pair: [i32; 9], tables: &[&[u32]]) -> Option<Value> {
    let mut values: Vec<Value> = Vec::with_capacity(program.nodes.len());
    for node in &program.nodes {
        let float = |id: u32| match values[id as usize] {
            Value::Float(rough) => rough,
            Value::Bits(bits) => (f32::from_bits(bits).into(), 0.0),
        };
        let bits = |id: u32| match values[id as usize] {
            Value::Bits(bits) => Some(bits),
            Value::Float((value, 0.0)) => Some((value as f32).to_bits()),
            Value::Float(_) => None,
        };
        let ty = |id: u32| program.nodes[id as usize].ty;
        let value = match node.op {
            Op::Score => Value::Float(x),
            Op::ScoreAfter => Value::Float(y),
            Op::Pair(field) => Value::Bits(pair[field as usize] as u32),
            Op::Constant(bits) if node.ty == Scalar::F32 => Value::Float((f32::from_bits(bits).into(), 0.0)),
            Op::Constant(bits) => Value::Bits(bits),
            Op::Length(table) => Value::Bits(tables[table as usize].len() as u32),
            Op::Load(table, index) => {
                let word = scalar::element(tables[table as usize], ty(index) == Scalar::I32, bits(index)?);
                if node.ty == Scalar::F32 { Value::Float((f32::from_bits(word).into(), 0.0)) } else { Value::Bits(word) }
            }
            Op::Select(c, a, b) => values[if bits(c)? != 0 { a } else { b } as usize],
            Op::Unary(op, a) if node.ty == Scalar::F32 => Value::Float(unary(op, float(a))?),
            Op::Binary(op, a, b) if ty(a) == Scalar::F32 && op.compares() => Value::Bits(compared(op, float(a), float(b))?.into()),
            Op::Binary(op, a, b) if node.ty == Scalar::F32 => Value::Float(binary(op, float(a), float(b))?),
            Op::Convert(a) if ty(a) == Scalar::F32 && node.ty == Scalar::Bool => {
                Value::Bits(compared(Binary::NotEqual, float(a), (0.0, 0.0))?.into())
            }
            Op::Convert(a) if ty(a) == Scalar::F32 => {
                let (value, error) = float(a);
                let [low, high] = [value - error, value + error].map(|x| scalar::convert(Scalar::F32, node.ty, (x as f32).to_bits()));
                if low != high {
                    return None;
                }
                Value::Bits(low)
            }
            Op::Convert(a) if node.ty == Scalar::F32 => {
                Value::Float((f32::from_bits(scalar::convert(ty(a), node.ty, bits(a)?)).into(), 0.0))
            }
            Op::Bitcast(a) if node.ty == Scalar::F32 => Value::Float((f32::from_bits(bits(a)?).into(), 0.0)),
            op => {
                let mut operands = [0; 3];
                for (to, id) in operands.iter_mut().zip(op.operands()) {
                    *to = bits(id)?;
                }
                Value::Bits(scalar::apply(op, op.operands().next().map_or(node.ty, ty), node.ty, operands))
            }
        };
        values.push(value);
    }
    values.pop()
}

fn compared(op: Binary, (a, ea): Rough, (b, eb): Rough) -> Option<bool> {
    if ea + eb > 0.0 && (a - b).abs() <= ea + eb || (ea + eb).is_nan() {
        return None;
    }
    Some(match op {
        Binary::Equal => a == b,
        Binary::NotEqual => a != b,
        Binary::Less => a < b,
        _ => a <= b,
    })
}

/// Bound of a sum or product that f32 holds, which is exact if f32 has the result of exact operands; `None` if it may overflow, or lose what is too small.
fn held(value: f64, error: f64) -> Option<Rough> {
    let is_exact = f64::from(value as f32) == value && (value == 0.0 || value.abs() >= f64::from(f32::MIN_POSITIVE));
    if error == 0.0 && is_exact {
        return Some((value, 0.0));
    }
    let error = error + UNIT * value.abs() + f64::from(f32::MIN_POSITIVE);
    let fits = !value.is_finite() || value.abs() + error < f64::from(f32::MAX);
    fits.then_some((value, if value.is_finite() { error } else { 0.0 }))
}

fn binary(op: Binary, (a, ea): Rough, (b, eb): Rough) -> Option<Rough> {
    match op {
        Binary::Add => held(a + b, ea + eb),
        Binary::Sub => held(a - b, ea + eb),
        Binary::Mul => held(a * b, a.abs() * eb + b.abs() * ea + ea * eb),
        Binary::Div if b.abs() <= eb => None,
        Binary::Div => held(a / b, (ea + (a / b).abs() * eb) / (b.abs() - eb) + 4.0 * UNIT * (a / b).abs()),
        Binary::Min => Some((a.min(b), ea.max(eb))),
        Binary::Max => Some((a.max(b), ea.max(eb))),
        Binary::Pow => {
            let value = a.powf(b);
            let inner = (b * a.log2()).abs();
            let relative = b.abs() * ea / (a - ea).max(0.0) + a.ln().abs() * eb + (16.0 + 8.0 * inner) * UNIT + inner * UNIT;
            held(value, value.abs() * relative)
        }
        Binary::Atan2 => held(a.atan2(b), (ea + eb) / (a.hypot(b) - ea - eb).max(0.0) + 4096.0 * UNIT * a.atan2(b).abs()),
        _ => None,
    }
}

fn unary(op: Unary, (a, ea): Rough) -> Option<Rough> {
    let f: fn(f64) -> f64 = match op {
        Unary::Neg => return Some((-a, ea)),
        Unary::Abs => return Some((a.abs(), ea)),
        Unary::Floor | Unary::Ceil | Unary::Round | Unary::Trunc => {
            let step: fn(f64) -> f64 = match op {
                Unary::Floor => f64::floor,
                Unary::Ceil => f64::ceil,
                Unary::Round => f64::round_ties_even,
                _ => f64::trunc,
            };
            let is_sure = step(a - ea) == step(a + ea) || ea == 0.0;
            return is_sure.then(|| (step(a), 0.0));
        }
        Unary::Exp => f64::exp,
        Unary::Exp2 => f64::exp2,
        Unary::Log => f64::ln,
        Unary::Log2 => f64::log2,
        Unary::Sqrt => f64::sqrt,
        Unary::InverseSqrt => |x| 1.0 / x.sqrt(),
        Unary::Sin => f64::sin,
        Unary::Cos => f64::cos,
        Unary::Tan => f64::tan,
        Unary::Asin => f64::asin,
        Unary::Acos => f64::acos,
        Unary::Atan => f64::atan,
        Unary::Sinh => f64::sinh,
        Unary::Cosh => f64::cosh,
        Unary::Tanh => f64::tanh,
        Unary::Asinh => f64::asinh,
        Unary::Acosh => f64::acosh,
        Unary::Atanh => f64::atanh,
        _ => return None,
    };
    let value = f(a);
    let moved = (f(a + ea) - value).abs().max((f(a - ea) - value).abs());
    // Sine and cosine turn back.
    let moved = if matches!(op, Unary::Sin | Unary::Cos) { at_most(ea, 2.0) } else { 1.5 * moved };
    let own = match op {
        Unary::Exp | Unary::Exp2 | Unary::Sinh | Unary::Cosh => (8.0 + 4.0 * a.abs()) * UNIT * (1.0 + value.abs()),
        Unary::Log | Unary::Log2 => 4.0 * UNIT * value.abs() + 4.0 * UNIT * 4.0,
        Unary::Sqrt | Unary::InverseSqrt => 4.0 * UNIT * value.abs(),
        Unary::Tanh => 8.0 * UNIT,
        Unary::Sin | Unary::Cos => 2f64.powi(-10) + UNIT * a.abs(),
        Unary::Tan => (2f64.powi(-10) + UNIT * a.abs()) * (1.0 + value * value),
        _ => 4096.0 * UNIT * (1.0 + value.abs()),
    };
    if moved.is_nan() {
        return if value.is_nan() && ea == 0.0 { Some((value, 0.0)) } else { None };
    }
    held(value, moved + own)
}

/// Smaller of `error` and `most`; `most` if `error` is NaN.
pub(super) fn at_most(error: f64, most: f64) -> f64 {
    if error < most { error } else { most }
}
