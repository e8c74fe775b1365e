//! Pure expressions on the values of all lanes at once.
//!
//! A result is in registers above those of its operands; [`Pure::run`] relies on this. Inactive lanes compute whatever
//! their registers contain; only active lanes are reported.

use naga::{BinaryOperator as Bin, MathFunction as Math, UnaryOperator};

use crate::math;
use crate::report::Rule;
use crate::value::{Kind, Mask, Registers, Value};

/// Expression that touches neither memory nor other lanes.
#[derive(Clone, Debug)]
pub(crate) struct Pure {
    pub(crate) what: What,
    pub(crate) to: Value,
    pub(crate) line: u32,
}

/// Operation of a [`Pure`], and its operands.
#[derive(Clone, Debug)]
pub(crate) enum What {
    Unary(UnaryOperator, Value),
    /// Componentwise; an operand of one word is broadcast.
    Binary(Bin, Value, Value),
    Select {
        condition: Value,
        accept: Value,
        reject: Value,
    },
    Math(Math, Vec<Value>),
    All(Value),
    Any(Value),
    Convert(Value),
    /// Concatenation of the parts.
    Compose(Vec<Value>),
    Splat(Value),
    /// Element `index` of `count` elements of a composite value.
    Pick {
        from: Value,
        index: Value,
        count: u32,
    },
}

/// Callback for operands that have no defined result.
pub(crate) type Undefined<'a> = dyn FnMut(Rule, u32, String) + 'a;

impl Pure {
    /// Evaluates the expression for all lanes; calls `undefined` for each active lane without a defined result.
    pub(crate) fn run(&self, registers: &mut Registers, mask: &Mask, undefined: &mut Undefined<'_>) {
        let lanes = registers.lanes;
        self.follow(registers);
        let start = self.to.at as usize * lanes;
        let (below, to) = registers.data.split_at_mut(start);
        let mut call = Call { below, to: &mut to[..self.to.words as usize * lanes], lanes, kind: self.to.kind, mask };
        let mut report = |rule, detail: String| undefined(rule, self.line, detail);
        match &self.what {
            What::Unary(op, a) => call.unary(*op, *a),
            What::Binary(op, a, b) => call.binary(*op, *a, *b, &mut report),
            What::Select { condition, accept, reject } => call.select(*condition, *accept, *reject),
            What::Math(fun, args) => math::run(&mut call, *fun, args, &mut report),
            What::All(a) => call.fold(*a, 1, |all, x| all & x),
            What::Any(a) => call.fold(*a, 0, |any, x| any | x),
            What::Convert(a) => call.convert(*a, &mut report),
            What::Compose(parts) => call.compose(parts),
            What::Splat(a) => call.map(*a, |x| x),
            What::Pick { from, index, count } => call.pick(*from, *index, *count, &mut report),
        }
    }
}

impl Pure {
    pub(crate) fn operands(&self) -> impl Iterator<Item = Value> {
        let few: [Option<Value>; 3] = match &self.what {
            What::Unary(_, a) | What::All(a) | What::Any(a) | What::Convert(a) | What::Splat(a) => [Some(*a), None, None],
            What::Binary(_, a, b) => [Some(*a), Some(*b), None],
            What::Select { condition, accept, reject } => [Some(*condition), Some(*accept), Some(*reject)],
            What::Math(..) | What::Compose(_) => [None; 3],
            What::Pick { from, index, .. } => [Some(*from), Some(*index), None],
        };
        let many = if let What::Math(_, values) | What::Compose(values) = &self.what { &values[..] } else { &[] };
        few.into_iter().flatten().chain(many.iter().copied())
    }

    /// Marks results that depend on uninitialised memory.
    fn follow(&self, registers: &mut Registers) {
        let to = self.to;
        registers.clean(to);
        if !self.operands().any(|operand| registers.is_tainted(operand)) {
            return;
        }
        for lane in 0..registers.lanes {
            for word in 0..to.words {
                let origin = self.origin(registers, word, lane);
                let bits = registers.get(to, word, lane);
                registers.set(to, word, lane, (bits, origin));
            }
        }
    }

