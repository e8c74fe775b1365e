//! Users' terms for test problems.

use crate::custom::{Owner, Table, Term};
use crate::error::Result;
use crate::numbers::Random;
use crate::problem::{Alignment, Problem};
use crate::verify::random_text;

type MakeTable = fn(&'static str, usize) -> Table<'static>;

fn owned_by_head(name: &'static str, len: usize) -> Table<'static> {
    Table::f32(name, len).owner(Owner::Head)
}

fn owned_by_key(name: &'static str, len: usize) -> Table<'static> {
    Table::f32(name, len).owner(Owner::Key)
}

fn owned_by_row(name: &'static str, len: usize) -> Table<'static> {
    Table::f32(name, len).owner(Owner::Row)
}

fn owned_by_distance(name: &'static str, len: usize) -> Table<'static> {
    Table::f32(name, len).owner(Owner::Distance)
}

fn owned_by_all(name: &'static str, len: usize) -> Table<'static> {
    Table::f32(name, len).owner(Owner::Scalar)
}

fn owned_by_pair(name: &'static str, len: usize) -> Table<'static> {
    Table::f32(name, len).owner(Owner::Pair)
}

/// A text, and its tables: name, type and what its length is.
struct Sample {
    text: &'static str,
    tables: &'static [(&'static str, MakeTable, Len)],
}

#[derive(Clone, Copy)]
enum Len {
    Heads,
    Keys,
    Rows,
    /// Pairs of an item, and some elements more.
    Pairs,
    Fixed(usize),
}

/// A table whose elements never decrease.
const fn sorted(name: &'static str, len: usize) -> Table<'static> {
    Table::i32(name, len).sorted()
}

/// Texts that people write, and those that are hard for a compiler: loops, branches, early returns, integers.
const SAMPLES: &[Sample] = &[
    Sample { text: "fn visible(at: Pair) -> bool { return at.key <= at.position; }", tables: &[] },
    Sample { text: "fn visible(at: Pair) -> bool { return (at.position - at.key) % 3 == 0; }", tables: &[] },
    Sample { text: "fn visible(at: Pair) -> bool { return at.key < 2 || abs(at.position - at.key) <= 4 + 3 * at.head; }", tables: &[] },
    Sample {
        text: "fn visible(at: Pair) -> bool { return documents[at.key] == documents[at.row] && at.batch + at.kv_head >= 0; }",
        tables: &[("documents", Table::i32, Len::Keys)],
    },
    Sample {
        text: "fn visible(at: Pair) -> bool { return starts[at.key] == starts[at.row] || at.key == at.row; }",
        tables: &[("starts", sorted, Len::Keys)],
    },
    Sample {
        text: "fn visible(at: Pair) -> bool { return abs(at.position - at.key) <= 3 + 4 * widths[at.head]; }",
        tables: &[("widths", Table::i32, Len::Heads)],
    },
    Sample {
        text: "fn visible(at: Pair) -> bool { return at.key <= at.position; }\n\
               fn status(at: Tile) -> u32 {\n    \
                   if (at.first_key > at.last_position) { return NONE; }\n    \
                   return select(SOME, ALL, at.last_key <= at.first_position);\n\
               }",
        tables: &[],
    },
    Sample {
        text: "fn visible(at: Pair) -> bool { return starts[at.key] == starts[at.row]; }\n\
               fn status(at: Tile) -> u32 {\n    \
                   let rows = vec2<i32>(starts[at.first_row], starts[at.last_row]);\n    \
                   let keys = vec2<i32>(starts[at.first_key], starts[at.last_key]);\n    \
                   if (rows.y < keys.x || keys.y < rows.x) { return NONE; }\n    \
                   if (rows.x == rows.y && all(rows == keys)) { return ALL; }\n    \
                   return 7u;\n\
               }",
        tables: &[("starts", sorted, Len::Keys)],
    },
    Sample {
        text: "fn score(x: f32, at: Pair) -> f32 { return x - 0.1 * rates[at.head] * rates[at.head] * abs(f32(at.position - at.key)); }",
        tables: &[("rates", owned_by_head, Len::Heads)],
    },
    Sample { text: "fn score(x: f32, at: Pair) -> f32 { return 3.0 * tanh(x / 3.0); }", tables: &[] },
    Sample {
        text: "fn score(x: f32, at: Pair) -> f32 { if (at.key == at.len_kv - 1) { return x; } return 0.5 * x * x - x; }",
        tables: &[],
    },
    Sample {
        text: "fn score(x: f32, at: Pair) -> f32 { return x * (1.0 + exp(-abs(gates[at.key_position]))); }",
        tables: &[("gates", owned_by_key, Len::Keys)],
    },
    Sample {
        text: "fn score(x: f32, at: Pair) -> f32 {\n    \
                   return select(x + 0.25, bitcast<f32>(0xff800000u), (at.key & 3) == 1);\n\
               }",
        tables: &[],
    },
    Sample {
        text: "fn bucket(distance: i32) -> i32 {\n    \
                   var at = 0;\n    \
                   for (var size = 1; size < 64; size *= 2) { if (distance >= size) { at++; } else { break; } }\n    \
                   return at;\n\
               }\n\
               fn score(x: f32, at: Pair) -> f32 { return x + values[bucket(abs(at.position - at.key))]; }\n\
               fn slope(x: f32, y: f32, at: Pair) -> f32 { return 1.0; }",
        tables: &[("values", owned_by_distance, Len::Fixed(5))],
    },
    Sample {
        text: "fn visible(at: Pair) -> bool {\n    \
                   let word = bits[(at.row * 3 + at.key / 32) % 7];\n    \
                   return ((word >> u32(at.key % 32)) & 1u) != 0u || at.key == 0;\n\
               }\n\
               fn score(x: f32, at: Pair) -> f32 { return x + f32(countOneBits(bits[at.row])) * 0.05; }",
        tables: &[("bits", Table::u32, Len::Fixed(7))],
    },
    Sample {
        text: "fn score(x: f32, at: Pair) -> f32 {\n    \
                   if (at.key % 3 == 1) { return x; }\n    \
                   return gain[0] * gain[0] * 0.5 * x + shift[at.batch * 3 + at.row / 2] + x;\n\
               }",
        tables: &[("gain", owned_by_all, Len::Fixed(2)), ("shift", owned_by_row, Len::Rows)],
    },
    Sample {
        text: "fn score(x: f32, at: Pair) -> f32 {\n    \
                   return x + tanh(biases[(at.head * at.len_q + at.row) * at.len_kv + at.key + 1]);\n\
               }",
        tables: &[("biases", owned_by_pair, Len::Pairs)],
    },
];

/// Problems whose tables have gradients, one for each owner, and all together; with names.
pub(super) fn owned(base: &Problem) -> Vec<(String, Problem)> {
    let d = base.dims;
    let lines = d.batch * d.seq_len_q;
    let texts = [
        (Table::f32("t", 3).owner(Owner::Scalar), "x * (1.0 + 0.3 * t[1])"),
        (Table::f32("t", d.num_heads * d.batch).owner(Owner::Head), "x + t[at.batch * HEADS + at.head] * f32(at.key) * 0.1"),
        (Table::f32("t", lines).owner(Owner::Row), "x * t[at.batch * at.len_q + at.row] + 0.1 * t[at.batch * at.len_q + at.row]"),
        (Table::f32("t", d.seq_len_kv - 2).owner(Owner::Key), "x - 0.5 * sin(t[at.key_position] * x)"),
        (Table::f32("t", 9 * d.num_heads).owner(Owner::Distance), "x + t[9 * at.head + clamp(at.position - at.key, -4, 4) + 4]"),
        (Table::f32("t", d.seq_len_q * d.seq_len_kv + 5).owner(Owner::Pair), "x + max(t[2 + at.row + at.key * ROWS], -0.5) * 2.0"),
    ];
    let last = "fn score(x: f32, at: Pair) -> f32 { return select(2.0 * tanh(0.7 * x), 0.2 * x, at.key % 4 == 3); }";
    let last = Term::wgsl(last).expect("valid");
    let mut all: Vec<(String, Problem)> = Vec::new();
    let mut together = Problem { softcap: Some(3.0), ..base.clone().aligned(Alignment::BottomRight).causal() };
    for (number, (table, score)) in texts.into_iter().enumerate() {
        let owner = table.owner.expect("it has one");
        let name = format!("t{number}");
        let score =
            score.replace("t[", &format!("{name}[")).replace("HEADS", &d.num_heads.to_string()).replace("ROWS", &d.seq_len_q.to_string());
        let text = format!("fn score(x: f32, at: Pair) -> f32 {{ return {score}; }}");
        let term = Term::with_tables(&text, &[Table { name: &name, ..table }]).expect("valid");
        together = together.with_term(term.clone());
        let alone = base.clone().aligned(Alignment::BottomRight).with_term(term).with_term(last.clone());
        all.push((format!("table-of-{owner:?}"), alone));
    }
    all.push(("tables-of-all-owners".into(), together.with_term(last)));
    all
}

/// Adds a user's term to a problem: the text from the first source, because kernels depend on it.
pub(super) fn draw(problem: &mut Problem, kind: &mut Random) {
    let term = if kind.one_in(10) { random_term(kind) } else { sample_term(problem, kind) };
    if term.uses_position() && problem.visibility.alignment.is_none() {
        problem.visibility.alignment = Some(Alignment::BottomRight);
    }
    problem.user_terms.push(term);
    if kind.one_in(4) {
        let text = "fn score(x: f32, at: Pair) -> f32 { return select(2.0 * tanh(0.7 * x), 0.25 * x, at.key % 4 == 3); }";
        problem.user_terms.push(Term::wgsl(text).expect("valid"));
    }
}

/// A random text that is not refused, small, because every kernel that has it is compiled for it alone.
fn random_term(kind: &mut Random) -> Term {
    loop {
        if let Ok(term) = draw_text(kind, 20) {
            return term;
        }
    }
}

/// A random text of any size. Errors: it is too long with its loops unrolled.
pub(super) fn random_text(kind: &mut Random) -> Result<Term> {
    let size = kind.pick(&[8, 15, 15, 30, 60]);
    draw_text(kind, size)
}

fn draw_text(kind: &mut Random, size: usize) -> Result<Term> {
    let has_tables = kind.one_in(2);
    let tables = [Table::f32("rates", 5), Table::i32("ids", 4), Table::u32("words", 7)];
    Term::with_tables(&random_text::draw(kind, size, has_tables), if has_tables { &tables } else { &[] })
}

fn sample_term(problem: &Problem, kind: &mut Random) -> Term {
    // The last reads its table by the lengths of the item, which must be those of the problem, and has an element a pair.
    let d = &problem.dims;
    let is_left_out = problem.varlen.is_some() || problem.visibility.kv_lengths || d.num_heads * d.seq_len_q * d.seq_len_kv > 1 << 16;
    let index = kind.below(SAMPLES.len() - usize::from(is_left_out));
    let sample = &SAMPLES[index];
    let len = |len| match len {
        Len::Heads => problem.dims.num_heads,
        Len::Keys => problem.dims.seq_len_kv,
        Len::Rows => problem.dims.seq_len_q,
        Len::Pairs => problem.dims.num_heads * problem.dims.seq_len_q * problem.dims.seq_len_kv + 3,
        Len::Fixed(len) => len,
    };
    let tables: Vec<Table<'_>> = sample.tables.iter().map(|&(name, table, of)| table(name, len(of).max(1))).collect();
    Term::with_tables(sample.text, &tables).expect("the samples are valid")
}

/// Draws the tables of a problem's terms.
pub(super) fn tables(problem: &Problem, random: &mut Random) -> Vec<u32> {
    let tables: Vec<Table<'_>> = problem.user_tables().collect();
    let mut words = Vec::new();
    for Table { ty, len, is_sorted, .. } in tables {
        let start = words.len();
        words.extend((0..len).map(|_| match ty {
            crate::custom::TableType::F32 => random.normal().to_bits(),
            crate::custom::TableType::I32 => random.below(3) as u32,
            crate::custom::TableType::U32 => random.word(),
        }));
        if is_sorted {
            words[start..].sort_unstable();
        }
    }
    words
}
