//! Execution of statements by all lanes of a workgroup at once, under a mask.
//!
//! A branch splits the mask and runs both sides; a loop runs until its mask is empty. A barrier therefore sees which
//! lanes arrive together. The seed decides which side runs first, and the order of several lanes within a statement.

use naga::{Barrier, SwitchValue};

use crate::memory::{Buffer, Memory};
use crate::program::{Act, Argument, Case, Function, Initial, Pointer, Program, Statement, Step};
use crate::report::{Findings, Rule};
use crate::subgroup::Subgroups;
use crate::value::{Kind, Mask, Registers, Value};

/// Range of a buffer, in words, that a declaration is bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) buffer: usize,
    pub(crate) first: usize,
    pub(crate) words: usize,
}

/// State of a running workgroup.
pub(crate) struct Machine<'a> {
    pub(crate) program: &'a Program,
    pub(crate) registers: Registers,
    pub(crate) variables: Registers,
    pub(crate) workgroup: Memory,
    pub(crate) buffers: &'a mut [Buffer],
    /// Range of each declared buffer.
    pub(crate) ranges: &'a [Range],
    pub(crate) subgroups: Subgroups,
    pub(crate) findings: &'a mut Findings,
    /// Number of times that each statement ran.
    pub(crate) covered: &'a mut [u64],
    /// Iterations so far, by loop and lane.
    pub(crate) iterations: Vec<u64>,
    pub(crate) most_iterations: u64,
    /// Number of the workgroup, from 1.
    pub(crate) number: u32,
    /// Barriers passed, for workgroup memory and for buffers.
    pub(crate) epochs: [u32; 2],
    /// Order of the lanes within a statement.
    pub(crate) order: Vec<usize>,
    pub(crate) random: fastrand::Rng,
}

/// Lanes that left a block before its end.
struct Left {
    breaks: Mask,
    continues: Mask,
    returns: Mask,
}

impl Left {
    fn none(lanes: usize) -> Self {
        Self { breaks: Mask::none(lanes), continues: Mask::none(lanes), returns: Mask::none(lanes) }
    }
}

/// Parts of a machine that a dispatch provides.
pub(crate) struct Parts<'a> {
    pub(crate) program: &'a Program,
    pub(crate) buffers: &'a mut [Buffer],
    pub(crate) ranges: &'a [Range],
    pub(crate) findings: &'a mut Findings,
    pub(crate) covered: &'a mut [u64],
}

impl<'a> Machine<'a> {
    pub(crate) fn new(parts: Parts<'a>, subgroups: Subgroups, most_iterations: u64, random: fastrand::Rng) -> Self {
        let Parts { program, buffers, ranges, findings, covered } = parts;
        let lanes = program.workgroup_size.iter().product::<u32>() as usize;
        let mut registers = Registers::new(program.register_words as usize, lanes);
        program.constants.iter().for_each(|(value, words)| registers.fill(*value, words));
        let mut workgroup = Memory::new(vec![0; program.workgroup_words as usize]);
        workgroup.follow();
        Self {
            program,
            registers,
            variables: Registers::new(program.variable_words as usize, lanes),
            workgroup,
            buffers,
            ranges,
            subgroups,
            findings,
            covered,
            iterations: vec![0; lanes * program.loops.len()],
            most_iterations,
            number: 0,
            epochs: [0; 2],
            order: (0..lanes).collect(),
            random,
        }
    }

    /// Runs the entry point for a workgroup whose built-ins are set.
    pub(crate) fn run(&mut self, poison: u32) {
        self.number += 1;
        self.workgroup.poison(poison);
        self.iterations.fill(0);
        self.epochs = [0; 2];
        self.random.shuffle(&mut self.order);
        let program = self.program;
        program.privates.iter().for_each(|initial| self.initialise(initial));
        let function = &program.functions[program.entry];
        self.call(function, Mask::all(self.registers.lanes));
    }

