//! Values of expressions: literals, variables, and operations on them.

use naga::{Expression, Handle, Literal, TypeInner};

use super::lower::{Found, Frame, Lowering, Result, Step};
use super::program::{Binary, Id, Op, Scalar, Unary};

impl<'a> Lowering<'a> {
    pub(super) fn expression(&mut self, frame: &mut Frame<'a>, handle: Handle<Expression>) -> Result<Found> {
        self.visit()?;
        let span = frame.function.expressions.get_span(handle);
        if span.is_defined() {
            self.place = span;
        }
        self.builder.place = self.place.to_range().map_or(0, |range| range.start as u32);
        let value = match frame.function.expressions[handle] {
            Expression::FunctionArgument(index) => frame.arguments[index as usize].clone(),
            Expression::GlobalVariable(variable) => return Ok(Found::Table(table_of(&self.module.global_variables[variable]))),
            Expression::LocalVariable(variable) => {
                let len = frame.locals.get(&variable).map_or(0, Vec::len);
                return Ok(Found::Local { variable, first: Step::default(), len });
            }
            Expression::AccessIndex { base, index } => return self.part(frame, base, index as usize),
            Expression::Access { base, index } => return self.element(frame, base, index),
            Expression::Load { pointer } => match self.found(frame, pointer)? {
                Found::Local { variable, first, len } => self.load_local(frame, variable, &first, len),
                Found::Element(table, index) => {
                    let ty = self.table_type(table)?;
                    vec![self.builder.push(Op::Load(table, index), ty)]
                }
                _ => return self.refuse("reads a whole table"),
            },
            Expression::ArrayLength(pointer) => match self.found(frame, pointer)? {
                Found::Table(table) => vec![self.builder.push(Op::Length(table), Scalar::U32)],
                _ => return self.refuse("asks for the length of what is not a table"),
            },
            Expression::Unary { op, expr } => {
                let op = match op {
                    naga::UnaryOperator::Negate => Unary::Neg,
                    naga::UnaryOperator::LogicalNot | naga::UnaryOperator::BitwiseNot => Unary::Not,
                };
                self.value(frame, expr)?.into_iter().map(|x| self.builder.unary(op, x)).collect()
            }
            Expression::Binary { op, left, right } => {
                let [left, right] = [self.value(frame, left)?, self.value(frame, right)?];
                self.binary(op, &left, &right)?
            }
            Expression::Select { condition, accept, reject } => {
                let conditions = self.value(frame, condition)?;
                let [accept, reject] = [self.value(frame, accept)?, self.value(frame, reject)?];
                let condition = |at: usize| conditions[at.min(conditions.len() - 1)];
                (0..accept.len()).map(|at| self.builder.select(condition(at), accept[at], reject[at])).collect()
            }
            Expression::Relational { fun, argument } => {
                let values = self.value(frame, argument)?;
                let op = match fun {
                    naga::RelationalFunction::All => Binary::And,
                    naga::RelationalFunction::Any => Binary::Or,
                    _ => return self.refuse(format!("{fun:?} is not supported")),
                };
                vec![values.into_iter().reduce(|a, b| self.builder.binary(op, a, b)).unwrap_or(0)]
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let arguments = [Some(arg), arg1, arg2, arg3].into_iter().flatten();
                let arguments = arguments.map(|argument| self.value(frame, argument)).collect::<Result<Vec<_>>>()?;
                self.math(fun, &arguments)?
            }
            Expression::As { expr, kind, convert } => {
                let to = self.scalar(kind, convert.unwrap_or(4))?;
                let op = if convert.is_some() { Op::Convert } else { Op::Bitcast };
                self.value(frame, expr)?.into_iter().map(|x| self.builder.push(op(x), to)).collect()
            }
            Expression::Compose { ty, ref components } => {
                self.scalars(ty)?; // no matrices
                components.iter().map(|&part| self.value(frame, part)).collect::<Result<Vec<_>>>()?.concat()
            }
            Expression::Splat { size, value } => self.value(frame, value)?.repeat(size as usize),
            Expression::Swizzle { size, vector, pattern } => {
                let vector = self.value(frame, vector)?;
                pattern[..size as usize].iter().map(|&at| vector[at as usize]).collect()
            }
            ref constant => self.constant(&frame.function.expressions, constant)?,
        };
        Ok(Found::Value(value))
    }

    /// Literals, constants, and what is made of them.
    pub(super) fn constant(&mut self, arena: &naga::Arena<Expression>, expression: &Expression) -> Result<Vec<Id>> {
        self.visit()?;
        Ok(match expression {
            Expression::Literal(literal) => {
                let (ty, bits) = match *literal {
                    Literal::F32(x) => (Scalar::F32, x.to_bits()),
                    Literal::I32(x) => (Scalar::I32, x as u32),
                    Literal::U32(x) => (Scalar::U32, x),
                    Literal::Bool(x) => (Scalar::Bool, x.into()),
                    _ => return self.refuse("uses numbers other than f32, i32, u32 and bool"),
                };
                vec![self.builder.constant(ty, bits)]
            }
            Expression::Constant(constant) => {
                let init = self.module.constants[*constant].init;
                self.constant(&self.module.global_expressions, &self.module.global_expressions[init])?
            }
            Expression::ZeroValue(ty) => self.zeros(*ty)?,
            Expression::Compose { ty, components } => {
                self.scalars(*ty)?;
                components.iter().map(|&part| self.constant(arena, &arena[part])).collect::<Result<Vec<_>>>()?.concat()
            }
            Expression::Splat { size, value } => self.constant(arena, &arena[*value])?.repeat(*size as usize),
            _ => return self.refuse("has an expression that a function of a pair cannot have"),
        })
    }

    pub(super) fn table_type(&self, table: u32) -> Result<Scalar> {
        let mut variables = self.module.global_variables.iter().map(|(_, variable)| variable);
        let variable = variables.find(|variable| table_of(variable) == table).map(|variable| variable.ty);
        match variable.map(|ty| &self.module.types[ty].inner) {
            Some(TypeInner::Array { base, .. }) => Ok(self.scalars(*base)?[0]),
            _ => self.refuse("reads what is not a table"),
        }
    }
}

/// Number of the table that a variable stands for, its binding. naga orders variables by their first use.
fn table_of(variable: &naga::GlobalVariable) -> u32 {
    variable.binding.as_ref().map_or(0, |binding| binding.binding)
}
