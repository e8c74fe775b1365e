//! Lowering of expressions: each has a register and the steps that compute it, or is a pointer.

use std::collections::HashMap;

use naga::valid::FunctionInfo;
use naga::{AddressSpace, Arena, Expression, Handle, Literal, LocalVariable, Module, RelationalFunction, ScalarKind, TypeInner};

use crate::Error;
use crate::eval::{Pure, What};
use crate::lower::Lowerer;
use crate::math;
use crate::program::{Count, Index, Pointer, Space, Step, Vector};
use crate::types::{self, Layout};
use crate::value::{Kind, Value};

/// Lowered expressions of a function, by the index of their handle.
#[derive(Default)]
pub(crate) struct Lowered {
    pub(crate) values: Vec<Option<Value>>,
    pub(crate) pointers: Vec<Option<Pointer>>,
    pub(crate) steps: Vec<Vec<Step>>,
    pub(crate) arguments: Vec<Value>,
}

impl Lowered {
    pub(crate) fn value(&self, handle: Handle<Expression>) -> Result<Value, Error> {
        self.values[handle.index()].ok_or_else(|| Error::Unsupported("a pointer where a value is expected".into()))
    }

    pub(crate) fn pointer(&self, handle: Handle<Expression>) -> Result<Pointer, Error> {
        self.pointers[handle.index()].clone().ok_or_else(|| Error::Unsupported("a value where a pointer is expected".into()))
    }
}

/// Returns the words of a constant expression of the module.
pub(crate) fn constant_words(module: &Module, handle: Handle<Expression>) -> Result<Vec<u32>, Error> {
    words_of(module, &module.global_expressions, handle)
}

/// Returns the words of a constant expression of `arena`.
pub(crate) fn words_of(module: &Module, arena: &Arena<Expression>, handle: Handle<Expression>) -> Result<Vec<u32>, Error> {
    match &arena[handle] {
        Expression::Literal(literal) => Ok(vec![literal_word(*literal)?.0]),
        Expression::Constant(constant) => constant_words(module, module.constants[*constant].init),
        Expression::ZeroValue(ty) => Ok(vec![0; types::of(module, *ty)? as usize]),
        Expression::Compose { components, .. } => {
            Ok(components.iter().map(|&part| words_of(module, arena, part)).collect::<Result<Vec<_>, _>>()?.concat())
        }
        Expression::Splat { size, value } => Ok(words_of(module, arena, *value)?.repeat(*size as usize)),
        other => Err(Error::Unsupported(format!("the constant expression {other:?}"))),
    }
}

fn literal_word(literal: Literal) -> Result<(u32, Kind), Error> {
    match literal {
        Literal::F32(x) => Ok((x.to_bits(), Kind::F32)),
        Literal::U32(x) => Ok((x, Kind::U32)),
        Literal::I32(x) => Ok((x as u32, Kind::I32)),
        Literal::Bool(x) => Ok((x.into(), Kind::Bool)),
        other => Err(Error::Unsupported(format!("the literal {other:?}"))),
    }
}

fn layout_of(space: Space) -> Layout {
    if matches!(space, Space::Buffer(_)) { Layout::Host } else { Layout::Flat }
}

/// Function whose expressions are being lowered.
struct Scope<'a> {
    function: &'a naga::Function,
    info: &'a FunctionInfo,
    variables: &'a HashMap<Handle<LocalVariable>, u32>,
}

