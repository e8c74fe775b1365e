//! Visibility of whole tiles of rows and keys, by interval arithmetic over the program of a mask.
//!
//! Integers and booleans have a least and a greatest value; what is not known is any value. So `none` and `all` are
//! certain, and `some` is the answer wherever the arithmetic cannot tell. Of a table of integers, the elements at an
//! interval of indices are read: those at its ends if the table is sorted, else all of them if they are few. Bits are
//! followed where they are the same in the whole tile. Floats are not followed.
//!
//! The interval of a u32 is that of the i32 with the same bits: sums, products and equality are the same for both. What
//! depends on the order takes it as unknown if it may be negative.

use std::fmt::Write;

use super::emit;
use super::program::{Binary, Field, Id, Op, Program, Scalar, Unary, needed};
use super::scalar;
use super::tile::{Interval, Status, Tile};

/// Any value of an i32 or a u32.
const ANY: Interval = [i32::MIN as i64, i32::MAX as i64];

/// Most elements of an unsorted table that are read for one interval of indices; see shaders/lib/interval.wgsl.
const MOST_READ: usize = 16;

/// Operations whose intervals are kept on the stack; longer programs allocate.
const FEW: usize = 64;

/// A mask's program on intervals.
#[derive(Debug)]
pub(crate) struct Intervals {
    steps: Vec<Step>,
    /// Those whose interval depends on the tile or on a table, and which the result needs.
    evaluated: Vec<Id>,
    /// Intervals of the constants.
    initial: Vec<Interval>,
}

/// Operation on intervals: a function of shaders/lib/interval.wgsl and its operands.
#[derive(Debug)]
struct Step {
    function: Function,
    operands: [Id; 3],
    count: usize,
    /// Type of the operation that it stands for.
    ty: Scalar,
    /// True if the operands are u32 whose order matters.
    is_ordered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Function {
    Constant(Interval),
    Field(Field),
    /// Elements of a table.
    Load(u32, Order),
    /// Number of elements of a table.
    Length(u32),
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Min,
    Max,
    Neg,
    Abs,
    Less,
    LessEqual,
    Equal,
    NotEqual,
    /// For booleans, like the two that follow.
    Not,
    And,
    Or,
    Select,
    /// The low bits below a power of two, by their mask.
    LowBits(u32),
    ShiftRight(u32),
    /// An operation on the bits of known operands.
    Bits(Binary),
    /// The operand itself.
    Same,
}

/// Order of the elements of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Sorted,
    Any,
}

