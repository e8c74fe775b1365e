//! From naga's functions to programs: calls are inlined, loops unrolled, branches become selections.
//!
//! A path through the statements has its own values of the variables, and the condition under which it is taken: the
//! branches around it, and that nothing before left the function or the loop. Where paths meet, values are selected.

use std::collections::HashMap;

use naga::front::Typifier;
use naga::{Expression, Function, Handle, LocalVariable, Module, Span, Statement, SwitchValue, Type, TypeInner};

use super::builder::{Builder, MOST_OPERATIONS};
use super::program::{Binary, Field, Id, Op, Program, Scalar};
use super::tile::TILE_FIELDS;

/// Most trips of all loops of a function together.
const MOST_TRIPS: usize = 4096;
/// Most work: statements and expressions that are visited, and numbers that are copied.
const MOST_WORK: usize = 1 << 23;
/// Work of a statement or expression.
pub(super) const VISIT: usize = 8;
/// Most elements of an array or struct.
const MOST_ELEMENTS: usize = 256;

/// Reason for which a function is refused, and its place.
pub(super) type Refused = (Span, String);
pub(super) type Result<T> = std::result::Result<T, Refused>;

/// Function with arguments: a score, a score after the term, a pair or a tile.
pub(super) fn lower(module: &Module, function: &Function) -> Result<Program> {
    let mut lowering = Lowering { module, builder: Builder::default(), work: 0, types: HashMap::new(), trips: 0, place: Span::UNDEFINED };
    let floats = [Op::Score, Op::ScoreAfter];
    let arguments = function.arguments.iter().enumerate().map(|(at, argument)| match module.types[argument.ty].inner {
        TypeInner::Scalar(_) => vec![lowering.builder.push(floats[at], Scalar::F32)],
        _ if module.types[argument.ty].name.as_deref() == Some("Tile") => {
            TILE_FIELDS.map(|(_, field, is_last)| lowering.builder.push(Op::Tile(field, is_last), Scalar::I32)).to_vec()
        }
        _ => Field::ALL.map(|field| lowering.builder.push(Op::Pair(field), Scalar::I32)).to_vec(),
    });
    let arguments = arguments.collect();
    let result = lowering.call(function, arguments)?;
    lowering.builder.finish(result[0]).ok_or_else(|| {
        (Span::UNDEFINED, format!("has more than {MOST_OPERATIONS} operations a pair, with its loops unrolled and its calls inlined"))
    })
}

pub(super) struct Lowering<'a> {
    pub(super) module: &'a Module,
    pub(super) builder: Builder,
    /// Work done so far, in the time of a copied number.
    pub(super) work: usize,
    /// Types of the expressions of each function.
    pub(super) types: HashMap<*const Function, Typifier>,
    trips: usize,
    /// Place of the statement at hand.
    pub(super) place: Span,
}

/// Meaning of an expression.
#[derive(Clone)]
pub(super) enum Found {
    /// Scalars of a value.
    Value(Vec<Id>),
    /// Part of a local variable: its scalars from `first` on, `len` of them.
    Local {
        variable: Handle<LocalVariable>,
        first: Step,
        len: usize,
    },
    Table(u32),
    Element(u32, Id),
}

/// Place within the scalars of a value: `start`, and for each computed index: + index * stride.
#[derive(Clone, Default)]
pub(super) struct Step {
    pub(super) start: usize,
    pub(super) indices: Vec<Index>,
}

/// Index that is clamped below `count`.
#[derive(Clone, Copy)]
pub(super) struct Index {
    pub(super) id: Id,
    pub(super) stride: usize,
    pub(super) count: usize,
}

/// Function that runs.
pub(super) struct Frame<'a> {
    pub(super) function: &'a Function,
    pub(super) arguments: Vec<Vec<Id>>,
    pub(super) values: HashMap<Handle<Expression>, Found>,
    pub(super) locals: Locals,
    /// Condition under which the path is taken; constant false after its end.
    active: Id,
    result: Vec<Id>,
    /// Number of return statements that were reached.
    returns: usize,
    /// Loops and switches around the statement.
    targets: Vec<Target>,
}

/// Values of the variables.
pub(super) type Locals = HashMap<Handle<LocalVariable>, Vec<Id>>;

/// Paths that left a loop or a switch and, of a loop, those that go on with its next trip.
struct Target {
    is_loop: bool,
    left: Path,
    continued: Path,
}

