//! Random texts of users' terms: what a function of a pair may have, kept where all devices agree on the results.

use crate::numbers::Random;
use crate::verify::random_templates::{BOOLS, FLOAT_VECTORS, FLOATS, INTEGER_VECTORS, INTEGERS, OF_TABLES, UNSIGNED, UNSIGNED_VECTORS};

/// Variable in sight: its name, the letter of its type, and its elements if it is an array.
#[derive(Clone)]
struct Variable {
    name: String,
    kind: char,
    elements: usize,
    is_mutable: bool,
}

/// Text that grows.
pub(crate) struct Text<'a> {
    random: &'a mut Random,
    text: String,
    scope: Vec<Variable>,
    /// Helper functions, as templates with the letter of their result.
    helpers: Vec<(char, String)>,
    has_tables: bool,
    /// Expressions that may still be drawn.
    budget: usize,
    depth: usize,
    names: usize,
    loops: usize,
    /// Letter of the result of the function at hand.
    result: char,
}

/// Draws a text: a score, and now and then what is visible. With tables it reads `rates` of f32, `ids` of i32 and `words` of
/// u32. `size` is roughly the number of expressions.
pub(crate) fn draw(random: &mut Random, size: usize, has_tables: bool) -> String {
    let mut text = Text {
        random,
        text: String::new(),
        scope: vec![],
        helpers: vec![],
        has_tables,
        budget: 0,
        depth: 0,
        names: 0,
        loops: 0,
        result: 'f',
    };
    text.globals();
    for _ in 0..text.random.below(3) {
        text.helper(size / 4);
    }
    if text.random.one_in(3) {
        text.function("visible", "at: Pair", 'b', size / 2);
    }
    text.function("score", "x: f32, at: Pair", 'f', size);
    text.text
}

