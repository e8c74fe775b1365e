//! Texts of users' terms that mean harm, or were written by accident: a typed error or a finished run, and soon.

use std::time::{Duration, Instant};

use wgpu_attention::{Backend, Dims, Engine, EngineOptions, Error, Inputs, Problem, Table, Term, oracle};

/// Longest time for reading a text and running it.
const SOON: Duration = Duration::from_secs(2);

/// Required outcome of a text.
enum Wanted {
    /// An error that contains this.
    Refused(&'static str),
    /// An answer as the oracle's.
    Runs,
    Either,
}
use Wanted::{Either, Refused, Runs};

fn score(body: &str) -> String {
    format!("fn score(x: f32, at: Pair) -> f32 {{ {body} }}")
}

/// Reads the text and, if it is right, runs a small problem with it on the CPU and in the oracle.
fn run(text: &str, tables: &[Table<'_>]) -> Result<(), Error> {
    let term = Term::with_tables(text, tables)?;
    let words: Vec<u32> = tables.iter().flat_map(|table| vec![0; table.len]).collect();
    let problem = Problem::new(Dims::self_attention(1, 2, 5, 4)).with_term(term);
    let data: Vec<f32> = (0..40).map(|at| ((at * 7 % 11) as f32 - 5.0) / 4.0).collect();
    let inputs = Inputs { term_tables: &words, ..Inputs::new(&data[..], &data[..], &data[..]) };
    let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() })?;
    let outputs = engine.attention(&problem, &inputs)?;
    let reference = oracle::attention(&problem, &inputs)?;
    let found = outputs.output.to_f32();
    for (at, (a, b)) in found.iter().zip(&reference.output).enumerate() {
        let agrees = a.is_nan() && b.is_nan() || (f64::from(*a) - b).abs() < 1e-3;
        assert!(agrees, "element {at} is {a}, the oracle has {b}: {}", &text[..text.len().min(300)]);
    }
    Ok(())
}