    /// Origin of a word of the result.
    fn origin(&self, registers: &Registers, word: u32, lane: usize) -> u32 {
        let of = |value: Value| registers.origin(value, if value.words == 1 { 0 } else { word }, lane);
        let first = |origins: &[u32]| origins.iter().copied().find(|&origin| origin != 0).unwrap_or(0);
        match &self.what {
            What::Unary(_, a) | What::Convert(a) | What::Splat(a) => of(*a),
            What::Binary(_, a, b) => first(&[of(*a), of(*b)]),
            What::Select { condition, accept, reject } => {
                let condition_word = if condition.words == 1 { 0 } else { word };
                let chosen = if registers.get(*condition, condition_word, lane) != 0 { *accept } else { *reject };
                first(&[of(*condition), of(chosen)])
            }
            What::Compose(parts) => {
                let mut at = word;
                for part in parts {
                    if at < part.words {
                        return registers.origin(*part, at, lane);
                    }
                    at -= part.words;
                }
                0
            }
            What::Pick { from, index, count } => {
                let element = registers.get(*index, 0, lane).min(count - 1);
                first(&[of(*index), registers.origin(*from, element * self.to.words + word, lane)])
            }
            What::Math(_, args) if args.iter().all(|arg| arg.words == self.to.words) => {
                first(&args.iter().map(|&arg| of(arg)).collect::<Vec<_>>())
            }
            What::All(_) | What::Any(_) | What::Math(..) => {
                self.operands().map(|operand| registers.any_origin(operand, lane)).find(|&origin| origin != 0).unwrap_or(0)
            }
        }
    }
}

/// Evaluation in progress.
pub(crate) struct Call<'a> {
    below: &'a [u32],
    to: &'a mut [u32],
    lanes: usize,
    /// Kind of the result.
    kind: Kind,
    mask: &'a Mask,
}

pub(crate) type Report<'a> = dyn FnMut(Rule, String) + 'a;

