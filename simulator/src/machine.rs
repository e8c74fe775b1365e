//! Statements, run by all lanes of a workgroup at once under a mask.
//!
//! A branch splits the mask and runs both sides, in an order that the seed says; a loop runs until its mask is empty. So a barrier
//! sees which lanes have come together, and what several lanes do to memory in one statement is done in an order that the seed says.

use naga::{AtomicFunction, Barrier, SwitchValue};

use crate::memory::{Access, Buffer, Memory, Who};
use crate::program::{Act, Argument, Count, Function, Index, Initial, NOWHERE, Pointer, Program, Space, Statement, Step, Vector};
use crate::report::{Findings, Rule};
use crate::subgroup::Subgroups;
use crate::value::{Kind, Mask, Registers, Value};

/// A range of a buffer, in words, that a declared binding is bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) buffer: usize,
    pub(crate) first: usize,
    pub(crate) words: usize,
}

/// Everything that a workgroup runs on.
pub(crate) struct Machine<'a> {
    pub(crate) program: &'a Program,
    pub(crate) registers: Registers,
    variables: Registers,
    pub(crate) workgroup: Memory,
    pub(crate) buffers: &'a mut [Buffer],
    /// Of each declared buffer.
    pub(crate) ranges: &'a [Range],
    pub(crate) subgroups: Subgroups,
    pub(crate) findings: &'a mut Findings,
    /// Times that each statement ran.
    pub(crate) covered: &'a mut [u64],
    /// Iterations so far of each loop, in each of each lane.
    pub(crate) iterations: Vec<u64>,
    pub(crate) most_iterations: u64,
    /// Number of the workgroup, from 1.
    pub(crate) number: u32,
    /// Barriers passed, for workgroup memory and for buffers.
    epochs: [u32; 2],
    /// Order of the lanes within a statement.
    order: Vec<usize>,
    pub(crate) random: fastrand::Rng,
}

/// Lanes that left a block other than by its end.
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

