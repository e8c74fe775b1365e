//! Users' functions in f64, one pair at a time: naga's functions, statement by statement, with the derivative by the score,
//! or by the element of a table, beside every float.

use std::cell::Cell;
use std::collections::HashMap;

use naga::{Expression, Function, Handle, Literal, LocalVariable, Module, Statement, SwitchValue, TypeInner};

use super::walk_value::Value::{self, Bool, F32, I32, Parts, U32};
use super::walk_value::{both, each, selected, times, zero_of};
use crate::custom::Functions;

/// Table of a term, by the bits of its elements.
pub(crate) type TableWords<'a> = &'a [u32];

/// Runs a function of a term: `visible`, `score` or `slope`, on floats and the fields of a pair.
fn run(functions: &Functions, name: &str, tables: &[TableWords<'_>], floats: &[Value], pair: [i32; 9]) -> Value {
    let walker = Walker { module: &functions.module, tables, seed: None, read: Cell::new(None) };
    walker.run(functions, name, floats, pair)
}

/// Runs `score` on a float. Returns the index of the element of `table` that it reads on its way, and the derivative of the
/// result by this element; `None` if it reads none.
pub(crate) fn by_table(functions: &Functions, tables: &[TableWords<'_>], table: usize, x: f64, pair: [i32; 9]) -> Option<(usize, f64)> {
    let walker = Walker { module: &functions.module, tables, seed: Some(table), read: Cell::new(None) };
    let F32(_, by_element) = walker.run(functions, "score", &[F32(x, 0.0)], pair) else { return None };
    walker.read.get().map(|index| (index as usize, by_element))
}

/// True if the term shows the pair.
pub(crate) fn visible(functions: &Functions, tables: &[TableWords<'_>], pair: [i32; 9]) -> bool {
    functions.function("visible").is_none() || run(functions, "visible", tables, &[], pair) == Bool(true)
}

/// Score after the term, and its derivative by the score before.
pub(crate) fn score(functions: &Functions, tables: &[TableWords<'_>], x: f64, pair: [i32; 9]) -> (f64, f64) {
    if functions.function("score").is_none() || x.is_nan() {
        return (x, 1.0);
    }
    let F32(y, mut slope) = run(functions, "score", tables, &[F32(x, 1.0)], pair) else { return (f64::NAN, f64::NAN) };
    if functions.function("slope").is_some()
        && let F32(own, _) = run(functions, "slope", tables, &[F32(x, 0.0), F32(y, 0.0)], pair)
    {
        slope = own;
    }
    (y, slope)
}

struct Walker<'a> {
    module: &'a Module,
    tables: &'a [TableWords<'a>],
    /// Table by whose elements floats are derived; else they are by the score.
    seed: Option<usize>,
    /// Index of the element that was read of this table.
    read: Cell<Option<u32>>,
}

struct Frame<'a> {
    function: &'a Function,
    arguments: &'a [Value],
    values: HashMap<Handle<Expression>, Value>,
    locals: HashMap<Handle<LocalVariable>, Value>,
}

/// End of a block.
enum Flow {
    On,
    Break,
    Continue,
    Return(Option<Value>),
}

impl Walker<'_> {
    fn run(&self, functions: &Functions, name: &str, floats: &[Value], pair: [i32; 9]) -> Value {
        let function = functions.function(name).expect("the caller asked whether it is there");
        let pair = Parts(pair.map(I32).to_vec());
        self.call(function, &[floats, &[pair]].concat())
    }

    fn call(&self, function: &Function, arguments: &[Value]) -> Value {
        let mut frame = Frame { function, arguments, values: HashMap::new(), locals: HashMap::new() };
        for (handle, variable) in function.local_variables.iter() {
            let value = match variable.init {
                Some(init) => self.expression(&mut frame, init),
                None => self.zero(variable.ty),
            };
            frame.locals.insert(handle, value);
        }
        match self.block(&mut frame, &function.body) {
            Flow::Return(Some(value)) => value,
            _ => Bool(false),
        }
    }

    fn zero(&self, ty: Handle<naga::Type>) -> Value {
        match &self.module.types[ty].inner {
            TypeInner::Scalar(scalar) => zero_of(scalar.kind),
            TypeInner::Vector { size, scalar } => Parts(vec![zero_of(scalar.kind); *size as usize]),
            TypeInner::Array { base, size: naga::ArraySize::Constant(count), .. } => Parts(vec![self.zero(*base); count.get() as usize]),
            TypeInner::Struct { members, .. } => Parts(members.iter().map(|member| self.zero(member.ty)).collect()),
            other => unreachable!("refused when the text was read: {other:?}"),
        }
    }

    fn block(&self, frame: &mut Frame<'_>, block: &naga::Block) -> Flow {
        for statement in block.iter() {
            match self.statement(frame, statement) {
                Flow::On => {}
                flow => return flow,
            }
        }
        Flow::On
    }

    fn statement(&self, frame: &mut Frame<'_>, statement: &Statement) -> Flow {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    let value = self.compute(frame, handle);
                    frame.values.insert(handle, value);
                }
            }
            Statement::Block(block) => return self.block(frame, block),
            Statement::If { condition, accept, reject } => {
                let accepts = self.expression(frame, *condition) == Bool(true);
                return self.block(frame, if accepts { accept } else { reject });
            }
            Statement::Switch { selector, cases } => {
                let selector = self.expression(frame, *selector);
                let is = |case: &naga::SwitchCase| match case.value {
                    SwitchValue::I32(value) => selector == I32(value),
                    SwitchValue::U32(value) => selector == U32(value),
                    SwitchValue::Default => false,
                };
                let default = cases.iter().position(|case| case.value == SwitchValue::Default);
                let Some(first) = cases.iter().position(is).or(default) else { return Flow::On };
                for case in &cases[first..] {
                    match self.block(frame, &case.body) {
                        Flow::On if case.fall_through => {}
                        Flow::On | Flow::Break => break,
                        flow => return flow,
                    }
                }
            }
            Statement::Loop { body, continuing, break_if } => loop {
                match self.block(frame, body) {
                    Flow::On | Flow::Continue => {}
                    Flow::Break => break,
                    flow @ Flow::Return(_) => return flow,
                }
                self.block(frame, continuing);
                if break_if.is_some_and(|condition| self.expression(frame, condition) == Bool(true)) {
                    break;
                }
            },
            Statement::Break => return Flow::Break,
            Statement::Continue => return Flow::Continue,
            Statement::Return { value } => return Flow::Return(value.map(|value| self.expression(frame, value))),
            Statement::Store { pointer, value } => {
                let value = self.expression(frame, *value);
                if let Value::Place(variable, way) = self.expression(frame, *pointer) {
                    let mut place = frame.locals.get_mut(&variable).expect("declared");
                    for at in way {
                        let Parts(parts) = place else { unreachable!("naga checked the types") };
                        place = &mut parts[at];
                    }
                    *place = value;
                }
            }
            Statement::Call { function, arguments, result } => {
                let arguments: Vec<Value> = arguments.iter().map(|&argument| self.expression(frame, argument)).collect();
                let value = self.call(&self.module.functions[*function], &arguments);
                if let Some(result) = result {
                    frame.values.insert(*result, value);
                }
            }
            other => unreachable!("refused when the text was read: {other:?}"),
        }
        Flow::On
    }

    /// Value of an expression that was computed, or is a constant.
    fn expression(&self, frame: &mut Frame<'_>, handle: Handle<Expression>) -> Value {
        match frame.values.get(&handle) {
            Some(value) => value.clone(),
            None => self.compute(frame, handle),
        }
    }

    fn compute(&self, frame: &mut Frame<'_>, handle: Handle<Expression>) -> Value {
        let function = frame.function;
        match function.expressions[handle] {
            Expression::FunctionArgument(index) => frame.arguments[index as usize].clone(),
            Expression::GlobalVariable(variable) => Value::Table(table_of(&self.module.global_variables[variable])),
            Expression::LocalVariable(variable) => Value::Place(variable, Vec::new()),
            Expression::AccessIndex { base, index } => self.part(self.expression(frame, base), index as usize, None),
            Expression::Access { base, index } => {
                let (base_value, index) = (self.expression(frame, base), self.expression(frame, index));
                let index = match index {
                    I32(index) => index.max(0) as u32,
                    U32(index) => index,
                    other => unreachable!("naga checked the types: {other:?}"),
                };
                self.part(base_value, index as usize, Some(frame))
            }
            Expression::Load { pointer } => match self.expression(frame, pointer) {
                Value::Element(table, index) => self.read(table, index),
                Value::Place(variable, way) => way.into_iter().fold(frame.locals[&variable].clone(), |value, at| match value {
                    Parts(mut parts) => parts.swap_remove(at),
                    other => other,
                }),
                other => other,
            },
            Expression::ArrayLength(pointer) => match self.expression(frame, pointer) {
                Value::Table(table) => U32(self.tables[table].len() as u32),
                other => unreachable!("refused when the text was read: {other:?}"),
            },
            Expression::Unary { op, expr } => each(self.expression(frame, expr), |x| match (op, x) {
                (naga::UnaryOperator::Negate, F32(x, d)) => F32(-x, -d),
                (naga::UnaryOperator::Negate, I32(x)) => I32(x.wrapping_neg()),
                (_, Bool(x)) => Bool(!x),
                (_, I32(x)) => I32(!x),
                (_, U32(x)) => U32(!x),
                (_, other) => unreachable!("naga checked the types: {other:?}"),
            }),
            Expression::Binary { op, left, right } => {
                let (left, right) = (self.expression(frame, left), self.expression(frame, right));
                both(left, right, |a, b| binary(op, a, b))
            }
            Expression::Select { condition, accept, reject } => {
                let condition = self.expression(frame, condition);
                let (accept, reject) = (self.expression(frame, accept), self.expression(frame, reject));
                selected(condition, accept, reject)
            }
            Expression::Relational { fun, argument } => {
                let parts = match self.expression(frame, argument) {
                    Parts(parts) => parts,
                    one => vec![one],
                };
                Bool(match fun {
                    naga::RelationalFunction::All => parts.iter().all(|part| *part == Bool(true)),
                    _ => parts.contains(&Bool(true)),
                })
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let arguments = [Some(arg), arg1, arg2, arg3].into_iter().flatten();
                let arguments: Vec<Value> = arguments.map(|argument| self.expression(frame, argument)).collect();
                super::walk_math::math(fun, &arguments)
            }
            Expression::As { expr, kind, convert } => {
                each(self.expression(frame, expr), |x| if convert.is_some() { converted(x, kind) } else { recast(x, kind) })
            }
            Expression::Compose { ty, ref components } => {
                let parts: Vec<Value> = components.iter().map(|&part| self.expression(frame, part)).collect();
                self.composed(ty, parts)
            }
            Expression::Splat { size, value } => Parts(vec![self.expression(frame, value); size as usize]),
            Expression::Swizzle { size, vector, pattern } => {
                let Parts(parts) = self.expression(frame, vector) else { unreachable!("naga checked the types") };
                Parts(pattern[..size as usize].iter().map(|&at| parts[at as usize].clone()).collect())
            }
            ref constant => self.constant(&function.expressions, constant),
        }
    }

    /// Vectors are made of numbers and vectors, other composites of their parts.
    fn composed(&self, ty: Handle<naga::Type>, parts: Vec<Value>) -> Value {
        match self.module.types[ty].inner {
            TypeInner::Vector { .. } => Parts(
                parts
                    .into_iter()
                    .flat_map(|part| match part {
                        Parts(parts) => parts,
                        one => vec![one],
                    })
                    .collect(),
            ),
            _ => Parts(parts),
        }
    }

    fn constant(&self, arena: &naga::Arena<Expression>, expression: &Expression) -> Value {
        match expression {
            Expression::Literal(Literal::F32(x)) => F32((*x).into(), 0.0),
            Expression::Literal(Literal::I32(x)) => I32(*x),
            Expression::Literal(Literal::U32(x)) => U32(*x),
            Expression::Literal(Literal::Bool(x)) => Bool(*x),
            Expression::Constant(constant) => {
                let all = &self.module.global_expressions;
                self.constant(all, &all[self.module.constants[*constant].init])
            }
            Expression::ZeroValue(ty) => self.zero(*ty),
            Expression::Compose { ty, components } => {
                self.composed(*ty, components.iter().map(|&part| self.constant(arena, &arena[part])).collect())
            }
            Expression::Splat { size, value } => Parts(vec![self.constant(arena, &arena[*value]); *size as usize]),
            other => unreachable!("refused when the text was read: {other:?}"),
        }
    }

    /// Element of a table, or part of a value or of a variable; the nearest one where the index is outside.
    fn part(&self, base: Value, index: usize, frame: Option<&Frame<'_>>) -> Value {
        match base {
            Value::Table(table) => Value::Element(table, (index as u32).min(self.tables[table].len() as u32 - 1)),
            Parts(parts) => parts[index.min(parts.len() - 1)].clone(),
            Value::Place(variable, mut way) => {
                let last = frame.map(|frame| {
                    let whole = way.iter().fold(&frame.locals[&variable], |value, &at| match value {
                        Parts(parts) => &parts[at],
                        other => other,
                    });
                    if let Parts(parts) = whole { parts.len() - 1 } else { 0 }
                });
                way.push(index.min(last.unwrap_or(index)));
                Value::Place(variable, way)
            }
            other => unreachable!("naga checked the types: {other:?}"),
        }
    }

    fn read(&self, table: usize, index: u32) -> Value {
        let word = self.tables[table][index as usize];
        let mut variables = self.module.global_variables.iter().map(|(_, variable)| variable);
        let variable = variables.find(|variable| table_of(variable) == table).map(|variable| variable.ty);
        let base = variable.map(|ty| &self.module.types[ty].inner);
        let Some(TypeInner::Array { base, .. }) = base else { unreachable!("tables are arrays") };
        let value = recast(U32(word), self.module.types[*base].inner.scalar_kind().expect("tables are of numbers"));
        match value {
            F32(x, _) if self.seed == Some(table) => {
                self.read.set(Some(index));
                F32(x, 1.0)
            }
            value => value,
        }
    }
}