impl Lowerer<'_> {
    pub(crate) fn expressions(
        &mut self,
        function: &naga::Function,
        info: &FunctionInfo,
        variables: &HashMap<Handle<LocalVariable>, u32>,
    ) -> Result<Lowered, Error> {
        let mut lowered = Lowered::default();
        let scope = Scope { function, info, variables };
        for argument in &function.arguments {
            let (words, kind) = types::words(self.module, &self.module.types[argument.ty].inner)?;
            let value = self.register(words, kind);
            lowered.arguments.push(value);
        }
        for (handle, expression) in function.expressions.iter() {
            // Operands precede their uses, so their registers do too.
            let line = self.line(function.expressions.get_span(handle));
            let mut steps = Vec::new();
            let inner = info[handle].ty.inner_with(&self.module.types);
            let (value, pointer) = if matches!(inner, TypeInner::Pointer { .. } | TypeInner::ValuePointer { .. }) {
                (None, Some(self.pointer(&scope, expression, handle, &lowered, line, &mut steps)?))
            } else {
                (Some(self.value(&scope, expression, handle, &lowered, line, &mut steps)?), None)
            };
            lowered.values.push(value);
            lowered.pointers.push(pointer);
            lowered.steps.push(steps);
        }
        Ok(lowered)
    }

    fn pointer(
        &mut self,
        scope: &Scope<'_>,
        expression: &Expression,
        handle: Handle<Expression>,
        lowered: &Lowered,
        line: u32,
        steps: &mut Vec<Step>,
    ) -> Result<Pointer, Error> {
        let module = self.module;
        let inner_of = |handle: Handle<Expression>| scope.info[handle].ty.inner_with(&module.types);
        let pointee = |handle: Handle<Expression>| match *inner_of(handle) {
            TypeInner::Pointer { base, .. } => module.types[base].inner.clone(),
            TypeInner::ValuePointer { size: Some(size), scalar, .. } => TypeInner::Vector { size, scalar },
            TypeInner::ValuePointer { size: None, scalar, .. } => TypeInner::Scalar(scalar),
            ref other => other.clone(),
        };
        let target = pointee(handle);
        let made = |space: Space, base: Option<Value>, add: u32, vector: Option<Vector>| -> Result<Pointer, Error> {
            // Runtime-sized arrays and the structs that end in one are never loaded whole.
            let leaves = match &target {
                TypeInner::Array { .. } | TypeInner::Struct { .. } if matches!(space, Space::Buffer(_)) && !is_loaded(scope, handle) => {
                    vec![]
                }
                inner => types::leaves(module, inner, layout_of(space))?,
            };
            Ok(Pointer { space, base, add, leaves, atomic: matches!(target, TypeInner::Atomic(_)), vector })
        };
        match *expression {
            Expression::LocalVariable(variable) => made(Space::Own, None, scope.variables[&variable], None),
            Expression::GlobalVariable(variable) => {
                let (space, add) = self.globals[&variable];
                made(space, None, add, None)
            }
            Expression::FunctionArgument(number) => {
                let space = match inner_of(handle).pointer_space() {
                    Some(AddressSpace::Function | AddressSpace::Private) => Space::Own,
                    Some(AddressSpace::WorkGroup) => Space::Workgroup,
                    other => return Err(Error::Unsupported(format!("pointers into {other:?} as arguments"))),
                };
                made(space, Some(lowered.arguments[number as usize]), 0, None)
            }
            Expression::AccessIndex { base, index } => {
                let from = lowered.pointer(base)?;
                let whole = pointee(base);
                let add = from.add + types::offset(module, &whole, index, layout_of(from.space))?;
                made(from.space, from.base, add, vector_of(&from, &whole))
            }
            Expression::Access { base, index } => {
                let from = lowered.pointer(base)?;
                let whole = pointee(base);
                let (stride, count) = types::elements(module, &whole, layout_of(from.space))?;
                let count = match (count, from.space) {
                    (Some(count), _) => Count::Fixed(count),
                    (None, Space::Buffer(buffer)) => Count::Runtime { buffer, first: from.add },
                    (None, _) => return Err(Error::Unsupported("runtime-sized arrays outside buffers".into())),
                };
                let signed = inner_of(index).scalar_kind() == Some(ScalarKind::Sint);
                let to = self.register(1, Kind::U32);
                let index = lowered.value(index)?;
                steps.push(Step::Index(Index { base: from.base, index, signed, stride, count, to, line }));
                made(from.space, Some(to), from.add, vector_of(&from, &whole))
            }
            ref other => Err(Error::Unsupported(format!("a pointer by {other:?}"))),
        }
    }

    fn value(
        &mut self,
        scope: &Scope<'_>,
        expression: &Expression,
        handle: Handle<Expression>,
        lowered: &Lowered,
        line: u32,
        steps: &mut Vec<Step>,
    ) -> Result<Value, Error> {
        let module = self.module;
        let inner = scope.info[handle].ty.inner_with(&module.types);
        // Types without words, such as textures and samplers, are refused here.
        let (words, kind) = types::words(module, inner)?;
        let of = |handle: Handle<Expression>| lowered.value(handle);
        let what = match *expression {
            Expression::Literal(literal) => return Ok(self.constant(vec![literal_word(literal)?.0], kind)),
            Expression::Constant(constant) => {
                let words = constant_words(module, module.constants[constant].init)?;
                return Ok(self.constant(words, kind));
            }
            Expression::ZeroValue(_) => return Ok(self.constant(vec![0; words as usize], kind)),
            Expression::FunctionArgument(number) => return Ok(lowered.arguments[number as usize]),
            Expression::CallResult(_)
            | Expression::AtomicResult { .. }
            | Expression::WorkGroupUniformLoadResult { .. }
            | Expression::SubgroupBallotResult
            | Expression::SubgroupOperationResult { .. } => return Ok(self.register(words, kind)),
            Expression::AccessIndex { base, index } => {
                let whole = scope.info[base].ty.inner_with(&module.types);
                let first = types::offset(module, whole, index, Layout::Flat)?;
                return Ok(of(base)?.part(first, words, kind));
            }
            Expression::As { expr, convert: None, .. } => return Ok(of(expr)?.part(0, words, kind)),
            Expression::Swizzle { vector, pattern, .. } if is_run(&pattern[..words as usize]) => {
                return Ok(of(vector)?.part(pattern[0] as u32, words, kind));
            }
            Expression::Load { pointer } => {
                let (from, to) = (lowered.pointer(pointer)?, self.register(words, kind));
                steps.push(Step::Load { from, to, line });
                return Ok(to);
            }
            Expression::ArrayLength(array) => {
                let from = lowered.pointer(array)?;
                let Space::Buffer(buffer) = from.space else { return Err(Error::Unsupported("arrayLength outside buffers".into())) };
                let TypeInner::Pointer { base, .. } = *scope.info[array].ty.inner_with(&module.types) else {
                    return Err(Error::Unsupported("arrayLength of no pointer".into()));
                };
                let (stride, _) = types::elements(module, &module.types[base].inner, Layout::Host)?;
                let to = self.register(1, kind);
                steps.push(Step::Length { buffer, first: from.add, stride, to });
                return Ok(to);
            }
            ref other => self.operation(scope, other, lowered)?,
        };
        let to = self.register(words, kind);
        steps.push(Step::Pure(Pure { what, to, line }));
        Ok(to)
    }

    fn operation(&self, scope: &Scope<'_>, expression: &Expression, lowered: &Lowered) -> Result<What, Error> {
        let of = |handle: Handle<Expression>| lowered.value(handle);
        let is_matrix =
            |handle: Handle<Expression>| matches!(scope.info[handle].ty.inner_with(&self.module.types), TypeInner::Matrix { .. });
        Ok(match *expression {
            Expression::Compose { ref components, .. } => What::Compose(components.iter().map(|&part| of(part)).collect::<Result<_, _>>()?),
            Expression::Splat { value, .. } => What::Splat(of(value)?),
            Expression::Swizzle { size, vector, pattern } => {
                let vector = of(vector)?;
                What::Compose(pattern[..size as usize].iter().map(|&from| vector.part(from as u32, 1, vector.kind)).collect())
            }
            Expression::Access { base, index } => {
                let whole = scope.info[base].ty.inner_with(&self.module.types);
                let (_, count) = types::elements(self.module, whole, Layout::Flat)?;
                What::Pick { from: of(base)?, index: of(index)?, count: count.unwrap_or(1) }
            }
            Expression::Unary { op, expr } if !is_matrix(expr) => What::Unary(op, of(expr)?),
            Expression::Binary { op, left, right } if !is_matrix(left) && !is_matrix(right) => What::Binary(op, of(left)?, of(right)?),
            Expression::Select { condition, accept, reject } => {
                What::Select { condition: of(condition)?, accept: of(accept)?, reject: of(reject)? }
            }
            Expression::Relational { fun: RelationalFunction::All, argument } => What::All(of(argument)?),
            Expression::Relational { fun: RelationalFunction::Any, argument } => What::Any(of(argument)?),
            Expression::Math { fun, arg, arg1, arg2, arg3 } if math::is_supported(fun) => {
                let args = [Some(arg), arg1, arg2, arg3];
                What::Math(fun, args.into_iter().flatten().map(of).collect::<Result<_, _>>()?)
            }
            Expression::As { expr, convert: Some(_), .. } => What::Convert(of(expr)?),
            ref other => return Err(Error::Unsupported(format!("the expression {other:?}"))),
        })
    }
}

