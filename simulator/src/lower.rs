//! Lowering of functions and statements from naga's module to a [`Program`]. `expressions.rs` lowers expressions.

use std::collections::HashMap;

use naga::valid::{Capabilities, FunctionInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Binding, BuiltIn, Expression, GatherMode, GlobalVariable, Handle, Module, Span, StorageAccess, TypeInner};

use crate::Error;
use crate::expressions::{Lowered, constant_words, words_of};
use crate::program::{Act, Argument, Case, Declared, Function, Gather, Initial, Program, Space, Statement};
use crate::types;
use crate::value::{Kind, Value};

/// Parses, validates and lowers a shader with one entry point.
pub(crate) fn lower(text: &str) -> Result<Program, Error> {
    let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities: Capabilities::all() };
    let module =
        naga::front::wgsl::Frontend::new_with_options(options).parse(text).map_err(|error| Error::Shader(error.emit_to_string(text)))?;
    let info = Validator::new(ValidationFlags::all(), Capabilities::all())
        .validate(&module)
        .map_err(|error| Error::Shader(error.emit_to_string(text)))?;
    let [entry] = module.entry_points.as_slice() else {
        return Err(Error::Unsupported(format!("{} entry points; there must be one", module.entry_points.len())));
    };
    let mut lowerer = Lowerer::new(&module, text)?;
    for (handle, function) in module.functions.iter() {
        let lowered = lowerer.function(function, &info[handle])?;
        lowerer.program.functions.push(lowered);
    }
    let lowered = lowerer.function(&entry.function, info.get_entry_point(0))?;
    lowerer.builtins(&entry.function, &lowered.arguments)?;
    lowerer.program.entry = lowerer.program.functions.len();
    lowerer.program.functions.push(lowered);
    lowerer.program.workgroup_size = entry.workgroup_size;
    Ok(lowerer.program)
}

/// Lowering in progress.
pub(crate) struct Lowerer<'a> {
    pub(crate) module: &'a Module,
    /// Byte offset of the start of each line.
    line_starts: Vec<usize>,
    pub(crate) program: Program,
    /// Line of the last statement; statements that naga adds have none of their own.
    line: u32,
    /// Memory and first word of each global variable.
    pub(crate) globals: HashMap<Handle<GlobalVariable>, (Space, u32)>,
}

impl<'a> Lowerer<'a> {
    fn new(module: &'a Module, text: &str) -> Result<Self, Error> {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let mut lowerer = Self { module, line_starts, program: Program::default(), line: 1, globals: HashMap::new() };
        for (handle, variable) in module.global_variables.iter() {
            let place = lowerer.global(variable)?;
            lowerer.globals.insert(handle, place);
        }
        Ok(lowerer)
    }

    fn global(&mut self, variable: &GlobalVariable) -> Result<(Space, u32), Error> {
        let program = &mut self.program;
        match variable.space {
            AddressSpace::WorkGroup => {
                let at = program.workgroup_words;
                program.workgroup_words += types::of(self.module, variable.ty)?;
                Ok((Space::Workgroup, at))
            }
            AddressSpace::Private => {
                let (at, words) = (program.variable_words, types::of(self.module, variable.ty)?);
                program.variable_words += words;
                let value = variable.init.map(|init| constant_words(self.module, init)).transpose()?;
                let value = value.map(|words| self.constant(words, Kind::U32));
                self.program.privates.push(Initial { at, words, value });
                Ok((Space::Own, at))
            }
            AddressSpace::Uniform | AddressSpace::Storage { .. } => {
                let binding = variable.binding.ok_or_else(|| Error::Unsupported("buffers without a binding".into()))?;
                let writable = matches!(variable.space, AddressSpace::Storage { access } if access.contains(StorageAccess::STORE));
                let uniform = variable.space == AddressSpace::Uniform;
                program.buffers.push(Declared { group: binding.group, binding: binding.binding, writable, uniform });
                Ok((Space::Buffer(program.buffers.len() - 1), 0))
            }
            other => Err(Error::Unsupported(format!("variables in {other:?}"))),
        }
    }

    /// Allocates a register with a constant value.
    pub(crate) fn constant(&mut self, words: Vec<u32>, kind: Kind) -> Value {
        let value = self.register(words.len() as u32, kind);
        self.program.constants.push((value, words));
        value
    }