/// Tables are bound in their order.
fn table_of(variable: &naga::GlobalVariable) -> usize {
    variable.binding.as_ref().map_or(0, |binding| binding.binding as usize)
}

fn binary(op: naga::BinaryOperator, a: Value, b: Value) -> Value {
    use naga::BinaryOperator as Op;
    match (op, a, b) {
        (Op::Equal, a, b) => Bool(same(&a, &b)),
        (Op::NotEqual, a, b) => Bool(!same(&a, &b)),
        (Op::Add, F32(a, da), F32(b, db)) => F32(a + b, da + db),
        (Op::Subtract, F32(a, da), F32(b, db)) => F32(a - b, da - db),
        (Op::Multiply, F32(a, da), F32(b, db)) => F32(a * b, times(da, b) + times(db, a)),
        (Op::Divide, F32(a, da), F32(b, db)) => F32(a / b, times(da - times(db, a / b), 1.0 / b)),
        (Op::Modulo, F32(a, da), F32(b, db)) => {
            let whole = (a / b).trunc();
            F32(a - b * whole, da - times(db, whole))
        }
        (Op::Less, F32(a, _), F32(b, _)) => Bool(a < b),
        (Op::LessEqual, F32(a, _), F32(b, _)) => Bool(a <= b),
        (Op::Greater, F32(a, _), F32(b, _)) => Bool(a > b),
        (Op::GreaterEqual, F32(a, _), F32(b, _)) => Bool(a >= b),
        (Op::And | Op::LogicalAnd, Bool(a), Bool(b)) => Bool(a & b),
        (Op::InclusiveOr | Op::LogicalOr, Bool(a), Bool(b)) => Bool(a | b),
        (Op::ShiftLeft, I32(a), U32(b)) => I32(a.wrapping_shl(b)),
        (Op::ShiftRight, I32(a), U32(b)) => I32(a.wrapping_shr(b)),
        (op, I32(a), I32(b)) => match op {
            Op::Add => I32(a.wrapping_add(b)),
            Op::Subtract => I32(a.wrapping_sub(b)),
            Op::Multiply => I32(a.wrapping_mul(b)),
            Op::Divide => I32(if b == 0 { a } else { a.wrapping_div(b) }),
            Op::Modulo => I32(if b == 0 { 0 } else { a.wrapping_rem(b) }),
            Op::Less => Bool(a < b),
            Op::LessEqual => Bool(a <= b),
            Op::Greater => Bool(a > b),
            Op::GreaterEqual => Bool(a >= b),
            Op::And => I32(a & b),
            Op::InclusiveOr => I32(a | b),
            Op::ExclusiveOr => I32(a ^ b),
            other => unreachable!("naga checked the types: {other:?}"),
        },
        (op, U32(a), U32(b)) => match op {
            Op::Add => U32(a.wrapping_add(b)),
            Op::Subtract => U32(a.wrapping_sub(b)),
            Op::Multiply => U32(a.wrapping_mul(b)),
            Op::Divide => U32(a.checked_div(b).unwrap_or(a)),
            Op::Modulo => U32(a.checked_rem(b).unwrap_or(0)),
            Op::Less => Bool(a < b),
            Op::LessEqual => Bool(a <= b),
            Op::Greater => Bool(a > b),
            Op::GreaterEqual => Bool(a >= b),
            Op::And => U32(a & b),
            Op::InclusiveOr => U32(a | b),
            Op::ExclusiveOr => U32(a ^ b),
            Op::ShiftLeft => U32(a.wrapping_shl(b)),
            Op::ShiftRight => U32(a.wrapping_shr(b)),
            other => unreachable!("naga checked the types: {other:?}"),
        },
        (op, a, b) => unreachable!("naga checked the types: {a:?} {op:?} {b:?}"),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (F32(a, _), F32(b, _)) => a == b,
        (a, b) => a == b,
    }
}