impl Intervals {
    /// Turns each operation of a program into one on intervals. Floats become any value, which nothing reads. `sorted` is
    /// true for each table that is declared sorted.
    pub(super) fn new(program: &Program, sorted: &[bool]) -> Self {
        let nodes = &program.nodes;
        let constant = |id: Id| match nodes[id as usize].op {
            Op::Constant(bits) => Some(bits),
            _ => None,
        };
        let ty = |id: Id| nodes[id as usize].ty;
        let any = |ty| Function::Constant(if ty == Scalar::Bool { [0, 1] } else { ANY });
        let steps = nodes.iter().map(|node| {
            let unsigned = node.op.operands().any(|id| ty(id) == Scalar::U32);
            let float = node.op.operands().any(|id| ty(id) == Scalar::F32) || node.ty == Scalar::F32;
            let function = match node.op {
                _ if float => any(node.ty),
                Op::Constant(bits) => Function::Constant([i64::from(bits as i32); 2]),
                Op::Pair(field) => Function::Field(field),
                Op::Length(table) => Function::Length(table),
                Op::Load(table, _) => Function::Load(table, if sorted[table as usize] { Order::Sorted } else { Order::Any }),
                Op::Select(..) => Function::Select,
                Op::Convert(a) | Op::Bitcast(a) => match (ty(a), node.ty) {
                    (_, Scalar::I32 | Scalar::U32) | (Scalar::Bool, _) => Function::Same,
                    _ => any(node.ty),
                },
                Op::Unary(Unary::Neg, _) if !unsigned => Function::Neg,
                Op::Unary(Unary::Abs, _) if !unsigned => Function::Abs,
                Op::Unary(Unary::Abs, _) => Function::Same,
                Op::Unary(Unary::Not, _) if node.ty == Scalar::Bool => Function::Not,
                Op::Binary(Binary::And, ..) if node.ty == Scalar::Bool => Function::And,
                Op::Binary(Binary::Or, ..) if node.ty == Scalar::Bool => Function::Or,
                Op::Binary(Binary::And, a, b) => {
                    let mask = constant(b).or_else(|| constant(a)).filter(|mask| (mask + 1).is_power_of_two() && mask >> 31 == 0);
                    mask.map_or(Function::Bits(Binary::And), Function::LowBits)
                }
                Op::Binary(op @ Binary::ShiftRight, _, b) => constant(b).map_or(Function::Bits(op), |bits| Function::ShiftRight(bits & 31)),
                Op::Binary(Binary::Equal, ..) => Function::Equal,
                Op::Binary(Binary::NotEqual, ..) => Function::NotEqual,
                Op::Binary(Binary::Xor, ..) if node.ty == Scalar::Bool => Function::NotEqual,
                Op::Binary(op @ (Binary::Or | Binary::Xor | Binary::ShiftLeft), ..) => Function::Bits(op),
                // Unsigned operands above 2^31 are unknown: the larger of one and a known one may be either.
                Op::Binary(Binary::Max, ..) if unsigned => any(node.ty),
                Op::Binary(Binary::Add, ..) => Function::Add,
                Op::Binary(Binary::Sub, ..) => Function::Sub,
                Op::Binary(Binary::Mul, ..) => Function::Mul,
                Op::Binary(Binary::Div, ..) => Function::Div,
                Op::Binary(Binary::Rem, ..) => Function::Rem,
                Op::Binary(Binary::Min, ..) => Function::Min,
                Op::Binary(Binary::Max, ..) => Function::Max,
                Op::Binary(Binary::Less, ..) => Function::Less,
                Op::Binary(Binary::LessEqual, ..) => Function::LessEqual,
                _ => any(node.ty),
            };
            let most = match function {
                Function::Constant(_) | Function::Field(_) | Function::Length(_) => 0,
                Function::LowBits(_) | Function::ShiftRight(_) | Function::Load(..) => 1,
                _ => 3,
            };
            // The mask of low bits may stand on either side.
            let reads = |&id: &Id| !matches!(function, Function::LowBits(_)) || constant(id).is_none();
            let (mut operands, mut count) = ([0; 3], 0);
            for id in node.op.operands().filter(reads).take(most) {
                operands[count] = id;
                count += 1;
            }
            let by_order = matches!(
                function,
                Function::Div | Function::Rem | Function::Min | Function::Less | Function::LessEqual | Function::Load(..)
            );
            Step { function, operands, count, ty: node.ty, is_ordered: unsigned && by_order }
        });
        Self::of(steps.collect())
    }

    fn of(steps: Vec<Step>) -> Self {
        let initial = steps.iter().map(|step| if let Function::Constant(interval) = step.function { interval } else { ANY });
        let initial = initial.collect();
        let needed = needed(steps.len(), |id| steps[id].operands[..steps[id].count].iter().copied());
        let varies = |&id: &Id| needed[id as usize] && !matches!(steps[id as usize].function, Function::Constant(_));
        let evaluated = (0..steps.len() as Id).filter(varies).collect();
        Self { steps, evaluated, initial }
    }

    /// True if the result depends on what is not followed: it may be `Some` in every tile that shows none.
    pub(super) fn is_vague(&self) -> bool {
        let steps = &self.steps;
        let operands = |id: usize| steps[id].operands[..steps[id].count].iter().copied();
        let needed = needed(steps.len(), operands);
        // Operations that differ within a tile.
        let mut varies = Vec::with_capacity(steps.len());
        for (id, step) in steps.iter().enumerate() {
            let field = matches!(step.function, Function::Field(Field::Row | Field::Position | Field::Key | Field::KeyPosition));
            varies.push(field || operands(id).any(|operand| varies[operand as usize]));
        }
        steps.iter().enumerate().any(|(id, step)| {
            let unknown = match step.function {
                Function::Constant([least, most]) => least != most,
                Function::Load(_, Order::Any) => varies[id],
                _ => false,
            };
            needed[id] && unknown
        })
    }