    pub(crate) fn register(&mut self, words: u32, kind: Kind) -> Value {
        let value = Value { at: self.program.register_words, words, kind };
        self.program.register_words += words;
        value
    }

    pub(crate) fn line(&self, span: Span) -> u32 {
        let start = span.to_range().map_or(0, |range| range.start);
        self.line_starts.partition_point(|&line| line <= start) as u32
    }

    fn function(&mut self, function: &naga::Function, info: &FunctionInfo) -> Result<Function, Error> {
        let mut variables = HashMap::new();
        for (handle, variable) in function.local_variables.iter() {
            variables.insert(handle, self.program.variable_words);
            self.program.variable_words += types::of(self.module, variable.ty)?;
        }
        let lowered = self.expressions(function, info, &variables)?;
        let mut initials = Vec::new();
        for (handle, variable) in function.local_variables.iter() {
            let words = types::of(self.module, variable.ty)?;
            // An initial value is constant, and no statement evaluates it.
            let value = variable.init.map(|init| words_of(self.module, &function.expressions, init)).transpose()?;
            let value = value.map(|words| self.constant(words, Kind::U32));
            initials.push(Initial { at: variables[&handle], words, value });
        }
        let result = match &function.result {
            Some(result) => {
                let (words, kind) = types::words(self.module, &self.module.types[result.ty].inner)?;
                Some(self.register(words, kind))
            }
            None => None,
        };
        let mut spans: Vec<_> = function.expressions.iter().map(|(handle, _)| function.expressions.get_span(handle)).collect();
        spans.push(Span::default());
        let body = Body { lowered: &lowered, spans: &spans, info };
        let body = self.block(&function.body, &body)?;
        Ok(Function { arguments: lowered.arguments, result, variables: initials, body })
    }