/// Returns the vector that a component belongs to, if `whole` is one.
fn vector_of(pointer: &Pointer, whole: &TypeInner) -> Option<Vector> {
    let TypeInner::Vector { size, .. } = whole else { return None };
    Some(Vector { base: pointer.base, add: pointer.add, words: *size as u32 })
}

/// True if a composite in a buffer is loaded or stored as a whole.
fn is_loaded(scope: &Scope<'_>, handle: Handle<Expression>) -> bool {
    let by_load = scope.function.expressions.iter().any(|(_, e)| matches!(e, Expression::Load { pointer } if *pointer == handle));
    by_load || stores_to(&scope.function.body, handle)
}

fn stores_to(block: &naga::Block, handle: Handle<Expression>) -> bool {
    use naga::Statement as S;
    block.iter().any(|statement| match statement {
        S::Store { pointer, .. } => *pointer == handle,
        S::Block(block) => stores_to(block, handle),
        S::If { accept, reject, .. } => stores_to(accept, handle) || stores_to(reject, handle),
        S::Loop { body, continuing, .. } => stores_to(body, handle) || stores_to(continuing, handle),
        S::Switch { cases, .. } => cases.iter().any(|case| stores_to(&case.body, handle)),
        _ => false,
    })
}

fn is_run(pattern: &[naga::SwizzleComponent]) -> bool {
    pattern.windows(2).all(|pair| pair[1] as u32 == pair[0] as u32 + 1)
}
