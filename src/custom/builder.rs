//! Programs under construction.

use std::collections::HashMap;

use super::program::{Binary, Id, Node, Op, Program, Scalar, Unary, needed};
use super::scalar;

/// Program under construction. Equal operations are one; operations of constants are constants.
#[derive(Default)]
pub(crate) struct Builder {
    nodes: Vec<Node>,
    known: HashMap<(Op, Scalar), Id>,
    /// Place in the user's text that operations are added for.
    pub(crate) place: u32,
}

/// Most operations of a program.
pub(crate) const MOST_OPERATIONS: usize = 2048;

impl Builder {
    /// Starts with the operations of a program, which keep their indices.
    pub(crate) fn of(program: &Program) -> Self {
        let known = program.nodes.iter().enumerate().map(|(id, node)| ((node.op, node.ty), id as Id)).collect();
        Self { nodes: program.nodes.clone(), known, place: 0 }
    }

    pub(crate) fn node(&self, id: Id) -> Node {
        self.nodes[id as usize]
    }

    pub(crate) fn ty(&self, id: Id) -> Scalar {
        self.node(id).ty
    }

    /// True if the program may not have more operations.
    pub(crate) fn is_full(&self) -> bool {
        self.nodes.len() > 8 * MOST_OPERATIONS
    }

    /// Bits of a constant.
    pub(crate) fn constant_of(&self, id: Id) -> Option<u32> {
        match self.node(id).op {
            Op::Constant(bits) => Some(bits),
            _ => None,
        }
    }

    pub(crate) fn constant(&mut self, ty: Scalar, bits: u32) -> Id {
        self.push(Op::Constant(bits), ty)
    }

    pub(crate) fn f32(&mut self, x: f32) -> Id {
        self.constant(Scalar::F32, x.to_bits())
    }

    pub(crate) fn bool(&mut self, x: bool) -> Id {
        self.constant(Scalar::Bool, x.into())
    }

    /// Adds an operation with the type of its result, or finds one that has the same result.
    pub(crate) fn push(&mut self, op: Op, ty: Scalar) -> Id {
        if let Some(id) = self.simpler(op, ty) {
            return id;
        }
        let node = Node { op, ty, place: self.place };
        *self.known.entry((op, ty)).or_insert_with(|| {
            self.nodes.push(node);
            self.nodes.len() as Id - 1
        })
    }

    pub(crate) fn unary(&mut self, op: Unary, a: Id) -> Id {
        let ty = self.ty(a);
        self.push(Op::Unary(op, a), ty)
    }

    pub(crate) fn binary(&mut self, op: Binary, a: Id, b: Id) -> Id {
        let ty = if op.compares() { Scalar::Bool } else { self.ty(a) };
        self.push(Op::Binary(op, a, b), ty)
    }

    pub(crate) fn select(&mut self, condition: Id, accept: Id, reject: Id) -> Id {
        let ty = self.ty(accept);
        self.push(Op::Select(condition, accept, reject), ty)
    }

    pub(crate) fn and(&mut self, a: Id, b: Id) -> Id {
        self.binary(Binary::And, a, b)
    }

    pub(crate) fn or(&mut self, a: Id, b: Id) -> Id {
        self.binary(Binary::Or, a, b)
    }

    pub(crate) fn not(&mut self, a: Id) -> Id {
        self.unary(Unary::Not, a)
    }

    /// Finds an existing value, or makes a constant, that the operation always equals.
    fn simpler(&mut self, op: Op, ty: Scalar) -> Option<Id> {
        let bits = |id: Id| self.constant_of(id);
        match op {
            Op::Select(c, a, b) => match bits(c) {
                Some(c) => return Some(if c != 0 { a } else { b }),
                None if a == b => return Some(a),
                None if ty == Scalar::Bool && bits(b) == Some(0) => return Some(self.and(c, a)),
                None if ty == Scalar::Bool && bits(a) == Some(1) => return Some(self.or(c, b)),
                None => {}
            },
            Op::Binary(op @ (Binary::And | Binary::Or), a, b) if ty == Scalar::Bool => {
                for (known, other) in [(a, b), (b, a)] {
                    match bits(known) {
                        Some(x) if (x != 0) == (op == Binary::And) => return Some(other),
                        Some(_) => return Some(known),
                        None if a == b => return Some(a),
                        None => {}
                    }
                }
            }
            Op::Unary(outer @ (Unary::Not | Unary::Neg), a) => match self.node(a).op {
                Op::Unary(inner, a) if inner == outer => return Some(a),
                _ => {}
            },
            // The sign of a zero means nothing.
            Op::Binary(Binary::Add, a, b) if bits(b) == Some(0) => return Some(a),
            Op::Binary(Binary::Add, a, b) if bits(a) == Some(0) => return Some(b),
            Op::Binary(Binary::Sub, a, b) if bits(b) == Some(0) => return Some(a),
            Op::Binary(Binary::Mul, a, b) if ty == Scalar::F32 && bits(b) == Some(ONE) => return Some(a),
            Op::Binary(Binary::Mul, a, b) if ty == Scalar::F32 && bits(a) == Some(ONE) => return Some(b),
            Op::Convert(a) | Op::Bitcast(a) if self.ty(a) == ty => return Some(a),
            _ => {}
        }
        if matches!(op, Op::Constant(_) | Op::Load(..)) || op.operands().count() == 0 {
            return None;
        }
        let mut operands = [0; 3];
        for (to, id) in operands.iter_mut().zip(op.operands()) {
            *to = bits(id)?;
        }
        let first = op.operands().next().map_or(ty, |id| self.ty(id));
        Some(self.constant(ty, scalar::apply(op, first, ty, operands)))
    }

    /// Returns the program that ends in `result`, without operations that it does not need; `None` if it is too long.
    pub(crate) fn finish(&self, result: Id) -> Option<Program> {
        let needed = needed(result as usize + 1, |id| self.nodes[id].op.operands());
        let mut places = vec![0; needed.len()];
        let mut nodes = Vec::new();
        for id in (0..=result).filter(|&id| needed[id as usize]) {
            let node = self.node(id);
            let to = |id: Id| places[id as usize];
            let op = match node.op {
                Op::Load(table, a) => Op::Load(table, to(a)),
                Op::Unary(op, a) => Op::Unary(op, to(a)),
                Op::Binary(op, a, b) => Op::Binary(op, to(a), to(b)),
                Op::Select(a, b, c) => Op::Select(to(a), to(b), to(c)),
                Op::Convert(a) => Op::Convert(to(a)),
                Op::Bitcast(a) => Op::Bitcast(to(a)),
                op => op,
            };
            places[id as usize] = nodes.len() as Id;
            nodes.push(Node { op, ..node });
        }
        (nodes.len() <= MOST_OPERATIONS).then_some(Program { nodes })
    }
}

const ONE: u32 = 1f32.to_bits();