/// Condition under which one of some paths is taken, and the values of the variables on it; `None` if there is no path.
type Path = Option<(Id, Locals)>;

impl<'a> Lowering<'a> {
    pub(super) fn refuse<T>(&self, why: impl Into<String>) -> Result<T> {
        Err((self.place, why.into()))
    }

    /// Counts a visited statement or expression.
    pub(super) fn visit(&mut self) -> Result<()> {
        self.work += VISIT;
        match self.work > MOST_WORK || self.builder.is_full() {
            true => {
                self.refuse("is too long, with its calls inlined and its loops unrolled, whose ends must be known from constants alone")
            }
            false => Ok(()),
        }
    }

    pub(super) fn call(&mut self, function: &'a Function, arguments: Vec<Vec<Id>>) -> Result<Vec<Id>> {
        self.find_types(function)?;
        let active = self.builder.bool(true);
        let mut frame = Frame {
            function,
            arguments,
            values: HashMap::new(),
            locals: HashMap::new(),
            active,
            result: Vec::new(),
            returns: 0,
            targets: Vec::new(),
        };
        if let Some(result) = &function.result {
            frame.result = self.zeros(result.ty)?;
        }
        for (handle, variable) in function.local_variables.iter() {
            self.place = function.local_variables.get_span(handle);
            let value = match variable.init {
                Some(init) => self.value(&mut frame, init)?,
                None => self.zeros(variable.ty)?,
            };
            frame.locals.insert(handle, value);
        }
        self.block(&mut frame, &function.body)?;
        Ok(frame.result)
    }

    pub(super) fn zeros(&mut self, ty: Handle<Type>) -> Result<Vec<Id>> {
        let all = self.scalars(ty)?;
        self.work += VISIT + all.len();
        Ok(all.into_iter().map(|ty| self.builder.constant(ty, 0)).collect())
    }

    /// Types of the scalars of a type.
    pub(super) fn scalars(&self, ty: Handle<Type>) -> Result<Vec<Scalar>> {
        let all = match &self.module.types[ty].inner {
            TypeInner::Scalar(scalar) => vec![self.scalar(scalar.kind, scalar.width)?],
            TypeInner::Vector { size, scalar } => vec![self.scalar(scalar.kind, scalar.width)?; *size as usize],
            TypeInner::Array { base, size: naga::ArraySize::Constant(count), .. } if count.get() as usize <= MOST_ELEMENTS => {
                self.scalars(*base)?.repeat(count.get() as usize)
            }
            TypeInner::Struct { members, .. } => members.iter().map(|member| self.scalars(member.ty)).collect::<Result<Vec<_>>>()?.concat(),
            _ => return self.refuse("uses a type other than numbers, vectors, small arrays and structs of them"),
        };
        if all.len() > MOST_ELEMENTS {
            self.refuse(format!("has an array or struct of more than {MOST_ELEMENTS} numbers"))
        } else {
            Ok(all)
        }
    }

    pub(super) fn scalar(&self, kind: naga::ScalarKind, width: u8) -> Result<Scalar> {
        match (kind, width) {
            (naga::ScalarKind::Bool, _) => Ok(Scalar::Bool),
            (naga::ScalarKind::Sint, 4) => Ok(Scalar::I32),
            (naga::ScalarKind::Uint, 4) => Ok(Scalar::U32),
            (naga::ScalarKind::Float, 4) => Ok(Scalar::F32),
            _ => self.refuse("uses numbers other than f32, i32, u32 and bool"),
        }
    }

    fn block(&mut self, frame: &mut Frame<'a>, block: &'a naga::Block) -> Result<()> {
        for (statement, &span) in block.span_iter() {
            if self.builder.constant_of(frame.active) == Some(0) {
                break;
            }
            if span.is_defined() {
                self.place = span;
            }
            self.visit()?;
            self.statement(frame, statement)?;
        }
        Ok(())
    }