impl Text<'_> {
    fn globals(&mut self) {
        self.text += "const FEW = array<f32, 4>(0.5, -1.25, 2.0, 0.125);\nconst STEP: i32 = 3;\n";
        self.text += "struct Both { a: f32, b: vec3<i32>, c: array<u32, 3> }\n";
    }

    fn helper(&mut self, size: usize) {
        let kind = self.random.pick(&['f', 'f', 'i', 'u', 'b', '3']);
        let name = format!("h{}", self.helpers.len());
        self.function(&name, "a: f32, b: i32, c: vec2<u32>", kind, size);
        self.helpers.push((kind, format!("{name}($f, $i, $k)")));
    }

    fn function(&mut self, name: &str, arguments: &str, kind: char, size: usize) {
        self.scope.clear();
        let pair = ["batch", "head", "kv_head", "row", "key", "position", "key_position", "len_q", "len_kv"];
        if arguments.contains("at: Pair") {
            self.scope.extend(pair.map(|field| Variable { name: format!("at.{field}"), kind: 'i', elements: 0, is_mutable: false }));
        } else {
            self.see("b", 'i', 0, false);
            self.see("c", 'k', 0, false);
            self.see("a", 'f', 0, false);
        }
        if arguments.starts_with('x') {
            self.see("x", 'f', 0, false);
        }
        (self.budget, self.result) = (size, kind);
        self.text += &format!("fn {name}({arguments}) -> {} {{\n", type_name(kind));
        let count = 2 + self.random.below(5);
        for _ in 0..count {
            self.statement(0);
        }
        self.budget = self.budget.max(size / 4);
        let mut result = self.expression(kind);
        if name == "score" && self.random.one_in(2) {
            result = format!("x * 0.5 + {result}");
        }
        self.text += &format!("    return {result};\n}}\n");
    }

    fn see(&mut self, name: &str, kind: char, elements: usize, is_mutable: bool) {
        self.scope.push(Variable { name: name.into(), kind, elements, is_mutable });
    }

    fn name(&mut self) -> String {
        self.names += 1;
        format!("n{}", self.names)
    }

    /// Expression of a kind, in parentheses where it needs them.
    fn expression(&mut self, kind: char) -> String {
        if self.budget == 0 || self.depth > 4 || self.random.one_in(4) {
            return self.leaf(kind);
        }
        self.budget -= 1;
        let helpers: Vec<String> = self.helpers.iter().filter(|(result, _)| *result == kind).map(|(_, call)| call.clone()).collect();
        if !helpers.is_empty() && self.random.one_in(8) {
            let template = &helpers[self.random.below(helpers.len())];
            return self.fill(template);
        }
        let templates = match kind {
            'f' => FLOATS,
            'i' => INTEGERS,
            'u' => UNSIGNED,
            'b' => BOOLS,
            'j' => INTEGER_VECTORS,
            'k' => UNSIGNED_VECTORS,
            _ => FLOAT_VECTORS,
        };
        let template = self.random.pick(templates).replace('#', &kind.to_string());
        self.fill(&template)
    }

    fn fill(&mut self, template: &str) -> String {
        self.depth += 1;
        let mut text = String::new();
        let mut letters = template.chars();
        while let Some(letter) = letters.next() {
            match if letter == '$' { letters.next() } else { None } {
                None => text.push(letter),
                Some('F') => text += self.random.pick(&["0.5", "-1.25", "0.8125", "3.0", "-0.1"]),
                Some('I') => text += self.random.pick(&["1", "-2", "7", "100", "2147483647", "-2147483647"]),
                Some('U') => text += self.random.pick(&["1", "2", "5", "31"]),
                Some(kind) => text += &self.expression(kind),
            }
        }
        self.depth -= 1;
        text
    }

    /// Variable, element or number from a table.
    fn leaf(&mut self, kind: char) -> String {
        if self.has_tables && self.random.one_in(6) {
            let all: Vec<&str> = OF_TABLES.iter().filter(|(of, _)| *of == kind).map(|(_, template)| *template).collect();
            if !all.is_empty() {
                let template = self.random.pick(&all);
                let depth = std::mem::replace(&mut self.depth, 5);
                let text = self.fill(template);
                self.depth = depth;
                return text;
            }
        }
        let all: Vec<Variable> = self.scope.iter().filter(|variable| variable.kind == kind).cloned().collect();
        if !all.is_empty() {
            // The latest are the least used.
            let from = if self.random.one_in(2) { all.len().saturating_sub(3) } else { 0 };
            let variable = &all[from + self.random.below(all.len() - from)];
            if variable.elements == 0 {
                return variable.name.clone();
            }
            let index = self.simple_integer();
            return format!("{}[{index}]", variable.name);
        }
        let int = self.simple_integer();
        match kind {
            'f' if self.random.one_in(3) => format!("FEW[{int} & 3]"),
            'f' => format!("(0.25 * f32({int} & 15))"),
            'u' => format!("u32({int})"),
            'b' => format!("({int} < {})", self.simple_integer()),
            'j' => format!("vec3<i32>({int}, 2, {})", self.simple_integer()),
            'k' => format!("vec2<u32>(5u, u32({int}))"),
            _ => {
                let part = self.leaf('f');
                format!("vec{kind}<f32>({part})")
            }
        }
    }

    /// Number that is in sight everywhere.
    fn simple_integer(&mut self) -> String {
        let all: Vec<String> = self
            .scope
            .iter()
            .filter(|variable| variable.kind == 'i' && variable.elements == 0)
            .map(|variable| variable.name.clone())
            .collect();
        all[self.random.below(all.len())].clone()
    }

    fn block(&mut self, depth: usize) {
        let outer = self.scope.len();
        for _ in 0..1 + self.random.below(3) {
            self.statement(depth);
        }
        self.scope.truncate(outer);
    }

    fn statement(&mut self, depth: usize) {
        // Without a budget, no more blocks.
        let deep = depth > 2 || self.budget == 0;
        self.budget = self.budget.saturating_sub(1);
        match self.random.below(14) {
            0..=2 => self.declare(),
            6 | 7 if !deep => {
                let condition = self.expression('b');
                self.text += &format!("if ({condition}) {{\n");
                self.block(depth + 1);
                if self.random.one_in(3) {
                    let condition = self.expression('b');
                    self.text += &format!("}} else if ({condition}) {{\n");
                    self.block(depth + 1);
                }
                if self.random.one_in(2) {
                    self.text += "} else {\n";
                    self.block(depth + 1);
                }
                self.text += "}\n";
            }
            8 | 9 if !deep && self.loops < 2 => self.repeat(depth),
            10 if !deep => self.switch(depth),
            11 => {
                let (condition, result) = (self.expression('b'), self.expression(self.result));
                self.text += &format!("if ({condition}) {{ return {result}; }}\n");
            }
            12 if self.loops > 0 => {
                let (condition, leave) = (self.expression('b'), self.random.pick(&["break", "continue"]));
                self.text += &format!("if ({condition}) {{ {leave}; }}\n");
            }
            13 if !deep => {
                self.text += "{\n";
                self.block(depth + 1);
                self.text += "}\n";
            }
            _ => self.assign(),
        }
    }

    fn declare(&mut self) {
        let (name, kind) = (self.name(), self.random.pick(&['f', 'f', 'f', 'i', 'i', 'u', 'b', '2', '3', '4', 'j', 'k']));
        if self.random.one_in(5) && kind != 'b' {
            let count = 2 + self.random.below(3);
            let values: Vec<String> = (0..count).map(|_| self.expression(kind)).collect();
            self.text += &format!("var {name} = array<{}, {count}>({});\n", type_name(kind), values.join(", "));
            return self.see(&name, kind, count, true);
        }
        if self.random.one_in(8) {
            let (a, b, c) = (self.expression('f'), self.expression('j'), self.expression('u'));
            self.text += &format!("var {name} = Both({a}, {b}, array<u32, 3>({c}, 5u, 6u));\n");
            self.see(&format!("{name}.a"), 'f', 0, true);
            self.see(&format!("{name}.b"), 'j', 0, true);
            return self.see(&format!("{name}.c"), 'u', 3, true);
        }
        let value = self.expression(kind);
        let is_mutable = !self.random.one_in(3);
        let word = if is_mutable { "var" } else { "let" };
        self.text += &format!("{word} {name}: {} = {value};\n", type_name(kind));
        self.see(&name, kind, 0, is_mutable);
    }

    fn assign(&mut self) {
        let all: Vec<Variable> = self.scope.iter().filter(|variable| variable.is_mutable).cloned().collect();
        if all.is_empty() {
            return self.declare();
        }
        let Variable { name, kind, elements, .. } = &all[self.random.below(all.len())];
        let place = match elements {
            0 => name.clone(),
            _ => format!("{name}[{}]", self.simple_integer()),
        };
        let line = match kind {
            'i' if self.random.one_in(3) => format!("{place}{}", self.random.pick(&["++", "--"])),
            'i' | 'u' if self.random.one_in(2) => {
                let sign = self.random.pick(&["+=", "-=", "*=", "/=", "%=", "&=", "|=", "^="]);
                format!("{place} {sign} {}", self.expression(*kind))
            }
            'f' if self.random.one_in(3) => format!("{place} += 0.25 * tanh({})", self.expression('f')),
            'f' => format!("{place} = clamp({}, -6.0, 6.5)", self.expression('f')),
            '2' | '3' | '4' if self.random.one_in(2) => {
                let part = self.random.pick(&[".x", ".y", ".g"]);
                format!("{place}{part} = clamp({}, -6.0, 6.5)", self.expression('f'))
            }
            '2' | '3' | '4' => format!("{place} = tanh({}) * 2.0", self.expression(*kind)),
            'j' if *elements == 0 && self.random.one_in(2) => {
                let index = self.simple_integer();
                format!("{place}[{index}] = {}", self.expression('i'))
            }
            _ => format!("{place} = {}", self.expression(*kind)),
        };
        self.text += &format!("{line};\n");
    }

    /// Loop of a few trips; `continue` skips no count.
    fn repeat(&mut self, depth: usize) {
        let (name, trips) = (self.name(), 1 + self.random.below(3));
        let outer = self.scope.len();
        let loops = self.loops;
        self.loops += 1;
        match self.random.below(4) {
            0 => {
                self.text += &format!("for (var {name} = 0; {name} < {trips}; {name}++) {{\n");
                self.see(&name, 'i', 0, false);
                self.block(depth + 1);
            }
            1 => {
                let condition = self.expression('b');
                self.text += &format!("var {name} = {trips};\nwhile ({name} > 0 && {condition}) {{\n{name} -= 1;\n");
                self.see(&name, 'i', 0, false);
                self.block(depth + 1);
            }
            2 => {
                self.text += &format!("var {name} = 0;\nloop {{\nif ({name} >= {trips}) {{ break; }}\n");
                self.see(&name, 'i', 0, false);
                self.block(depth + 1);
                self.text += &format!("continuing {{ {name} += 1; }}\n");
            }
            _ => {
                self.text += &format!("var {name} = 0;\nloop {{\n");
                self.see(&name, 'i', 0, false);
                self.block(depth + 1);
                let condition = self.expression('b');
                self.text += &format!("continuing {{ {name}++; break if {name} >= {trips} || {condition}; }}\n");
            }
        }
        self.text += "}\n";
        self.loops = loops;
        self.scope.truncate(outer);
    }

    fn switch(&mut self, depth: usize) {
        let (kind, suffix) = self.random.pick(&[('i', ""), ('u', "u")]);
        let selector = self.expression(kind);
        self.text += &format!("switch ({selector} & 3{suffix}) {{\n");
        let heads = self.random.pick(&[
            ["case 0", "case 1, 2", "default"],
            ["default", "case 3, 1", "case 2"],
            ["case 1", "case 3, default", "case 0, 2"],
        ]);
        for head in heads {
            // Literals of an i32 fit a u32 too.
            self.text += &format!("{head}: {{\n");
            self.block(depth + 1);
            if self.random.one_in(3) {
                let condition = self.expression('b');
                self.text += &format!("if ({condition}) {{ break; }}\n");
                let outer = self.scope.len();
                self.assign();
                self.scope.truncate(outer);
            }
            self.text += "}\n";
        }
        self.text += "}\n";
    }
}

const fn type_name(kind: char) -> &'static str {
    match kind {
        'f' => "f32",
        'i' => "i32",
        'u' => "u32",
        'b' => "bool",
        'j' => "vec3<i32>",
        'k' => "vec2<u32>",
        '2' => "vec2<f32>",
        '3' => "vec3<f32>",
        _ => "vec4<f32>",
    }
}