impl<'a> Call<'a> {
    /// Returns one word of an operand, for all lanes; an operand of one word is broadcast.
    fn word(&self, value: Value, word: usize) -> &'a [u32] {
        let word = if value.words == 1 { 0 } else { word };
        let start = (value.at as usize + word) * self.lanes;
        &self.below[start..start + self.lanes]
    }

    pub(crate) fn map(&mut self, a: Value, f: impl Fn(u32) -> u32) {
        for word in 0..self.to.len() / self.lanes {
            let a = self.word(a, word);
            let to = &mut self.to[word * self.lanes..][..self.lanes];
            to.iter_mut().zip(a).for_each(|(to, &a)| *to = f(a));
        }
    }

    pub(crate) fn zip(&mut self, a: Value, b: Value, f: impl Fn(u32, u32) -> u32) {
        for word in 0..self.to.len() / self.lanes {
            let (a, b) = (self.word(a, word), self.word(b, word));
            let to = &mut self.to[word * self.lanes..][..self.lanes];
            to.iter_mut().zip(a).zip(b).for_each(|((to, &a), &b)| *to = f(a, b));
        }
    }

    pub(crate) fn zip3(&mut self, [a, b, c]: [Value; 3], f: impl Fn(u32, u32, u32) -> u32) {
        for word in 0..self.to.len() / self.lanes {
            let (a, b, c) = (self.word(a, word), self.word(b, word), self.word(c, word));
            let to = &mut self.to[word * self.lanes..][..self.lanes];
            to.iter_mut().zip(a).zip(b).zip(c).for_each(|(((to, &a), &b), &c)| *to = f(a, b, c));
        }
    }

    pub(crate) fn map_f32(&mut self, a: Value, f: impl Fn(f32) -> f32) {
        self.map(a, |a| f(f32::from_bits(a)).to_bits());
    }

    pub(crate) fn zip_f32(&mut self, a: Value, b: Value, f: impl Fn(f32, f32) -> f32) {
        self.zip(a, b, |a, b| f(f32::from_bits(a), f32::from_bits(b)).to_bits());
    }

    pub(crate) fn zip3_f32(&mut self, args: [Value; 3], f: impl Fn(f32, f32, f32) -> f32) {
        self.zip3(args, |a, b, c| f(f32::from_bits(a), f32::from_bits(b), f32::from_bits(c)).to_bits());
    }

    /// Reduces all words of a value to one.
    pub(crate) fn fold(&mut self, a: Value, first: u32, f: impl Fn(u32, u32) -> u32) {
        self.to.fill(first);
        for word in 0..a.words as usize {
            let a = self.word(a, word);
            self.to.iter_mut().zip(a).for_each(|(to, &a)| *to = f(*to, a));
        }
    }

    /// Computes the result of each lane from all words of its operands.
    pub(crate) fn by_lane(&mut self, args: &[Value], f: impl Fn(&[Vec<u32>], &mut [u32])) {
        let mut operands: Vec<Vec<u32>> = args.iter().map(|arg| vec![0; arg.words as usize]).collect();
        let mut result = vec![0; self.to.len() / self.lanes];
        for lane in 0..self.lanes {
            for (operand, arg) in operands.iter_mut().zip(args) {
                (0..operand.len()).for_each(|word| operand[word] = self.word(*arg, word)[lane]);
            }
            f(&operands, &mut result);
            result.iter().enumerate().for_each(|(word, &bits)| self.to[word * self.lanes + lane] = bits);
        }
    }

    /// Reports each active lane whose operands are `bad`.
    pub(crate) fn check(&self, rule: Rule, a: Value, b: Value, bad: impl Fn(u32, u32) -> Option<String>, report: &mut Report<'_>) {
        for word in 0..a.words.max(b.words) as usize {
            let (a, b) = (self.word(a, word), self.word(b, word));
            for lane in 0..self.lanes {
                if let Some(detail) = bad(a[lane], b[lane]).filter(|_| self.mask.has(lane)) {
                    report(rule, detail);
                }
            }
        }
    }

    fn unary(&mut self, op: UnaryOperator, a: Value) {
        match (op, self.kind) {
            (UnaryOperator::Negate, Kind::F32) => self.map_f32(a, |x| -x),
            (UnaryOperator::Negate, _) => self.map(a, u32::wrapping_neg),
            (UnaryOperator::LogicalNot, _) => self.map(a, |x| x ^ 1),
            (UnaryOperator::BitwiseNot, _) => self.map(a, |x| !x),
        }
    }

    fn binary(&mut self, op: Bin, a: Value, b: Value, report: &mut Report<'_>) {
        match (op, a.kind) {
            (Bin::ShiftLeft | Bin::ShiftRight, _) => self.shift(op, a, b, report),
            (Bin::And | Bin::LogicalAnd, _) => self.zip(a, b, |a, b| a & b),
            (Bin::InclusiveOr | Bin::LogicalOr, _) => self.zip(a, b, |a, b| a | b),
            (Bin::ExclusiveOr, _) => self.zip(a, b, |a, b| a ^ b),
            (_, Kind::F32) => self.binary_f32(op, a, b),
            (Bin::Divide | Bin::Modulo, _) => self.divide(op, a, b, report),
            (Bin::Add, _) => self.zip(a, b, u32::wrapping_add),
            (Bin::Subtract, _) => self.zip(a, b, u32::wrapping_sub),
            (Bin::Multiply, _) => self.zip(a, b, u32::wrapping_mul),
            (Bin::Equal, _) => self.zip(a, b, |a, b| u32::from(a == b)),
            (Bin::NotEqual, _) => self.zip(a, b, |a, b| u32::from(a != b)),
            (Bin::Less, Kind::I32) => self.zip(a, b, |a, b| u32::from((a as i32) < b as i32)),
            (Bin::LessEqual, Kind::I32) => self.zip(a, b, |a, b| u32::from(a as i32 <= b as i32)),
            (Bin::Greater, Kind::I32) => self.zip(a, b, |a, b| u32::from(a as i32 > b as i32)),
            (Bin::GreaterEqual, Kind::I32) => self.zip(a, b, |a, b| u32::from(a as i32 >= b as i32)),
            (Bin::Less, _) => self.zip(a, b, |a, b| u32::from(a < b)),
            (Bin::LessEqual, _) => self.zip(a, b, |a, b| u32::from(a <= b)),
            (Bin::Greater, _) => self.zip(a, b, |a, b| u32::from(a > b)),
            (Bin::GreaterEqual, _) => self.zip(a, b, |a, b| u32::from(a >= b)),
        }
    }

    fn binary_f32(&mut self, op: Bin, a: Value, b: Value) {
        let mut compare = |f: fn(&f32, &f32) -> bool| self.zip(a, b, |a, b| u32::from(f(&f32::from_bits(a), &f32::from_bits(b))));
        match op {
            Bin::Equal => compare(f32::eq),
            Bin::NotEqual => compare(f32::ne),
            Bin::Less => compare(f32::lt),
            Bin::LessEqual => compare(f32::le),
            Bin::Greater => compare(f32::gt),
            Bin::GreaterEqual => compare(f32::ge),
            Bin::Add => self.zip_f32(a, b, |a, b| a + b),
            Bin::Subtract => self.zip_f32(a, b, |a, b| a - b),
            Bin::Multiply => self.zip_f32(a, b, |a, b| a * b),
            Bin::Divide => self.zip_f32(a, b, |a, b| a / b),
            Bin::Modulo => self.zip_f32(a, b, |a, b| a % b),
            // The others are for integers and bools; `binary` has handled them.
            _ => {}
        }
    }

    fn shift(&mut self, op: Bin, a: Value, b: Value, report: &mut Report<'_>) {
        self.check(Rule::Shift, a, b, |_, b| (b >= 32).then(|| format!("by {b}")), report);
        match (op, a.kind) {
            (Bin::ShiftLeft, _) => self.zip(a, b, u32::wrapping_shl),
            (_, Kind::I32) => self.zip(a, b, |a, b| (a as i32).wrapping_shr(b) as u32),
            _ => self.zip(a, b, u32::wrapping_shr),
        }
    }

    fn divide(&mut self, op: Bin, a: Value, b: Value, report: &mut Report<'_>) {
        let signed = a.kind == Kind::I32;
        let bad = |a: u32, b: u32| {
            let overflows = signed && a as i32 == i32::MIN && b as i32 == -1;
            (b == 0 || overflows).then(|| format!("{} by {}", a as i32, b as i32))
        };
        self.check(Rule::Division, a, b, bad, report);
        match (op, signed) {
            (Bin::Divide, true) => self.zip(a, b, |a, b| (a as i32).checked_div(b as i32).map_or(a, |x| x as u32)),
            (Bin::Divide, false) => self.zip(a, b, |a, b| a.checked_div(b).unwrap_or(a)),
            (_, true) => self.zip(a, b, |a, b| (a as i32).checked_rem(b as i32).unwrap_or(0) as u32),
            (_, false) => self.zip(a, b, |a, b| a.checked_rem(b).unwrap_or(0)),
        }
    }

    fn select(&mut self, condition: Value, accept: Value, reject: Value) {
        self.zip3([condition, accept, reject], |condition, accept, reject| if condition != 0 { accept } else { reject });
    }

    fn convert(&mut self, a: Value, report: &mut Report<'_>) {
        match (a.kind, self.kind) {
            (Kind::F32, Kind::I32 | Kind::U32) => {
                // The truncated number must fit: -2^31 <= x < 2^31 if signed, -1 < x < 2^32 if not.
                let signed = self.kind == Kind::I32;
                let fits = move |x: f32| if signed { (-2147483648.0..2147483648.0).contains(&x) } else { x > -1.0 && x < 4294967296.0 };
                let bad = |x: u32, _| (!fits(f32::from_bits(x))).then(|| format!("of {:e}", f32::from_bits(x)));
                self.check(Rule::Conversion, a, a, bad, report);
                self.map(a, |x| if signed { f32::from_bits(x) as i32 as u32 } else { f32::from_bits(x) as u32 });
            }
            (Kind::F32, Kind::Bool) => self.map(a, |x| u32::from(f32::from_bits(x) != 0.0)),
            (Kind::I32, Kind::F32) => self.map(a, |x| (x as i32 as f32).to_bits()),
            (Kind::U32 | Kind::Bool, Kind::F32) => self.map(a, |x| (x as f32).to_bits()),
            (Kind::I32 | Kind::U32, Kind::Bool) => self.map(a, |x| u32::from(x != 0)),
            _ => self.map(a, |x| x),
        }
    }

    fn compose(&mut self, parts: &[Value]) {
        let mut at = 0;
        for part in parts {
            for word in 0..part.words as usize {
                let from = self.word(*part, word);
                self.to[at..at + self.lanes].copy_from_slice(from);
                at += self.lanes;
            }
        }
    }

    fn pick(&mut self, from: Value, index: Value, count: u32, report: &mut Report<'_>) {
        let out = |index: u32, _| (index >= count).then(|| format!("element {index} of {count}"));
        self.check(Rule::OutOfBounds, index, index, out, report);
        let index = self.word(index, 0);
        let size = self.to.len() / self.lanes;
        for (lane, &index) in index.iter().enumerate() {
            let element = index.min(count - 1) as usize;
            for word in 0..size {
                self.to[word * self.lanes + lane] = self.word(from, element * size + word)[lane];
            }
        }
    }
}