fn check(text: &str, tables: &[Table<'_>], wanted: &Wanted) {
    let start = &text[..text.char_indices().nth(200).map_or(text.len(), |(at, _)| at)];
    let before = Instant::now();
    let result = run(text, tables);
    let time = before.elapsed();
    assert!(time < SOON, "{time:?} for {start}");
    match (wanted, &result) {
        (Refused(why), Err(error)) => {
            let all = error.to_string();
            assert!(all.contains(why), "`{all}` does not say `{why}`: {start}");
            assert!(!all.contains("cannot be parsed"), "`{all}`: {start}");
        }
        (Refused(why), Ok(())) => panic!("runs, but should be refused, `{why}`: {start}"),
        (Runs, Err(error)) => panic!("{error}: {start}"),
        (Either, Err(error)) => assert!(!error.to_string().contains("cannot be parsed"), "{error}: {start}"),
        (Runs | Either, Ok(())) => {}
    }
}

#[test]
fn loops() {
    for (body, wanted) in [
        ("loop {} return x;", Refused("line 1, column 37")),
        ("while (true) {} return x;", Refused("loops whose ends are not known")),
        ("for (;;) { } return x;", Refused("loops whose ends are not known")),
        ("var y = x; loop { y += 1.0; if (y > 1e30) { break; } } return y;", Refused("known from constants alone")),
        ("for (var i = 0; i < at.key; i++) { } return x;", Refused("known from constants alone")),
        ("var s = 0; for (var i = 0; i < 4095; i++) { s += i; } return x + 1e-9 * f32(s);", Runs),
        ("for (var i = 0; i < 4097; i++) { } return x;", Refused("4096 trips")),
        ("var y = x; for (var i = 0; i < 4095; i++) { y = y * 1.0001; } return y;", Refused("operations a pair")),
        ("for (var i = 0; i < 60; i++) { for (var j = 0; j < 60; j++) { } } return x;", Runs),
        ("for (var i = 0; i < 70; i++) { for (var j = 0; j < 70; j++) { } } return x;", Refused("4096 trips")),
        ("for (var i = 0; i >= 0; i++) { } return x;", Refused("4096 trips")),
        ("for (var i = 0u; i < 4u; i--) { } return x;", Runs),
        ("for (var i = 0; i < 4; i++) { continue; } return x;", Runs),
        ("loop { continuing { break if at.key > 3; } } return x;", Refused("loops whose ends are not known")),
        ("for (var f = 0.0; f < 1.0; f += 0.1) { } return x;", Runs),
        ("for (var f = 1.0; f != 0.0; f *= 0.999) { } return x;", Refused("4096 trips")),
        ("loop { return x; }", Either),
    ] {
        check(&score(body), &[], &wanted);
    }
}

#[test]
fn statuses() {
    let with = |status: &str| format!("fn visible(at: Pair) -> bool {{ return at.key > 1; }} {status}");
    for (status, wanted) in [
        ("fn status(at: Tile) -> u32 { return 5u + u32(at.first_key); }", Runs),
        ("fn status(at: Tile) -> u32 { return 1u + u32(rates[at.last_key * 1000000007] * 0.0) / u32(at.batch); }", Runs),
        ("fn status(at: Tile) -> u32 { loop {} return 1u; }", Refused("loops whose ends are not known")),
        ("fn status(at: Tile) -> u32 { return status(at); }", Refused("line 1, column")),
        ("fn status(at: Tile) -> bool { return true; }", Refused("`fn status(at: Tile) -> u32`")),
        ("fn status(at: Pair) -> u32 { return 1u; }", Refused("`fn status(at: Tile) -> u32`")),
        ("fn status() -> u32 { return 1u; }", Refused("`fn status(at: Tile) -> u32`")),
        ("struct Tile { a: i32 } fn status(at: Tile) -> u32 { return 1u; }", Refused("redefinition")),
        ("const ALL = 1u; fn status(at: Tile) -> u32 { return ALL; }", Refused("redefinition")),
    ] {
        check(&with(status), &[Table::f32("rates", 3)], &wanted);
    }
}

#[test]
fn indices() {
    let table = [Table::f32("rates", 3)];
    for (body, wanted) in [
        ("return x + rates[4000000000u];", Runs),
        ("return x + rates[2147483647];", Runs),
        ("return x + rates[-1];", Either),
        ("return x + rates[at.key - 1000];", Runs),
        ("return x + rates[at.key * 1000000007];", Runs),
        ("return x + rates[i32(sqrt(-1.0 - x * x))];", Runs),
        ("return x + rates[u32(log(-1.0 - x * x))];", Runs),
        ("return x + rates[i32(x * 1e30)];", Runs),
        ("return x + rates[u32(-x * 1e30)];", Runs),
        ("return x + rates[arrayLength(&rates)];", Runs),
        ("return x + f32(arrayLength(&rates) / (arrayLength(&rates) - 3u));", Runs),
        ("var a = array<f32, 4>(x, 1.0, 2.0, 3.0); return a[i32(sqrt(-1.0 - x * x))];", Runs),
        ("var a = array<f32, 4>(x, 1.0, 2.0, 3.0); a[at.key - 9] = 2.0 * x; return a[0];", Runs),
        ("var a = array<f32, 4>(x, 1.0, 2.0, 3.0); return a[7];", Refused("line 1, column")),
        ("var a = array<f32, 4>(x, 1.0, 2.0, 3.0); return a[-1];", Refused("line 1, column")),
        ("let a = vec3(x, 1.0, 2.0); return a[at.key + 2147483647];", Runs),
        ("var a: array<array<f32, 3>, 4>; a[at.key][at.row - 1] = x; return a[at.key][at.row - 1];", Runs),
        ("var a: array<f32, 1000000000>; return x;", Refused("line 1, column")),
        ("let a = array<f32, 1000000000>(); return x + a[at.key];", Either),
        ("return -array<f32, 1000000000>();", Refused("line 1, column")),
        ("const n = 1000; return -array<f32, n>();", Refused("line 1, column")),
        ("const n = 1000 * 1000000; return -array<f32, n>();", Refused("`n`")),
        ("const n = 4; var a: array<f32, /* > */ n,>; a[1] = x; return a[1];", Runs),
        ("return -array<f32, (1 << 30)>();", Refused("line 1, column")),
        ("return x + array<i32, 4294967295>()[3];", Either),
        ("var a: array<array<array<array<f32, 200>, 200>, 200>, 200>; return x;", Refused("too large")),
        ("var a: array<f32, 257>; return x;", Refused("line 1, column")),
        ("var a: array<array<f32, 20>, 20>; return x;", Refused("line 1, column")),
        ("let b = array<f32, 100000000>() == array<f32, 100000000>(); return x;", Refused("line 1, column")),
        ("return abs(array<f32, 1000000000>());", Refused("line 1, column")),
        ("const a = array<f32, 1000000000>(); const b = a[5]; return x + b;", Either),
        ("return x + f32(array<f32, 1000000000>());", Refused("line 1, column")),
        ("return select(array<f32, 1000000000>(), array<f32, 1000000000>(), true)[2];", Either),
        ("return x + vec2<f32>(array<f32, 1000000000>()).x;", Refused("line 1, column")),
        ("rates[0] = 1.0; return x;", Refused("line 1, column")),
        ("let p = &rates; return x + (*p)[1];", Runs),
        ("let all = rates; return x;", Refused("")),
    ] {
        check(&score(body), &table, &wanted);
    }
}

#[test]
fn long_texts() {
    let many = |text: &str, count: usize| text.repeat(count);
    let most = 10_000;
    for (text, wanted) in [
        (many("// nothing at all\n", 6000), Refused("bytes")),
        (score(&format!("return {}x{};", many("(", most), many(")", most))), Refused("")),
        (score(&format!("return {}x;", many("- ", most))), Runs),
        (score(&format!("return {}x;", many("-(", most))), Refused("")),
        (score(&format!("var b = true; b = {}b; return x;", many("!", most))), Runs),
        (score(&format!("return x{};", many(" + x", most))), Either),
        (score(&format!("return x{};", many("+x", 1000))), Either),
        (score(&format!("if (at.key == 1) {{}}{} return x;", many(" else if (x>1){}", 3900))), Either),
        (score(&format!("{}{} return x;", many("{", most), many("}", most))), Refused("")),
        (score(&format!("{} return x; {}", many("if(x>1){", 5000), many("}", 5000))), Refused("")),
        (score(&format!("{} {} return x;", many("loop{", 5000), many("}", 5000))), Refused("")),
        (score(&format!("return {}x{};", many("abs(", most), many(")", most))), Refused("")),
        (score(&format!("return {}x{};", many("select(x,", 5000), many(",true)", 5000))), Refused("")),
        (score(&format!("var a: {}f32{}; return x;", many("array<", 5000), many(",2>", 5000))), Refused("")),
        (format!("/*{}", many("/*", most)), Refused("")),
        (score(&format!("var a = vec4(x); return a{};", many(".xyzw", 5000))), Either),
        (score(&format!("return a{};", many("[0]", 5000))), Refused("line 1, column")),
        (
            score(&format!(
                "switch (at.key) {{ {} default: {{}} }} return x;",
                (0..3000).map(|at| format!("case {at}:{{}}")).collect::<String>()
            )),
            Either,
        ),
        (score(&format!("{} return x;", (0..2000).map(|at| format!("var a{at}:array<f32,250>;")).collect::<String>())), Either),
        (
            score(&format!(
                "{} for (var i=0;i<4000;i++) {{ if (at.key > i) {{ continue; }} }} return x;",
                (0..1000).map(|at| format!("var a{at}:array<f32,250>;")).collect::<String>()
            )),
            Either,
        ),
        (score(&format!("var a = vec4(x); for (var i=0;i<4000;i++) {{ {} }} return a.x;", many("a[i&3]=x;", 6000))), Either),
        (many("fn f() {}\n", 5000), Refused("")),
        (many("const a = 1;", 5000), Refused("line 1, column")),
        (many("@", 60000), Refused("line 1, column")),
        (many("\u{1F600}", 10000), Refused("line 1, column")),
        (format!("const {} = 1;", many("a", 60000)), Refused("")),
        (format!("const a = {};", many("9", 60000)), Refused("")),
        (score("return x + 1e999999999;"), Refused("line 1, column")),
    ] {
        check(&text, &[], &wanted);
    }
    let doubling = |arguments: &str, call: &str, first: &str| {
        let mut text = format!("fn f0(x: f32) -> f32 {{ return {first}; }}\n");
        for at in 1..=30 {
            text += &format!("fn f{at}({arguments}) -> f32 {{ return {}; }}\n", call.replace('#', &(at - 1).to_string()));
        }
        text + &score("return f30(x);")
    };
    check(&doubling("x: f32", "f#(x) + f#(x)", "x"), &[], &Refused("too long"));
    check(&doubling("x: f32", "f#(f#(x))", "x"), &[], &Refused("too long"));
    check(&doubling("x: f32", "f#(f#(x))", "tanh(x)"), &[], &Refused("too long"));
    let mut constants = "const c0 = vec4(1.0);\n".to_string();
    for at in 1..=60 {
        constants += &format!("const c{at} = c{0} + c{0};\n", at - 1);
    }
    check(&(constants + &score("return x + c60.x * 1e-18;")), &[], &Runs);
    let structs = |count: usize| -> String {
        let all = (1..=count).map(|at| format!("struct S{at} {{ a: S{0}, b: S{0} }}\n", at - 1));
        ["struct S0 { a: f32, b: f32 }\n".to_string()].into_iter().chain(all).collect()
    };
    check(&(structs(30) + &score("var s: S30; return x;")), &[], &Refused("too large"));
    check(&(structs(20) + &score("var s: S20; return x;")), &[], &Refused("256"));
    check(&(structs(6) + &score("var s: S6; s.a.b.a.b.a.b.a = x; return s.a.b.a.b.a.b.a;")), &[], &Runs);
}

#[test]
fn names_of_ours() {
    for name in [
        "params",
        "table",
        "score_of",
        "user0_score",
        "v0",
        "v1",
        "main",
        "tanh_exact",
        "is_visible",
        "Scored",
        "INFINITE",
        "magnitude_bits",
    ] {
        let helper = format!("fn {name}(x: f32) -> f32 {{ return x + 1.0; }}\n{}", score(&format!("let v3 = {name}(x); return v3;")));
        check(&helper, &[], &Runs);
        check(&format!("const {name} = 2.0;\n{}", score(&format!("return x * {name};"))), &[], &Runs);
        check(&score(&format!("let {name} = x; return {name};")), &[], &Runs);
        check(&score(&format!("return x + {name}[at.key];")), &[Table { name, ..Table::f32("", 2) }], &Runs);
    }
    check(&format!("struct Pair {{ a: f32 }}\n{}", score("return x;")), &[], &Refused("Pair"));
    check(&format!("alias Pair = f32;\n{}", score("return x;")), &[], &Refused("Pair"));
    check("fn Pair() {}", &[], &Refused("Pair"));
    check("alias Number = f32;\nfn score(x: Number, at: Pair) -> Number { return x; }", &[], &Runs);
    check(&format!("{0}\n{0}", score("return x;")), &[], &Refused("line 2, column"));
}

#[test]
fn foreign_declarations() {
    for before in [
        "@compute @workgroup_size(1) fn main() {}",
        "@fragment fn f() -> @location(0) vec4<f32> { return vec4<f32>(); }",
        "@group(0) @binding(0) var<uniform> a: f32;",
        "@group(0) @binding(0) var<storage, read_write> a: array<f32>;",
        "@group(0) @binding(7) var t: texture_2d<f32>;",
        "@group(0) @binding(7) var s: sampler;",
        "override a: f32 = 1.0;",
        "@id(3) override a: f32;",
        "var<private> a: f32;",
        "var<workgroup> a: f32;",
        "var<workgroup> a: atomic<u32>;",
        "enable subgroups;",
        "enable nonsense;",
        "requires nonsense;",
        "fn f(x: f32) -> f32 { return f(x); }",
        "fn f(x: f32) -> f32 { return g(x); } fn g(x: f32) -> f32 { return f(x); }",
        "const a = a;",
        "struct S { a: S }",
        "const_assert 1 == 2;",
        "fn f( {",
        "\u{0}",
        "fn \u{202e}f() {}",
        "#include <x>",
    ] {
        let text = format!("{before}\n{}", score("return x;"));
        check(&text, &[], &Refused(if before.starts_with('@') && before.contains("fn") { "entry point" } else { "line 1, column" }));
    }
    for body in [
        "workgroupBarrier(); return x;",
        "storageBarrier(); return x;",
        "return subgroupAdd(x);",
        "let a = subgroupBallot(true); return x;",
        "return quadSwapX(x);",
        "var a: atomic<u32>; return x;",
        "discard; return x;",
        "return dpdx(x);",
        "let h: f16 = 1.0h; return x;",
        "let m = mat2x2<f32>(x, x, x, x); return m[0][0];",
        "let q = 1.0lf; return x;",
        "return y;",
        "return score(x, at);",
        "return true;",
        "return;",
        "",
        "at.key = 1; return x;",
        "x = 1.0; return x;",
        "break; return x;",
        "let r = frexp(x); return r.fract;",
        "let r = modf(x); return r.fract;",
        "return f32(pack4x8snorm(vec4(x)));",
        "return ldexp(x, 2);",
        "return quantizeToF16(x);",
        "return 1 / 0;",
        "_ = x; return x",
    ] {
        check(&score(body), &[], &Refused("line 1, column"));
    }
}

#[test]
fn signatures() {
    for text in [
        "",
        " \n\t",
        "// nothing",
        "/* nothing */",
        ";",
        "fn slope(x: f32, y: f32, at: Pair) -> f32 { return 1.0; }",
        "fn visible(at: Pair) -> bool { return true; } fn slope(x: f32, y: f32, at: Pair) -> f32 { return 1.0; }",
        "fn score(x: f32) -> f32 { return x; }",
        "fn score(at: Pair, x: f32) -> f32 { return x; }",
        "fn score(x: f32, at: Pair) { }",
        "fn score(x: f32, at: Pair) -> i32 { return 1; }",
        "fn score(x: f32, at: Pair) -> vec2<f32> { return vec2(x); }",
        "fn score(x: i32, at: Pair) -> f32 { return 1.0; }",
        "fn score(x: vec2<f32>, at: Pair) -> f32 { return x.x; }",
        "fn score(x: f32, at: vec2<i32>) -> f32 { return x; }",
        "fn score() -> f32 { return 1.0; }",
        "fn visible(at: Pair) -> f32 { return 1.0; }",
        "fn visible(x: f32, at: Pair) -> bool { return true; }",
        "fn visible() -> bool { return true; }",
        "fn score(x: f32, at: ptr<function, Pair>) -> f32 { return x; }",
        "fn score(x: f32, at: Pair) -> f32 { return x; } fn slope(x: f32, at: Pair) -> f32 { return 1.0; }",
        "const score = 1.0;",
        "struct score { a: f32 }",
    ] {
        check(text, &[], &Refused("term"));
    }
    check("fn f(p: ptr<function, f32>) { *p = 1.0; } fn score(x: f32, at: Pair) -> f32 { var y = x; f(&y); return y; }", &[], &Either);
    check("fn score(x: f32, at: Pair) -> f32 { return bitcast<f32>(0x7fc00000u) * x; }", &[], &Either);
    check("fn visible(at: Pair) -> bool { return false; }", &[], &Runs);
    check("fn score(größe: f32, 位置: Pair) -> f32 { return größe + f32(位置.key) * 0.125; }", &[], &Runs);
}

#[test]
fn tables() {
    let text = score("return x;");
    for name in ["", "1a", "a b", "a;", "a: f32; //", "größe", "-", "_"] {
        check(&text, &[Table { name, ..Table::f32("", 2) }], &Refused("table"));
    }
    for name in ["fn", "var", "loop", "if", "f32", "vec2", "Pair", "score", "true", "self", "class", "mod", "_a", "__a", "array"] {
        check(&text, &[Table { name, ..Table::f32("", 2) }], &Either);
    }
    check(&text, &[Table::f32("a", 0)], &Refused("0 elements"));
    check(&text, &[Table::f32("a", 1), Table::i32("a", 1)], &Refused("`a`"));
    check(&format!("const a = 1;{text}"), &[Table::f32("a", 1)], &Refused("`a`"));
    let names: Vec<String> = (0..300).map(|at| format!("t{at}")).collect();
    let many: Vec<Table<'_>> = names.iter().map(|name| Table::f32(name, 1)).collect();
    check(&text, &many, &Refused("tables"));
}
