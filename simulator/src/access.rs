//! Memory accesses of invocations: pointers, loads, stores, atomics.

use naga::AtomicFunction;

use crate::machine::Machine;
use crate::memory::{Access, Memory, Who};
use crate::program::{Count, Index, NOWHERE, Pointer, Space, Vector};
use crate::report::Rule;
use crate::value::{Kind, Mask, Value};

impl Machine<'_> {
    /// Returns the number of elements of a runtime-sized array.
    pub(crate) fn elements(&self, buffer: usize, first: u32, stride: u32) -> u32 {
        (self.ranges[buffer].words.saturating_sub(first as usize) / stride.max(1) as usize) as u32
    }

    /// Reports a value that depends on uninitialised memory, at a use where that matters.
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

    pub(crate) fn index(&mut self, index: &Index, mask: &Mask) {
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
    pub(crate) fn pass(&mut self, pointer: &Pointer, to: Value) {
        for lane in 0..self.registers.lanes {
            let place = self.place(pointer.base, pointer.add, lane).map_or(NOWHERE, |place| place as u32);
            self.registers.word_mut(to, 0)[lane] = place;
        }
    }

    /// Returns the first word that a lane's pointer refers to; `None` if the pointer is out of bounds.
    fn place(&self, base: Option<Value>, add: u32, lane: usize) -> Option<usize> {
        match base.map(|base| self.registers.get(base, 0, lane)) {
            Some(NOWHERE) => None,
            base => Some((base.unwrap_or(0) + add) as usize),
        }
    }

    fn who(&self, space: Space, lane: usize) -> Who {
        Who { workgroup: self.number, epoch: self.epochs[usize::from(space != Space::Workgroup)], lane: lane as u32 }
    }

    /// Returns the memory behind a pointer and the index of word `at` in it. Reports words past the end of a binding.
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

    pub(crate) fn load(&mut self, from: &Pointer, to: Value, line: u32, mask: &Mask) {
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

    /// Returns the word that the pointers of all lanes in `mask` refer to, if it is the same for all.
    pub(crate) fn same_place(&self, pointer: &Pointer, mask: &Mask) -> Option<usize> {
        let Some(base) = pointer.base else { return Some(pointer.add as usize) };
        let bases = self.registers.word(base, 0);
        let first = bases[mask.lanes().next()?];
        (first != NOWHERE && mask.lanes().all(|lane| bases[lane] == first)).then_some((first + pointer.add) as usize)
    }

    pub(crate) fn store(&mut self, to: &Pointer, from: Value, line: u32, mask: &Mask) {
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

    /// Marks the other components of a vector as written: a store to one component may write them all.
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

    /// Returns the lanes of a mask in the order in which they reach memory.
    pub(crate) fn in_order(&self, mask: &Mask) -> Vec<usize> {
        self.order.iter().copied().filter(|&lane| mask.has(lane)).collect()
    }

    pub(crate) fn atomic(&mut self, to: &Pointer, fun: AtomicFunction, values: [Option<Value>; 3], line: u32, mask: &Mask) {
        let [operand, compare, result] = values;
        let signed = operand.is_some_and(|operand| operand.kind == Kind::I32);
        [operand, compare].into_iter().flatten().for_each(|value| self.use_value(value, "an atomic's operand", line, mask));
        for lane in self.in_order(mask) {
            let get = |value: Option<Value>| value.map_or(0, |value| self.registers.get(value, 0, lane));
            let (operand, compared) = (get(operand), get(compare));
            let Some(place) = self.place(to.base, to.add, lane) else { continue };
            let Some((memory, at, mut access)) = self.shared(to.space, place, lane, line) else { continue };
            // The bits that `&` and `|` leave alone may be uninitialised as long as the result is not used.
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