    /// Evaluates the mask for all pairs of a tile.
    pub(super) fn status(&self, tile: &Tile, tables: &[&[u32]]) -> Status {
        let (mut few, mut many) = ([ANY; FEW], Vec::new());
        let values = match few.get_mut(..self.initial.len()) {
            Some(few) => few,
            None => {
                many.resize(self.initial.len(), ANY);
                &mut many[..]
            }
        };
        values.copy_from_slice(&self.initial);
        for &id in &self.evaluated {
            let step = &self.steps[id as usize];
            let at = |n: usize| match step.operands[..step.count].get(n).map(|&id| values[id as usize]) {
                Some(value) if !step.is_ordered || (value[0] >= 0 && value[1] < ANY[1]) => value,
                _ => ANY,
            };
            let value = match step.function {
                Function::Field(field) => tile[field as usize],
                Function::Length(table) => [tables[table as usize].len() as i64; 2],
                Function::Load(table, order) => elements(tables[table as usize], at(0), order, step.ty),
                function => evaluate(function, [at(0), at(1), at(2)], step.ty),
            };
            values[id as usize] = if value[0] >= ANY[0] && value[1] <= ANY[1] { value } else { ANY };
        }
        match values.last() {
            Some([_, 0]) => Status::None,
            Some([1, _]) => Status::All,
            _ => Status::Some,
        }
    }

    /// Writes `fn NAME(at: Tile) -> u32`; see [`super::status::TileRule::emit`].
    pub(super) fn emit(&self, text: &mut String, name: &str, first_table: u32) {
        let steps = &self.steps;
        let needed = needed(steps.len(), |id| steps[id].operands[..steps[id].count].iter().copied());
        let _ = writeln!(text, "fn {name}(at: Tile) -> u32 {{");
        for (id, step) in steps.iter().enumerate().filter(|&(id, _)| needed[id]) {
            let operand = |operand| if step.is_ordered { format!("interval_natural(v{operand})") } else { format!("v{operand}") };
            let operands: Vec<String> = step.operands[..step.count].iter().map(operand).collect();
            let call = |function: &str| format!("interval_{function}({})", operands.join(", "));
            let value = match step.function {
                Function::Constant(ANY) => "ANY".into(),
                Function::Constant([least, most]) => format!("vec2<i32>({least}, {most})"),
                Function::Field(field) => format!("at.{}", field.name()),
                Function::Length(table) => format!("vec2<i32>(i32({}))", emit::length(first_table + table)),
                Function::Load(table, order) => {
                    let (start, length) = (emit::start(first_table + table), emit::length(first_table + table));
                    let name = match (order, step.ty) {
                        (Order::Any, _) => "interval_elements",
                        (Order::Sorted, Scalar::U32) => "interval_natural_ends",
                        (Order::Sorted, _) => "interval_ends",
                    };
                    format!("{name}({}, {start}, {length})", operands.join(", "))
                }
                Function::LowBits(mask) => format!("interval_low_bits({}, {mask})", operands.join(", ")),
                Function::ShiftRight(bits) if step.ty == Scalar::U32 => format!("interval_shift_right({}, {bits}u)", operands.join(", ")),
                Function::ShiftRight(bits) => format!("{} >> vec2<u32>({bits}u)", operands.join(", ")),
                Function::Bits(op) => {
                    let (a, b) = (&operands[0], &operands[1]);
                    let bits = match op {
                        Binary::And => format!("{a}.x & {b}.x"),
                        Binary::Or => format!("{a}.x | {b}.x"),
                        Binary::Xor => format!("{a}.x ^ {b}.x"),
                        Binary::ShiftLeft => format!("{a}.x << (bitcast<u32>({b}.x) & 31u)"),
                        _ if step.ty == Scalar::U32 => format!("bitcast<i32>(bitcast<u32>({a}.x) >> (bitcast<u32>({b}.x) & 31u))"),
                        _ => format!("{a}.x >> (bitcast<u32>({b}.x) & 31u)"),
                    };
                    format!("interval_bits({a}, {b}, {bits})")
                }
                Function::Same => operands.join(", "),
                Function::Add => call("add"),
                Function::Sub => call("sub"),
                Function::Mul => call("mul"),
                Function::Div => call("div"),
                Function::Rem => call("rem"),
                Function::Min | Function::And => call("min"),
                Function::Max | Function::Or => call("max"),
                Function::Neg => call("neg"),
                Function::Abs => call("abs"),
                Function::Less => call("less"),
                Function::LessEqual => call("less_equal"),
                Function::Equal => call("equal"),
                Function::NotEqual => call("not_equal"),
                Function::Not => call("not"),
                Function::Select => call("select"),
            };
            let _ = writeln!(text, "    let v{id} = {value};");
        }
        let _ = writeln!(text, "    return status_of(v{});\n}}", steps.len().saturating_sub(1));
    }
}