    fn initialise(&mut self, initial: &Initial) {
        let to = Value { at: initial.at, words: initial.words, kind: Kind::U32 };
        self.variables.clean(to);
        let first = initial.at as usize * self.registers.lanes;
        let data = &mut self.variables.data[first..first + initial.words as usize * self.registers.lanes];
        match initial.value {
            Some(value) => data.copy_from_slice(&self.registers.data[value.at as usize * self.registers.lanes..][..data.len()]),
            None => data.fill(0),
        }
    }

    fn call(&mut self, function: &Function, mask: Mask) {
        function.variables.iter().for_each(|initial| self.initialise(initial));
        function.result.iter().for_each(|&result| self.registers.clean(result));
        let mut left = Left::none(self.registers.lanes);
        self.block(function, &function.body, mask, &mut left);
    }

    /// Runs a block and returns the lanes that reach its end.
    fn block(&mut self, function: &Function, block: &[Statement], mut mask: Mask, left: &mut Left) -> Mask {
        for statement in block {
            if mask.is_empty() {
                break;
            }
            self.covered[statement.number] += 1;
            mask = self.statement(function, statement, mask, left);
        }
        mask
    }

    fn statement(&mut self, function: &Function, statement: &Statement, mask: Mask, left: &mut Left) -> Mask {
        let line = statement.line;
        let lanes = self.registers.lanes;
        match &statement.what {
            Act::Evaluate(steps) => steps.iter().for_each(|step| self.step(step, &mask)),
            Act::Block(block) => return self.block(function, block, mask, left),
            Act::If { condition, accept, reject } => {
                self.use_value(*condition, "a branch", line, &mask);
                let (yes, no) = mask.split(self.registers.word(*condition, 0));
                return self.branch(function, [(accept, yes), (reject, no)], left);
            }
            Act::Switch { selector, cases } => return self.switch(function, (*selector, line), cases, mask, left),
            Act::Loop { number, body, continuing, break_if } => {
                return self.repeat(function, *number, [body, continuing], *break_if, mask, left);
            }
            Act::Break => {
                left.breaks.join(&mask);
                return Mask::none(lanes);
            }
            Act::Continue => {
                left.continues.join(&mask);
                return Mask::none(lanes);
            }
            Act::Return(value) => {
                if let (Some(value), Some(result)) = (value, function.result) {
                    self.registers.copy(result, *value, &mask);
                }
                left.returns.join(&mask);
                return Mask::none(lanes);
            }
            Act::Barrier(barrier) => self.barrier(*barrier, line, &mask),
            Act::Store { to, from } => self.store(to, *from, line, &mask),
            Act::Atomic { to, fun, operand, compare, result } => self.atomic(to, *fun, [Some(*operand), *compare, *result], line, &mask),
            Act::UniformLoad { from, to } => self.uniform_load(from, *to, line, &mask),
            Act::Call { function, arguments, result } => {
                let callee = &self.program.functions[*function];
                for (argument, &to) in arguments.iter().zip(&callee.arguments) {
                    match argument {
                        Argument::Value(from) => self.registers.copy(to, *from, &mask),
                        Argument::Pointer(from) => self.pass(from, to),
                    }
                }
                self.call(callee, mask.clone());
                if let (Some(to), Some(from)) = (result, callee.result) {
                    self.registers.copy(*to, from, &mask);
                }
            }
            Act::Ballot { predicate, result } => self.ballot(*predicate, *result, line, &mask),
            Act::Gather { mode, from, result } => self.gather(*mode, *from, *result, line, &mask),
            Act::Collective { operation, how, from, result } => self.collective(*operation, *how, [*from, *result], line, &mask),
        }
        mask
    }

    fn branch(&mut self, function: &Function, mut sides: [(&Vec<Statement>, Mask); 2], left: &mut Left) -> Mask {
        if self.random.bool() {
            sides.swap(0, 1);
        }
        let mut after = Mask::none(self.registers.lanes);
        for (block, mask) in sides {
            if !mask.is_empty() {
                after.join(&self.block(function, block, mask, left));
            }
        }
        after
    }

