//! Lowered shaders: expressions have registers, statements have numbers and lines.

use naga::{AtomicFunction, Barrier, CollectiveOperation, SubgroupOperation, SwitchValue};

use crate::eval::Pure;
use crate::value::Value;

/// Lowered compute shader.
#[derive(Debug, Default)]
pub(crate) struct Program {
    pub(crate) functions: Vec<Function>,
    /// Index of the entry point.
    pub(crate) entry: usize,
    pub(crate) workgroup_size: [u32; 3],
    /// Built-ins that the entry point takes, and their registers.
    pub(crate) builtins: Vec<(naga::BuiltIn, Value)>,
    /// Buffers that the shader declares.
    pub(crate) buffers: Vec<Declared>,
    pub(crate) register_words: u32,
    /// Words of the variables of all functions and of private ones. WGSL has no recursion, so each has a fixed place.
    pub(crate) variable_words: u32,
    pub(crate) workgroup_words: u32,
    /// Constant registers and their words.
    pub(crate) constants: Vec<(Value, Vec<u32>)>,
    /// Private variables.
    pub(crate) privates: Vec<Initial>,
    /// Line of each statement.
    pub(crate) lines: Vec<u32>,
    /// Line of each loop.
    pub(crate) loops: Vec<u32>,
}

/// Binding as the shader declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// `@group`.
    pub group: u32,
    /// `@binding`.
    pub binding: u32,
    /// True for `var<storage, read_write>`.
    pub writable: bool,
    /// True for `var<uniform>`.
    pub uniform: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Function {
    pub(crate) arguments: Vec<Value>,
    pub(crate) result: Option<Value>,
    pub(crate) variables: Vec<Initial>,
    pub(crate) body: Vec<Statement>,
}

/// Variable and its initial value; `None` is zero.
#[derive(Clone, Debug)]
pub(crate) struct Initial {
    pub(crate) at: u32,
    pub(crate) words: u32,
    pub(crate) value: Option<Value>,
}

#[derive(Debug)]
pub(crate) struct Statement {
    /// Index among all statements of the program.
    pub(crate) number: usize,
    pub(crate) line: u32,
    pub(crate) what: Act,
}

#[derive(Debug)]
pub(crate) enum Act {
    Evaluate(Vec<Step>),
    Block(Vec<Statement>),
    If {
        condition: Value,
        accept: Vec<Statement>,
        reject: Vec<Statement>,
    },
    Switch {
        selector: Value,
        cases: Vec<Case>,
    },
    Loop {
        /// Index among all loops of the program.
        number: usize,
        body: Vec<Statement>,
        continuing: Vec<Statement>,
        break_if: Option<Value>,
    },
    Break,
    Continue,
    Return(Option<Value>),
    Barrier(Barrier),
    Store {
        to: Pointer,
        from: Value,
    },
    Atomic {
        to: Pointer,
        fun: AtomicFunction,
        operand: Value,
        compare: Option<Value>,
        result: Option<Value>,
    },
    UniformLoad {
        from: Pointer,
        to: Value,
    },
    Call {
        function: usize,
        arguments: Vec<Argument>,
        result: Option<Value>,
    },
    Ballot {
        predicate: Option<Value>,
        result: Value,
    },
    Gather {
        mode: Gather,
        from: Value,
        result: Value,
    },
    Collective {
        operation: SubgroupOperation,
        how: CollectiveOperation,
        from: Value,
        result: Value,
    },
}

#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) value: SwitchValue,
    pub(crate) body: Vec<Statement>,
    pub(crate) fall_through: bool,
}

/// Lane that a value comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Gather {
    First,
    Broadcast(Value),
    Shuffle(Value),
    Down(Value),
    Up(Value),
    Xor(Value),
    QuadBroadcast(Value),
    QuadSwap(u32),
}

/// Argument of a call.
#[derive(Clone, Debug)]
pub(crate) enum Argument {
    Value(Value),
    Pointer(Pointer),
}

/// Step of an expression statement.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Pure(Pure),
    Load {
        from: Pointer,
        to: Value,
        line: u32,
    },
    /// Pointer to an element: writes `base + index * stride` to `to`.
    Index(Index),
    /// Number of elements of the runtime-sized array at the end of a binding.
    Length {
        buffer: usize,
        first: u32,
        stride: u32,
        to: Value,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub(crate) base: Option<Value>,
    pub(crate) index: Value,
    pub(crate) signed: bool,
    pub(crate) stride: u32,
    pub(crate) count: Count,
    pub(crate) to: Value,
    pub(crate) line: u32,
}

/// Number of elements of an array.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Fixed(u32),
    /// As many as fit in the buffer after word `first`.
    Runtime {
        buffer: usize,
        first: u32,
    },
}

/// Memory that a pointer refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Variables of an invocation.
    Own,
    Workgroup,
    Buffer(usize),
}

/// Address in memory: a register, if there is one, plus `add` words.
#[derive(Clone, Debug)]
pub(crate) struct Pointer {
    pub(crate) space: Space,
    pub(crate) base: Option<Value>,
    pub(crate) add: u32,
    /// Word of each scalar of the target, relative to the address.
    pub(crate) leaves: Vec<u32>,
    pub(crate) atomic: bool,
    /// Vector that the target is a component of, if it is one.
    pub(crate) vector: Option<Vector>,
}

/// Whole vector around a component.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vector {
    pub(crate) base: Option<Value>,
    pub(crate) add: u32,
    pub(crate) words: u32,
}

/// Register value of a pointer whose index was out of bounds.
pub(crate) const NOWHERE: u32 = u32::MAX;