/// Least and greatest element of a table at an interval of indices; any value if more would have to be read than is worth it.
fn elements(table: &[u32], index: Interval, order: Order, ty: Scalar) -> Interval {
    let last = table.len() - 1;
    let [first, end] = index.map(|index| (index.max(0) as usize).min(last));
    // An unknown index may be a u32 beyond the greatest i32.
    let end = if index[1] == ANY[1] { last } else { end };
    let element = |at: usize| i64::from(table[at] as i32);
    match order {
        Order::Sorted if ty == Scalar::U32 && element(first).min(element(end)) < 0 => ANY,
        Order::Sorted => [element(first), element(end)],
        Order::Any if end - first >= MOST_READ => ANY,
        Order::Any => (first..=end).map(element).fold([ANY[1], ANY[0]], |[least, most], x| [least.min(x), most.max(x)]),
    }
}

/// `a / b` for b > 0, by a shift where b is a power of two.
fn quotient(a: i64, b: i64) -> i64 {
    if b & (b - 1) == 0 && a >= 0 { a >> b.trailing_zeros() } else { a / b }
}

fn evaluate(function: Function, [a, b, c]: [Interval; 3], ty: Scalar) -> Interval {
    let hull = |all: [i64; 4]| [all.into_iter().min().unwrap_or(ANY[0]), all.into_iter().max().unwrap_or(ANY[1])];
    let truth = |least: bool, most: bool| [i64::from(least), i64::from(most)];
    match function {
        Function::Constant(interval) => interval,
        Function::Add => [a[0] + b[0], a[1] + b[1]],
        Function::Sub => [a[0] - b[1], a[1] - b[0]],
        Function::Mul => hull([a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1]]),
        Function::Div if (b[0] <= 0 && b[1] >= 0) || a[0] == ANY[0] => ANY,
        // Known divisors are most common, and a division takes as long as ten other steps.
        Function::Div if b[0] == b[1] && b[0] > 0 => [quotient(a[0], b[0]), quotient(a[1], b[0])],
        Function::Div => hull([a[0] / b[0], a[0] / b[1], a[1] / b[0], a[1] / b[1]]),
        Function::Rem if b[0] != b[1] || b[0] <= 0 => ANY,
        Function::Rem => {
            let block = quotient(a[0], b[0]);
            let one_block = block == quotient(a[1], b[0]) && (a[0] >= 0 || a[1] <= 0);
            let most = b[0] - 1;
            match one_block {
                true => a.map(|x| x - block * b[0]),
                false => [if a[0] < 0 { -most } else { 0 }, if a[1] > 0 { most } else { 0 }],
            }
        }
        Function::Min => [a[0].min(b[0]), a[1].min(b[1])],
        Function::Max => [a[0].max(b[0]), a[1].max(b[1])],
        Function::Neg => [-a[1], -a[0]],
        Function::Abs if a[0] >= 0 => a,
        Function::Abs if a[1] <= 0 => [-a[1], -a[0]],
        Function::Abs => [0, a[1].max(-a[0])],
        Function::Less => truth(a[1] < b[0], a[0] < b[1]),
        Function::LessEqual => truth(a[1] <= b[0], a[0] <= b[1]),
        Function::Equal => truth(a[0] == a[1] && a == b, a[0] <= b[1] && b[0] <= a[1]),
        Function::NotEqual => truth(a[1] < b[0] || b[1] < a[0], a[0] != a[1] || a != b),
        Function::Not => [1 - a[1], 1 - a[0]],
        Function::And => [a[0].min(b[0]), a[1].min(b[1])],
        Function::Or => [a[0].max(b[0]), a[1].max(b[1])],
        Function::Select => match a {
            [1, _] => b,
            [_, 0] => c,
            _ => [b[0].min(c[0]), b[1].max(c[1])],
        },
        Function::LowBits(mask) => {
            let mask = i64::from(mask);
            if a[0] & !mask == a[1] & !mask { [a[0] & mask, a[1] & mask] } else { [0, mask] }
        }
        Function::ShiftRight(bits) if ty == Scalar::U32 && a[0] == a[1] => [i64::from(a[0] as u32 >> bits); 2],
        Function::ShiftRight(_) if ty == Scalar::U32 && a[0] < 0 => ANY,
        Function::ShiftRight(bits) => [a[0] >> bits, a[1] >> bits],
        Function::Bits(op) if a[0] == a[1] && b[0] == b[1] => {
            [i64::from(scalar::apply(Op::Binary(op, 0, 0), ty, ty, [a[0] as u32, b[0] as u32, 0]) as i32); 2]
        }
        Function::Bits(_) => ANY,
        Function::Same | Function::Field(_) | Function::Length(_) | Function::Load(..) => a,
    }
}