    fn switch(&mut self, function: &Function, (selector, line): (Value, u32), cases: &[Case], mask: Mask, left: &mut Left) -> Mask {
        let lanes = self.registers.lanes;
        self.use_value(selector, "a branch", line, &mask);
        let chosen: Vec<u32> = self.registers.word(selector, 0).to_vec();
        let matches = |case: &Case, value: u32| match case.value {
            SwitchValue::I32(x) => x as u32 == value,
            SwitchValue::U32(x) => x == value,
            SwitchValue::Default => false,
        };
        let mut inner = Left::none(lanes);
        let mut after = Mask::none(lanes);
        let mut falling = Mask::none(lanes);
        for case in cases {
            let mut here = mask.filter(|lane| match case.value {
                SwitchValue::Default => !cases.iter().any(|case| matches(case, chosen[lane])),
                _ => matches(case, chosen[lane]),
            });
            here.join(&falling);
            let end = if here.is_empty() { here } else { self.block(function, &case.body, here, &mut inner) };
            falling = Mask::none(lanes);
            if case.fall_through { falling = end } else { after.join(&end) }
        }
        after.join(&falling);
        after.join(&inner.breaks);
        left.continues.join(&inner.continues);
        left.returns.join(&inner.returns);
        after
    }

    fn repeat(
        &mut self,
        function: &Function,
        number: usize,
        [body, continuing]: [&Vec<Statement>; 2],
        break_if: Option<Value>,
        mask: Mask,
        left: &mut Left,
    ) -> Mask {
        let (lanes, line) = (self.registers.lanes, self.program.loops[number]);
        let mut after = Mask::none(lanes);
        let mut running = mask;
        while !running.is_empty() {
            let iterations = &mut self.iterations[number * lanes..][..lanes];
            running.lanes().for_each(|lane| iterations[lane] += 1);
            if iterations.iter().any(|&count| count > self.most_iterations) {
                self.findings.add(Rule::EndlessLoop, line, None, || format!("more than {} iterations", self.most_iterations));
                after.join(&running);
                break;
            }
            let mut inner = Left::none(lanes);
            running = self.block(function, body, running, &mut inner);
            running.join(&inner.continues);
            after.join(&inner.breaks);
            left.returns.join(&inner.returns);
            if running.is_empty() {
                break;
            }
            running = self.block(function, continuing, running, &mut Left::none(lanes));
            if let Some(condition) = break_if {
                self.use_value(condition, "a branch", line, &running);
                let (out, on) = running.split(self.registers.word(condition, 0));
                after.join(&out);
                running = on;
            }
        }
        after
    }

    fn step(&mut self, step: &Step, mask: &Mask) {
        match step {
            Step::Pure(pure) => {
                let findings = &mut *self.findings;
                pure.run(&mut self.registers, mask, &mut |rule, line, detail| findings.add(rule, line, None, || detail));
            }
            Step::Load { from, to, line } => self.load(from, *to, *line, mask),
            Step::Index(index) => self.index(index, mask),
            Step::Length { buffer, first, stride, to } => {
                let count = self.elements(*buffer, *first, *stride);
                self.registers.fill(*to, &[count]);
            }
        }
    }

    fn barrier(&mut self, barrier: Barrier, line: u32, mask: &Mask) {
        if barrier.contains(Barrier::SUB_GROUP) {
            self.check_subgroups(line, mask);
            return;
        }
        if !mask.is_full() {
            let detail = || format!("{} of {} invocations", mask.count(), self.registers.lanes);
            self.findings.add(Rule::NonUniformBarrier, line, None, detail);
        }
        self.epochs[0] += u32::from(barrier.contains(Barrier::WORK_GROUP));
        self.epochs[1] += u32::from(barrier.contains(Barrier::STORAGE));
        self.random.shuffle(&mut self.order);
    }

    fn uniform_load(&mut self, from: &Pointer, to: Value, line: u32, mask: &Mask) {
        self.barrier(Barrier::WORK_GROUP, line, mask);
        if self.same_place(from, mask).is_none() {
            self.findings.add(Rule::NonUniformArgument, line, None, || "workgroupUniformLoad of several places".into());
        }
        self.load(from, to, line, mask);
        self.barrier(Barrier::WORK_GROUP, line, mask);
    }
}