    fn statement(&mut self, frame: &mut Frame<'a>, statement: &'a Statement) -> Result<()> {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    let found = self.expression(frame, handle)?;
                    frame.values.insert(handle, found);
                }
            }
            Statement::Block(block) => self.block(frame, block)?,
            Statement::If { condition, accept, reject } => {
                let condition = self.value(frame, *condition)?[0];
                self.branch(frame, condition, accept, reject)?;
            }
            Statement::Switch { selector, cases } => self.switch(frame, *selector, cases)?,
            Statement::Loop { body, continuing, break_if } => self.run_loop(frame, body, continuing, *break_if)?,
            Statement::Break | Statement::Continue => {
                let continues = matches!(statement, Statement::Continue);
                let path = (frame.active, self.copied(&frame.locals));
                let Some(target) = frame.targets.iter_mut().rev().find(|target| target.is_loop || !continues) else {
                    return self.refuse("leaves a loop outside of one");
                };
                let to = if continues { &mut target.continued } else { &mut target.left };
                self.add(to, path);
                frame.active = self.builder.bool(false);
            }
            Statement::Return { value } => {
                if let Some(value) = value {
                    let value = self.value(frame, *value)?;
                    frame.result = match frame.returns {
                        0 => value,
                        _ => self.chosen(frame.active, &value, &frame.result),
                    };
                }
                frame.returns += 1;
                frame.active = self.builder.bool(false);
            }
            Statement::Store { pointer, value } => {
                let (Found::Local { variable, first, .. }, value) = (self.found(frame, *pointer)?, self.value(frame, *value)?) else {
                    return self.refuse("writes to what is not a variable of its own");
                };
                self.store(frame, variable, &first, &value);
            }
            Statement::Call { function, arguments, result } => {
                let arguments = arguments.iter().map(|&argument| self.value(frame, argument)).collect::<Result<Vec<_>>>()?;
                let place = self.place;
                let value = self.call(&self.module.functions[*function], arguments)?;
                self.place = place;
                if let Some(result) = result {
                    frame.values.insert(*result, Found::Value(value));
                }
            }
            Statement::ControlBarrier(_) | Statement::MemoryBarrier(_) => return self.refuse("has a barrier"),
            Statement::Atomic { .. } => return self.refuse("has an atomic operation"),
            Statement::SubgroupBallot { .. } | Statement::SubgroupGather { .. } | Statement::SubgroupCollectiveOperation { .. } => {
                return self.refuse("has a subgroup operation");
            }
            _ => return self.refuse("has a statement that a function of a pair cannot have"),
        }
        Ok(())
    }

    /// A copy of the variables.
    fn copied(&mut self, locals: &Locals) -> Locals {
        self.work += locals.values().map(|value| VISIT + value.len()).sum::<usize>();
        locals.clone()
    }

    /// Adds a path to those that meet in one place.
    fn add(&mut self, to: &mut Path, path: (Id, Locals)) {
        *to = Some(self.join(path, to.take()));
    }

    /// Joins a path with others.
    fn join(&mut self, (active, mut locals): (Id, Locals), others: Path) -> (Id, Locals) {
        let Some((other, before)) = others else { return (active, locals) };
        for (variable, value) in &mut locals {
            *value = self.chosen(active, value, &before[variable]);
        }
        (self.builder.or(active, other), locals)
    }

    /// The path at hand, unless it has ended.
    fn path(&self, frame: &mut Frame<'a>) -> Path {
        let ended = self.builder.constant_of(frame.active) == Some(0);
        (!ended).then(|| (frame.active, std::mem::take(&mut frame.locals)))
    }

    /// Goes on with some paths; without any, the function's path has ended.
    fn resume(&mut self, frame: &mut Frame<'a>, path: Path) {
        match path {
            Some((active, locals)) => (frame.active, frame.locals) = (active, locals),
            None => frame.active = self.builder.bool(false),
        }
    }

    /// Runs both branches, each with variables of its own.
    fn branch(&mut self, frame: &mut Frame<'a>, condition: Id, accept: &'a naga::Block, reject: &'a naga::Block) -> Result<()> {
        let (entry, locals) = (frame.active, self.copied(&frame.locals));
        let not = self.builder.not(condition);
        let (accepts, rejects) = (self.builder.and(entry, condition), self.builder.and(entry, not));
        frame.active = accepts;
        self.block(frame, accept)?;
        let accepted = self.path(frame);
        (frame.active, frame.locals) = (rejects, locals);
        self.block(frame, reject)?;
        let rejected = self.path(frame);
        let both = match (accepted, rejected) {
            (Some((a, mut locals)), Some((b, others))) => {
                for (variable, value) in &mut locals {
                    *value = self.chosen(condition, value, &others[variable]);
                }
                let active = if (a, b) == (accepts, rejects) { entry } else { self.builder.or(a, b) };
                Some((active, locals))
            }
            (accepted, rejected) => accepted.or(rejected),
        };
        self.resume(frame, both);
        Ok(())
    }

    fn switch(&mut self, frame: &mut Frame<'a>, selector: Handle<Expression>, cases: &'a [naga::SwitchCase]) -> Result<()> {
        let (entry, locals, selector) = (frame.active, self.copied(&frame.locals), self.value(frame, selector)?[0]);
        let is = |lowering: &mut Self, value: u32| {
            let value = lowering.builder.constant(lowering.builder.ty(selector), value);
            lowering.builder.binary(Binary::Equal, selector, value)
        };
        let mut any = self.builder.bool(false);
        for value in cases.iter().filter_map(|case| case_value(case.value)) {
            let is = is(self, value);
            any = self.builder.or(any, is);
        }
        let default = self.builder.not(any);
        frame.targets.push(Target { is_loop: false, left: None, continued: None });
        let mut falling: Path = None;
        for case in cases {
            let is = case_value(case.value).map_or(default, |value| is(self, value));
            let enters = (self.builder.and(entry, is), self.copied(&locals));
            let path = match self.builder.constant_of(enters.0) {
                Some(0) => falling.take(),
                _ => Some(self.join(enters, falling.take())),
            };
            self.resume(frame, path);
            self.block(frame, &case.body)?;
            falling = self.path(frame);
            if let (Some(path), Some(target)) = (falling.take_if(|_| !case.fall_through), frame.targets.last_mut()) {
                self.add(&mut target.left, path);
            }
        }
        let left = frame.targets.pop().and_then(|target| target.left);
        self.resume(frame, left);
        Ok(())
    }

    fn run_loop(
        &mut self,
        frame: &mut Frame<'a>,
        body: &'a naga::Block,
        continuing: &'a naga::Block,
        break_if: Option<Handle<Expression>>,
    ) -> Result<()> {
        let (entry, returns, place) = (frame.active, frame.returns, self.place);
        frame.targets.push(Target { is_loop: true, left: None, continued: None });
        let target = frame.targets.len() - 1;
        while self.builder.constant_of(frame.active) != Some(0) {
            self.trips += 1;
            if self.trips > MOST_TRIPS {
                self.place = place;
                return self.refuse(format!(
                    "has loops whose ends are not known from constants alone, or that take more than {MOST_TRIPS} trips a pair"
                ));
            }
            self.block(frame, body)?;
            let (on, continued) = (self.path(frame), frame.targets[target].continued.take());
            let next = match on {
                Some(path) => Some(self.join(path, continued)),
                None => continued,
            };
            self.resume(frame, next);
            self.block(frame, continuing)?;
            if let Some(condition) = break_if.filter(|_| self.builder.constant_of(frame.active) != Some(0)) {
                let condition = self.value(frame, condition)?[0];
                let leaves = (self.builder.and(frame.active, condition), self.copied(&frame.locals));
                self.add(&mut frame.targets[target].left, leaves);
                let stays = self.builder.not(condition);
                frame.active = self.builder.and(frame.active, stays);
            }
        }
        let left = frame.targets.pop().and_then(|target| target.left);
        // Where nothing returns, everything that entered comes out again.
        let left = left.map(|(active, locals)| (if frame.returns == returns { entry } else { active }, locals));
        self.resume(frame, left);
        Ok(())
    }

    /// Values under a condition, else others.
    pub(super) fn chosen(&mut self, condition: Id, accept: &[Id], reject: &[Id]) -> Vec<Id> {
        self.work += accept.len();
        accept.iter().zip(reject).map(|(&accept, &reject)| self.builder.select(condition, accept, reject)).collect()
    }

    pub(super) fn value(&mut self, frame: &mut Frame<'a>, handle: Handle<Expression>) -> Result<Vec<Id>> {
        match self.found(frame, handle)? {
            Found::Value(value) => Ok(value),
            _ => self.refuse("passes a pointer to a function"),
        }
    }

    pub(super) fn found(&mut self, frame: &mut Frame<'a>, handle: Handle<Expression>) -> Result<Found> {
        match frame.values.get(&handle) {
            Some(found) => Ok(found.clone()),
            None => self.expression(frame, handle),
        }
    }
}

fn case_value(value: SwitchValue) -> Option<u32> {
    match value {
        SwitchValue::I32(value) => Some(value as u32),
        SwitchValue::U32(value) => Some(value),
        SwitchValue::Default => None,
    }
}