/// What a machine is made of, besides its state.
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

    /// Runs the entry point for a workgroup whose builtins are in place.
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

    /// Runs a block; gives the lanes that reach its end.
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

    fn switch(
        &mut self,
        function: &Function,
        (selector, line): (Value, u32),
        cases: &[crate::program::Case],
        mask: Mask,
        left: &mut Left,
    ) -> Mask {
        let lanes = self.registers.lanes;
        self.use_value(selector, "a branch", line, &mask);
        let chosen: Vec<u32> = self.registers.word(selector, 0).to_vec();
        let matches = |case: &crate::program::Case, value: u32| match case.value {
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

    /// Elements of a runtime-sized array.
    fn elements(&self, buffer: usize, first: u32, stride: u32) -> u32 {
        (self.ranges[buffer].words.saturating_sub(first as usize) / stride.max(1) as usize) as u32
    }

    /// Reports a value that comes of what nobody wrote, where it matters.
    pub(crate) fn use_value(&mut self, value: Value, as_what: &str, line: u32, mask: &Mask) {
        if self.registers.is_tainted(value) {
            for lane in mask.lanes() {
                self.report_origin(self.registers.any_origin(value, lane), as_what, line);
            }
        }
    }

    fn report_origin(&mut self, origin: u32, as_what: &str, line: u32) {
        if origin != 0 {
            self.findings.add(Rule::Uninitialised, line, Some(origin), || format!("used as {as_what}, read at line {origin}"));
        }
    }

    fn index(&mut self, index: &Index, mask: &Mask) {
        self.use_value(index.index, "an index", index.line, mask);
        let count = match index.count {
            Count::Fixed(count) => count,
            Count::Runtime { buffer, first } => self.elements(buffer, first, index.stride),
        };
        for lane in 0..self.registers.lanes {
            let element = self.registers.get(index.index, 0, lane);
            let base = index.base.map_or(0, |base| self.registers.get(base, 0, lane));
            let place = if element >= count || base == NOWHERE {
                if mask.has(lane) && base != NOWHERE {
                    let number = if index.signed { i64::from(element as i32) } else { i64::from(element) };
                    self.findings.add(Rule::OutOfBounds, index.line, None, || format!("element {number} of {count}"));
                }
                NOWHERE
            } else {
                base + element * index.stride
            };
            self.registers.word_mut(index.to, 0)[lane] = place;
        }
    }

    /// Puts a pointer into the register of an argument.
    fn pass(&mut self, pointer: &Pointer, to: Value) {
        for lane in 0..self.registers.lanes {
            let place = self.place(pointer.base, pointer.add, lane).map_or(NOWHERE, |place| place as u32);
            self.registers.word_mut(to, 0)[lane] = place;
        }
    }

    /// The first word that a lane's pointer points to.
    fn place(&self, base: Option<Value>, add: u32, lane: usize) -> Option<usize> {
        match base.map(|base| self.registers.get(base, 0, lane)) {
            Some(NOWHERE) => None,
            base => Some((base.unwrap_or(0) + add) as usize),
        }
    }

    fn who(&self, space: Space, lane: usize) -> Who {
        Who { workgroup: self.number, epoch: self.epochs[usize::from(space != Space::Workgroup)], lane: lane as u32 }
    }

    /// The memory behind a pointer, and where its word `at` is in it; `None` past the end of a binding, which is reported.
    fn shared(&mut self, space: Space, at: usize, lane: usize, line: u32) -> Option<(&mut Memory, usize, Access<'_>)> {
        let who = self.who(space, lane);
        match space {
            Space::Own => None,
            Space::Workgroup => Some((&mut self.workgroup, at, Access { who, line, findings: self.findings })),
            Space::Buffer(number) => {
                let range = self.ranges[number];
                if at >= range.words {
                    self.findings.add(Rule::OutOfBounds, line, None, || format!("word {at} of a binding of {}", range.words));
                    return None;
                }
                let memory = &mut self.buffers[range.buffer].memory;
                Some((memory, range.first + at, Access { who, line, findings: self.findings }))
            }
        }
    }

    fn load(&mut self, from: &Pointer, to: Value, line: u32, mask: &Mask) {
        if from.space == Space::Own {
            return self.load_own(from, to, mask);
        }
        self.registers.clean(to);
        for lane in mask.lanes() {
            let first = self.place(from.base, from.add, lane);
            for (word, &leaf) in from.leaves.iter().enumerate() {
                let place = first.and_then(|first| self.shared(from.space, first + leaf as usize, lane, line));
                let read = place.map_or((0, 0), |(memory, at, mut access)| memory.read(at, from.atomic, &mut access));
                self.registers.set(to, word as u32, lane, read);
            }
        }
    }

    fn load_own(&mut self, from: &Pointer, to: Value, mask: &Mask) {
        self.registers.clean(to);
        if let Some(first) = self.same_place(from, mask) {
            (0..to.words).for_each(|word| self.registers.copy_word((to.at + word) as usize, &self.variables, first + word as usize, mask));
            return;
        }
        let lanes = self.registers.lanes;
        for lane in mask.lanes() {
            let place = self.place(from.base, from.add, lane);
            for word in 0..to.words {
                let read = place.map_or((0, 0), |first| {
                    let slot = first + word as usize;
                    (self.variables.data[slot * lanes + lane], self.variables.origin_of(slot, lane))
                });
                self.registers.set(to, word, lane, read);
            }
        }
    }

    /// Where the pointers of all lanes in `mask` point, if that is one place.
    fn same_place(&self, pointer: &Pointer, mask: &Mask) -> Option<usize> {
        let Some(base) = pointer.base else { return Some(pointer.add as usize) };
        let bases = self.registers.word(base, 0);
        let first = bases[mask.lanes().next()?];
        (first != NOWHERE && mask.lanes().all(|lane| bases[lane] == first)).then_some((first + pointer.add) as usize)
    }

    fn store(&mut self, to: &Pointer, from: Value, line: u32, mask: &Mask) {
        if to.space == Space::Own {
            return self.store_own(to, from, mask);
        }
        for lane in self.in_order(mask) {
            let Some(first) = self.place(to.base, to.add, lane) else { continue };
            for (word, &leaf) in to.leaves.iter().enumerate() {
                let value = (self.registers.get(from, word as u32, lane), self.registers.origin(from, word as u32, lane));
                if to.atomic || to.space != Space::Workgroup {
                    self.report_origin(value.1, "a result", line);
                }
                let Some((memory, at, mut access)) = self.shared(to.space, first + leaf as usize, lane, line) else { continue };
                if to.atomic { memory.atomic_store(at, value.0, &mut access) } else { memory.write(at, value, &mut access) }
            }
            if let Some(vector) = to.vector {
                self.store_beside(to.space, vector, first, lane, line);
            }
        }
    }

    /// A store to one component of a vector may write them all.
    fn store_beside(&mut self, space: Space, vector: Vector, component: usize, lane: usize, line: u32) {
        let Some(first) = self.place(vector.base, vector.add, lane) else { return };
        for at in (first..first + vector.words as usize).filter(|&at| at != component) {
            if let Some((memory, at, mut access)) = self.shared(space, at, lane, line) {
                memory.write_beside(at, &mut access);
            }
        }
    }

    fn store_own(&mut self, to: &Pointer, from: Value, mask: &Mask) {
        if let Some(first) = self.same_place(to, mask) {
            (0..from.words)
                .for_each(|word| self.variables.copy_word(first + word as usize, &self.registers, (from.at + word) as usize, mask));
            return;
        }
        for lane in mask.lanes() {
            let Some(first) = self.place(to.base, to.add, lane) else { continue };
            for word in 0..from.words {
                let value = (self.registers.get(from, word, lane), self.registers.origin(from, word, lane));
                self.variables.put(first + word as usize, lane, value);
            }
        }
    }

    /// The lanes of a mask in the order in which they reach memory.
    pub(crate) fn in_order(&self, mask: &Mask) -> Vec<usize> {
        self.order.iter().copied().filter(|&lane| mask.has(lane)).collect()
    }

    fn atomic(&mut self, to: &Pointer, fun: AtomicFunction, values: [Option<Value>; 3], line: u32, mask: &Mask) {
        let [operand, compare, result] = values;
        let signed = operand.is_some_and(|operand| operand.kind == Kind::I32);
        [operand, compare].into_iter().flatten().for_each(|value| self.use_value(value, "an atomic's operand", line, mask));
        for lane in self.in_order(mask) {
            let get = |value: Option<Value>| value.map_or(0, |value| self.registers.get(value, 0, lane));
            let (operand, compared) = (get(operand), get(compare));
            let Some(place) = self.place(to.base, to.add, lane) else { continue };
            let Some((memory, at, mut access)) = self.shared(to.space, place, lane, line) else { continue };
            // Bits that are left alone may be nobody's, as long as nobody looks at them.
            let partial = result.is_none() && matches!(fun, AtomicFunction::And | AtomicFunction::InclusiveOr);
            let before = memory.atomic_change(at, partial, &mut access, |x| change(fun, x, operand, compare.map(|_| compared), signed));
            if let Some(result) = result {
                self.registers.word_mut(result, 0)[lane] = before;
                if compare.is_some() {
                    self.registers.word_mut(result, 1)[lane] = (before == compared).into();
                }
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

fn change(fun: AtomicFunction, x: u32, operand: u32, compare: Option<u32>, signed: bool) -> u32 {
    match fun {
        AtomicFunction::Add => x.wrapping_add(operand),
        AtomicFunction::Subtract => x.wrapping_sub(operand),
        AtomicFunction::And => x & operand,
        AtomicFunction::ExclusiveOr => x ^ operand,
        AtomicFunction::InclusiveOr => x | operand,
        AtomicFunction::Min if signed => (x as i32).min(operand as i32) as u32,
        AtomicFunction::Max if signed => (x as i32).max(operand as i32) as u32,
        AtomicFunction::Min => x.min(operand),
        AtomicFunction::Max => x.max(operand),
        AtomicFunction::Exchange { .. } => match compare {
            Some(compare) if compare != x => x,
            _ => operand,
        },
    }
}