/// Converts by value: saturating at the last f32 that fits, NaN to 0.
fn converted(x: Value, kind: naga::ScalarKind) -> Value {
    use naga::ScalarKind as Kind;
    match (x, kind) {
        (F32(x, _), Kind::Sint) if x.is_nan() => I32(0),
        (F32(x, _), Kind::Uint) if x.is_nan() => U32(0),
        (F32(x, _), Kind::Sint) => I32(x.min(2_147_483_520.0) as i32),
        (F32(x, _), Kind::Uint) => U32(x.min(4_294_967_040.0) as u32),
        (F32(x, _), Kind::Bool) => Bool(x != 0.0),
        (I32(x), Kind::Float) => F32((x as f32).into(), 0.0),
        (U32(x), Kind::Float) => F32((x as f32).into(), 0.0),
        (Bool(x), Kind::Float) => F32(x.into(), 0.0),
        (I32(x), Kind::Uint) => U32(x as u32),
        (U32(x), Kind::Sint) => I32(x as i32),
        (Bool(x), Kind::Sint) => I32(x.into()),
        (Bool(x), Kind::Uint) => U32(x.into()),
        (I32(x), Kind::Bool) => Bool(x != 0),
        (U32(x), Kind::Bool) => Bool(x != 0),
        (x, _) => x,
    }
}

/// Keeps the bits and changes the type; a float is first rounded to f32.
fn recast(x: Value, kind: naga::ScalarKind) -> Value {
    let bits = match x {
        F32(..) if kind == naga::ScalarKind::Float => return x,
        F32(x, _) => (x as f32).to_bits(),
        I32(x) => x as u32,
        U32(x) => x,
        other => return other,
    };
    match kind {
        naga::ScalarKind::Sint => I32(bits as i32),
        naga::ScalarKind::Uint => U32(bits),
        _ => F32(f32::from_bits(bits).into(), 0.0),
    }
}