    /// Collects the built-ins of the entry point and the registers of its arguments, or of their members.
    fn builtins(&mut self, function: &naga::Function, arguments: &[Value]) -> Result<(), Error> {
        let mut add = |binding: &Option<Binding>, value: Value| match binding {
            Some(Binding::BuiltIn(builtin)) if is_known(*builtin) => {
                self.program.builtins.push((*builtin, value));
                Ok(())
            }
            other => Err(Error::Unsupported(format!("an entry point's argument of {other:?}"))),
        };
        for (argument, &value) in function.arguments.iter().zip(arguments) {
            let TypeInner::Struct { members, .. } = &self.module.types[argument.ty].inner else {
                add(&argument.binding, value)?;
                continue;
            };
            let mut at = 0;
            for member in members {
                let (words, kind) = types::words(self.module, &self.module.types[member.ty].inner)?;
                add(&member.binding, value.part(at, words, kind))?;
                at += words;
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &naga::Block, body: &Body<'_>) -> Result<Vec<Statement>, Error> {
        let mut statements = Vec::new();
        for (statement, span) in block.span_iter() {
            // An emit has the line of its first expression, because its own span covers a whole range.
            let span = match statement {
                naga::Statement::Emit(range) => range.clone().next().map_or(*span, |first| body.spans[first.index()]),
                _ => *span,
            };
            let number = self.program.lines.len();
            if span.is_defined() {
                self.line = self.line(span);
            }
            let line = self.line;
            self.program.lines.push(line);
            statements.push(Statement { number, line, what: self.act(statement, body)? });
        }
        Ok(statements)
    }

    fn act(&mut self, statement: &naga::Statement, body: &Body<'_>) -> Result<Act, Error> {
        use naga::Statement as S;
        let lowered = body.lowered;
        let value = |handle: &Handle<Expression>| lowered.value(*handle);
        let optional = |handle: &Option<Handle<Expression>>| handle.map(|handle| lowered.value(handle)).transpose();
        Ok(match statement {
            S::Emit(range) => Act::Evaluate(range.clone().flat_map(|handle| lowered.steps[handle.index()].clone()).collect()),
            S::Block(block) => Act::Block(self.block(block, body)?),
            S::If { condition, accept, reject } => {
                Act::If { condition: value(condition)?, accept: self.block(accept, body)?, reject: self.block(reject, body)? }
            }
            S::Switch { selector, cases } => {
                let case = |case: &naga::SwitchCase| {
                    Ok(Case { value: case.value, body: self.block(&case.body, body)?, fall_through: case.fall_through })
                };
                Act::Switch { selector: value(selector)?, cases: cases.iter().map(case).collect::<Result<_, Error>>()? }
            }
            S::Loop { body: inner, continuing, break_if } => {
                let number = self.program.loops.len();
                self.program.loops.push(self.line);
                let (inner, continuing) = (self.block(inner, body)?, self.block(continuing, body)?);
                Act::Loop { number, body: inner, continuing, break_if: optional(break_if)? }
            }
            S::Break => Act::Break,
            S::Continue => Act::Continue,
            S::Return { value } => Act::Return(optional(value)?),
            S::ControlBarrier(barrier) => Act::Barrier(*barrier),
            S::Store { pointer, value: from } => Act::Store { to: lowered.pointer(*pointer)?, from: value(from)? },
            S::Atomic { pointer, fun, value: operand, result } => {
                let compare = if let naga::AtomicFunction::Exchange { compare } = fun { optional(compare)? } else { None };
                Act::Atomic {
                    to: lowered.pointer(*pointer)?,
                    fun: *fun,
                    operand: value(operand)?,
                    compare,
                    // An unused result counts as none.
                    result: optional(&result.filter(|&result| body.info[result].ref_count > 0))?,
                }
            }
            S::WorkGroupUniformLoad { pointer, result } => Act::UniformLoad { from: lowered.pointer(*pointer)?, to: value(result)? },
            S::Call { function, arguments, result } => {
                let argument = |&handle: &Handle<Expression>| match &lowered.pointers[handle.index()] {
                    Some(pointer) => Ok(Argument::Pointer(pointer.clone())),
                    None => lowered.value(handle).map(Argument::Value),
                };
                let arguments = arguments.iter().map(argument).collect::<Result<_, Error>>()?;
                Act::Call { function: function.index(), arguments, result: optional(result)? }
            }
            S::SubgroupBallot { result, predicate } => Act::Ballot { predicate: optional(predicate)?, result: value(result)? },
            S::SubgroupGather { mode, argument, result } => {
                Act::Gather { mode: gather(*mode, lowered)?, from: value(argument)?, result: value(result)? }
            }
            S::SubgroupCollectiveOperation { op, collective_op, argument, result } => {
                Act::Collective { operation: *op, how: *collective_op, from: value(argument)?, result: value(result)? }
            }
            other => return Err(Error::Unsupported(format!("the statement {other:?}"))),
        })
    }
}

/// Function whose body is being lowered.
struct Body<'a> {
    lowered: &'a Lowered,
    info: &'a FunctionInfo,
    /// Spans of the function's expressions.
    spans: &'a [Span],
}

fn gather(mode: GatherMode, lowered: &Lowered) -> Result<Gather, Error> {
    Ok(match mode {
        GatherMode::BroadcastFirst => Gather::First,
        GatherMode::Broadcast(lane) => Gather::Broadcast(lowered.value(lane)?),
        GatherMode::Shuffle(lane) => Gather::Shuffle(lowered.value(lane)?),
        GatherMode::ShuffleDown(by) => Gather::Down(lowered.value(by)?),
        GatherMode::ShuffleUp(by) => Gather::Up(lowered.value(by)?),
        GatherMode::ShuffleXor(by) => Gather::Xor(lowered.value(by)?),
        GatherMode::QuadBroadcast(lane) => Gather::QuadBroadcast(lowered.value(lane)?),
        GatherMode::QuadSwap(direction) => Gather::QuadSwap(direction as u32 + 1),
    })
}

const fn is_known(builtin: BuiltIn) -> bool {
    matches!(
        builtin,
        BuiltIn::GlobalInvocationId
            | BuiltIn::LocalInvocationId
            | BuiltIn::LocalInvocationIndex
            | BuiltIn::WorkGroupId
            | BuiltIn::WorkGroupSize
            | BuiltIn::NumWorkGroups
            | BuiltIn::NumSubgroups
            | BuiltIn::SubgroupId
            | BuiltIn::SubgroupSize
            | BuiltIn::SubgroupInvocationId
    )
}
