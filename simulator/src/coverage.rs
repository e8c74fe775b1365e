//! Statements that are reachable: variants of a kernel have constant switches, and functions that nobody calls.
//!
//! Known values are propagated forwards through registers and variables; a branch on a known condition has one side.

use std::collections::HashMap;

use crate::program::{Act, Argument, Function, Pointer, Program, Space, Statement, Step};
use crate::value::{Mask, Registers, Value};

/// Returns for each statement true if it can be reached.
pub(crate) fn reachable(program: &Program) -> Vec<bool> {
    let mut analysis = Analysis {
        registers: Registers::new(program.register_words as usize, 1),
        known: vec![false; program.register_words as usize],
        results: Vec::new(),
        returned: None,
        live: vec![false; program.lines.len()],
        calls: Vec::new(),
    };
    for (value, words) in &program.constants {
        analysis.registers.fill(*value, words);
        analysis.know(*value, true);
    }
    // Functions come after the functions that they call.
    let mut by_function = Vec::new();
    for function in &program.functions {
        analysis.live.fill(false);
        (analysis.returned, analysis.calls) = (None, Vec::new());
        analysis.function(function);
        let result = std::mem::take(&mut analysis.returned).flatten();
        analysis.results.push(result);
        by_function.push((analysis.live.clone(), std::mem::take(&mut analysis.calls)));
    }
    let mut reached = vec![false; program.functions.len()];
    let mut open = vec![program.entry];
    let mut live = vec![false; program.lines.len()];
    while let Some(function) = open.pop() {
        if !std::mem::replace(&mut reached[function], true) {
            live.iter_mut().zip(&by_function[function].0).for_each(|(live, &here)| *live |= here);
            open.extend(&by_function[function].1);
        }
    }
    live
}

/// Words of variables whose value is known.
type Variables = HashMap<u32, u32>;

struct Analysis {
    /// Registers of a single lane.
    registers: Registers,
    known: Vec<bool>,
    /// Return value of each function analysed so far, if it is known.
    results: Vec<Option<Vec<u32>>>,
    /// Return value of the current function: `None` before the first return, `Some(None)` if it is not known.
    returned: Option<Option<Vec<u32>>>,
    live: Vec<bool>,
    /// Functions that the current one calls.
    calls: Vec<usize>,
}

/// Ways in which a block may end.
#[derive(Clone, Copy, Default)]
struct Ends {
    falls: bool,
    continues: bool,
}

impl Analysis {
    fn know(&mut self, value: Value, known: bool) {
        self.known[value.at as usize..(value.at + value.words) as usize].fill(known);
    }

    fn is_known(&self, value: Value) -> bool {
        self.known[value.at as usize..(value.at + value.words) as usize].iter().all(|&known| known)
    }

    fn words(&self, value: Value) -> Option<Vec<u32>> {
        self.is_known(value).then(|| (0..value.words).map(|word| self.registers.get(value, word, 0)).collect())
    }

    fn function(&mut self, function: &Function) {
        let mut variables = Variables::new();
        for initial in &function.variables {
            let words = match initial.value {
                Some(value) => self.words(value),
                None => Some(vec![0; initial.words as usize]),
            };
            self.assign(&mut variables, initial.at, initial.words, words.as_deref());
        }
        self.block(&function.body, &mut variables);
    }

    fn assign(&self, variables: &mut Variables, at: u32, words: u32, bits: Option<&[u32]>) {
        for word in 0..words {
            match bits {
                Some(bits) => variables.insert(at + word, bits[word as usize]),
                None => variables.remove(&(at + word)),
            };
        }
    }

    fn block(&mut self, block: &[Statement], variables: &mut Variables) -> Ends {
        let mut ends = Ends::default();
        for statement in block {
            self.live[statement.number] = true;
            let inner = self.statement(&statement.what, variables);
            ends.continues |= inner.continues;
            if !inner.falls {
                return ends;
            }
        }
        Ends { falls: true, ..ends }
    }

    fn statement(&mut self, act: &Act, variables: &mut Variables) -> Ends {
        let falls = Ends { falls: true, continues: false };
        match act {
            Act::Evaluate(steps) => steps.iter().for_each(|step| self.step(step, variables)),
            Act::Block(block) => return self.block(block, variables),
            Act::If { condition, accept, reject } => return self.branch(*condition, [accept, reject], variables),
            Act::Switch { cases, .. } => {
                variables.clear();
                let ends = cases.iter().map(|case| self.block(&case.body, &mut Variables::new())).collect::<Vec<_>>();
                return Ends { falls: true, continues: ends.iter().any(|ends| ends.continues) };
            }
            Act::Loop { body, continuing, .. } => {
                // If the first iteration is certain to leave the loop, no second one is analysed.
                let first = self.block(body, &mut variables.clone());
                variables.clear();
                if first.falls || first.continues {
                    self.block(body, &mut Variables::new());
                    self.block(continuing, &mut Variables::new());
                }
            }
            Act::Break => return Ends::default(),
            Act::Continue => return Ends { falls: false, continues: true },
            Act::Return(value) => {
                let words = value.and_then(|value| self.words(value));
                let same = match &self.returned {
                    None => words,
                    Some(before) => before.clone().filter(|before| words.as_ref() == Some(before)),
                };
                self.returned = Some(same);
                return Ends::default();
            }
            Act::Store { to, from } if to.space == Space::Own => match to.base {
                None => self.assign(variables, to.add, from.words, self.words(*from).as_deref()),
                Some(_) => variables.clear(),
            },
            Act::Call { function, arguments, result } => {
                self.calls.push(*function);
                if arguments.iter().any(|argument| matches!(argument, Argument::Pointer(Pointer { space: Space::Own, .. }))) {
                    variables.clear();
                }
                if let Some(result) = result {
                    let words = self.results.get(*function).cloned().flatten();
                    self.learn(*result, words.as_deref());
                }
            }
            _ => {}
        }
        falls
    }

    fn branch(&mut self, condition: Value, sides: [&Vec<Statement>; 2], variables: &mut Variables) -> Ends {
        let condition = self.words(condition).map(|words| words[0] != 0);
        let mut ends = Ends::default();
        let mut after: Option<Variables> = None;
        for (block, side) in sides.into_iter().zip([true, false]) {
            if condition.is_some_and(|condition| condition != side) {
                continue;
            }
            let mut inside = variables.clone();
            let inner = self.block(block, &mut inside);
            ends.continues |= inner.continues;
            if inner.falls {
                ends.falls = true;
                match &mut after {
                    None => after = Some(inside),
                    Some(after) => after.retain(|at, bits| inside.get(at) == Some(bits)),
                }
            }
        }
        *variables = after.unwrap_or_default();
        ends
    }

    fn learn(&mut self, value: Value, words: Option<&[u32]>) {
        self.know(value, words.is_some());
        if let Some(words) = words {
            self.registers.fill(value, words);
        }
    }

    fn step(&mut self, step: &Step, variables: &Variables) {
        match step {
            Step::Pure(pure) => {
                let known = pure.operands().all(|operand| self.is_known(operand));
                if known {
                    pure.run(&mut self.registers, &Mask::none(1), &mut |_, _, _| ());
                }
                self.know(pure.to, known);
            }
            Step::Load { from: Pointer { space: Space::Own, base: None, add, .. }, to, .. } => {
                let words: Option<Vec<u32>> = (0..to.words).map(|word| variables.get(&(add + word)).copied()).collect();
                self.learn(*to, words.as_deref());
            }
            Step::Load { to, .. } | Step::Length { to, .. } => self.know(*to, false),
            Step::Index(index) => self.know(index.to, false),
        }
    }
}
