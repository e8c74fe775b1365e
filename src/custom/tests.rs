//! Random texts: programs against the oracle's walk of naga's functions, and derivatives against differences.

use super::evaluate::{LANES, Lanes, Pairs, evaluate};
use super::program::{Field, Op, Program, Scalar};
use super::{Functions, Table, Term, emit, scalar};
use crate::cpu;
use crate::numbers::Random;
use crate::oracle::walk;
use crate::problem::{Dims, Problem};
use crate::progress::Progress;
use crate::verify::{Case, Fill, Verdict, check_backward, derivative, random_text, rounding};

/// Texts that are drawn.
const TEXTS: u64 = 2500;
/// Pairs of each text that are compared.
const PAIRS: usize = 16;

/// Counts of comparisons, and of those that were not possible.
#[derive(Debug, Default)]
struct Counts {
    texts: usize,
    refused: usize,
    visible: usize,
    scores: usize,
    slopes: usize,
    differences: usize,
    /// Values that rounding may turn.
    unsure: usize,
    /// Points near a kink or a step, or with numbers too large for differences.
    kinks: usize,
    worst: f64,
}

struct Sample {
    text: String,
    term: Term,
    words: Vec<Vec<u32>>,
    pairs: Pairs,
}

impl Sample {
    fn tables(&self) -> Vec<&[u32]> {
        self.words.iter().map(Vec::as_slice).collect()
    }

    fn fields(&self, lane: usize) -> [i32; 9] {
        self.pairs.fields.map(|field| field[lane] as i32)
    }

    fn score(&self, lane: usize) -> f32 {
        f32::from_bits(self.pairs.score[lane])
    }
}

fn pairs(random: &mut Random) -> Pairs {
    let mut pairs = Pairs::default();
    for lane in 0..LANES {
        pairs.score[lane] = (2.0 * random.normal()).to_bits();
        for field in 0..Field::ALL.len() {
            pairs.fields[field][lane] = match random.below(12) {
                0 => random.pick(&[i32::MAX, i32::MIN, -1, 0, 1 << 30]) as u32,
                1 => random.word(),
                _ => (random.below(70) as i32 - 8) as u32,
            };
        }
    }
    pairs
}

fn sample(seed: u64, counts: &mut Counts) -> Option<Sample> {
    let random = &mut Random::new(seed);
    let has_tables = random.one_in(2);
    let size = random.pick(&[10, 25, 50, 90]);
    let text = random_text::draw(random, size, has_tables);
    let tables = [Table::f32("rates", 5), Table::i32("ids", 4), Table::u32("words", 7)];
    counts.texts += 1;
    let term = match Term::with_tables(&text, if has_tables { &tables } else { &[] }) {
        Ok(term) => term,
        Err(error) if error.to_string().contains("operations a pair") || error.to_string().contains("is too long") => {
            counts.refused += 1;
            return None;
        }
        Err(error) => panic!("seed {seed}: {error}\n{text}"),
    };
    let words = vec![
        (0..5).map(|_| random.normal().to_bits()).collect(),
        (0..4).map(|_| random.below(200) as u32).collect(),
        (0..7).map(|_| random.word()).collect(),
    ];
    Some(Sample { text, term, words, pairs: pairs(random) })
}

/// Evaluates lane by lane with the operation that constants are folded with, and compares all lanes of all operations.
fn check_lanes(sample: &Sample, program: &Program, pairs: &Pairs) -> Lanes {
    let (tables, mut registers) = (sample.tables(), Vec::new());
    let result = *evaluate(program, pairs, &tables, &mut registers);
    for (id, node) in program.nodes.iter().enumerate() {
        if matches!(node.op, Op::Load(..)) || node.op.operands().count() == 0 {
            continue;
        }
        #[expect(clippy::needless_range_loop, reason = "a lane of every register")]
        for lane in 0..LANES {
            let mut operands = [0; 3];
            operands.iter_mut().zip(node.op.operands()).for_each(|(to, id)| *to = registers[id as usize][lane]);
            let first = node.op.operands().next().map_or(node.ty, |id| program.nodes[id as usize].ty);
            let (one, all) = (scalar::apply(node.op, first, node.ty, operands), registers[id][lane]);
            let both_nan = node.ty == Scalar::F32 && f32::from_bits(one).is_nan() && f32::from_bits(all).is_nan();
            assert!(one == all || both_nan, "{:?} of {operands:x?}: {one:x} alone, {all:x} in lanes\n{}", node.op, sample.text);
        }
    }
    result
}

/// The emitted program, read again, is the program.
fn check_emitted(sample: &Sample, program: &Program) {
    let not_finite = |bits: u32| !f32::from_bits(bits).is_finite();
    let needs_params = program.nodes.iter().any(|node| match node.op {
        Op::Load(..) | Op::Length(_) => true,
        Op::Constant(bits) => node.ty == Scalar::F32 && not_finite(bits),
        _ => false,
    });
    if needs_params {
        return;
    }
    let mut text = "fn tanh_exact(x: f32) -> f32 { return tanh(x); }\nconst INFINITE = 0x7f800000u;\n\
        fn magnitude_bits(x: f32) -> u32 { return bitcast<u32>(x) & 0x7fffffffu; }\n"
        .to_string();
    emit::function(&mut text, "score", "x: f32, at: Pair", program, 0);
    let again = match Term::wgsl(&text) {
        Ok(term) => term,
        Err(error) if error.to_string().contains("operations a pair") => return,
        Err(error) => panic!("{error}\n{text}\n{}", sample.text),
    };
    let again = again.functions().score.as_ref().expect("it was read");
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let (first, second) = (evaluate(program, &sample.pairs, &[], &mut first), evaluate(again, &sample.pairs, &[], &mut second));
    for (a, b) in first.iter().zip(second).map(|(&a, &b)| (f32::from_bits(a), f32::from_bits(b))) {
        assert!(a == b || a.is_nan() && b.is_nan(), "{a} becomes {b}\n{text}\n{}", sample.text);
    }
}

/// Compares a result with the oracle's; `None` where rounding may turn a comparison.
fn compare(what: &str, sample: &Sample, lane: usize, found: f32, exact: f64, rough: Option<rounding::Rough>, counts: &mut Counts) -> bool {
    let Some((middle, error)) = rough.filter(|(_, error)| *error < 0.1 * (1.0 + exact.abs())) else {
        counts.unsure += 1;
        return false;
    };
    let place = || format!("{what} of {:?} at {:?}\n{}", sample.score(lane), sample.fields(lane), sample.text);
    let agree = |a: f64, b: f64, error: f64| a == b || a.is_nan() && b.is_nan() || b.is_finite() && (a - b).abs() <= error;
    let small = error + 1e-6 * exact.abs() + 1e-7;
    assert!(agree(middle, exact, small), "{middle} with bounds {error:e}, the oracle has {exact}: {}", place());
    assert!(agree(found.into(), exact, small), "{found}, the oracle has {exact} (bound {error:e}): {}", place());
    true
}

fn check_text(seed: u64, counts: &mut Counts) {
    let Some(sample) = sample(seed, counts) else { return };
    let (tables, term) = (sample.tables(), sample.term.clone());
    let functions: &Functions = term.functions();
    if let Some(program) = &functions.visible {
        let visible = check_lanes(&sample, program, &sample.pairs);
        for (lane, &visible) in visible.iter().enumerate().take(PAIRS) {
            let pair = sample.fields(lane);
            match rounding::of_program(program, [(0.0, 0.0); 2], pair, &tables) {
                Some(_) => {
                    let exact = walk::visible(functions, &tables, pair);
                    assert_eq!(visible != 0, exact, "visible at {pair:?}\n{}", sample.text);
                    counts.visible += 1;
                }
                None => counts.unsure += 1,
            }
        }
    }
    // A score that stays as it is has none.
    let Some(score) = functions.score.as_ref() else { return };
    check_emitted(&sample, score);
    let mut pairs = sample.pairs.clone();
    let scores = check_lanes(&sample, score, &pairs);
    pairs.after = scores;
    let slopes = functions.slope().map(|program| check_lanes(&sample, program, &pairs));
    let has_slope = functions.slope.as_ref().is_some_and(Result::is_ok);
    for lane in 0..PAIRS {
        let (x, pair) = (f64::from(sample.score(lane)), sample.fields(lane));
        let (y, slope) = walk::score(functions, &tables, x, pair);
        let rough = rounding::of_program(score, [(x, 0.0), (0.0, 0.0)], pair, &tables);
        if !compare("score", &sample, lane, f32::from_bits(scores[lane]), y, rough, counts) {
            continue;
        }
        counts.scores += 1;
        counts.worst = counts.worst.max(rough.map_or(0.0, |rough| rough.1));
        if !has_slope {
            continue;
        }
        let (found, rough) = match (functions.slope(), &slopes) {
            (Some(program), Some(slopes)) => {
                (f32::from_bits(slopes[lane]), rounding::of_program(program, [(x, 0.0), rough.unwrap_or_default()], pair, &tables))
            }
            _ => (1.0, Some((1.0, 0.0))),
        };
        if compare("slope", &sample, lane, found, slope, rough, counts) {
            counts.slopes += 1;
            match derivative::hold(functions, &tables, x, pair) {
                Some(Ok(())) => counts.differences += 1,
                Some(Err(wrong)) => panic!("{wrong}"),
                None => counts.kinks += 1,
            }
        }
    }
}

#[test]
fn programs_agree_with_the_walk() {
    let mut counts = Counts::default();
    for seed in 0..TEXTS {
        check_text(seed, &mut counts);
    }
    println!("{counts:?}");
    let all = counts.unsure + counts.visible + counts.scores + counts.slopes;
    assert!(counts.refused * 20 <= counts.texts, "{counts:?}");
    assert!(counts.unsure * 20 <= all, "{counts:?}");
    assert!(counts.kinks * 20 <= counts.slopes, "{counts:?}");
}

/// A score that stays as it is costs nothing, unless its derivative is said to be another.
#[test]
fn identities() {
    let same = "fn score(x: f32, at: Pair) -> f32 { return x; }";
    let plain = Term::wgsl(same).expect("valid");
    assert!(plain.has_score() && plain.functions().score.is_none() && plain.functions().slope().is_none());

    let steep = Term::wgsl(&format!("{same} fn slope(x: f32, y: f32, at: Pair) -> f32 {{ return 3.0; }}")).expect("valid");
    let problem = Problem::new(Dims::self_attention(1, 2, 9, 8));
    for term in [plain, steep] {
        let case = Case::new("identity", problem.clone().with_term(term), Fill::seed(3)).expect("valid");
        let verdict = check_backward(&case, &|problem, inputs, backward, want| {
            cpu::backward::attention(problem, inputs, backward, want, &mut Progress::default())
        });
        assert!(matches!(verdict, Verdict::Passed), "{verdict}");
    }
}

/// Tables are those of their names, in whatever order a text reads them, and even if it reads only some.
#[test]
fn tables_are_read_by_name() {
    let tables = [Table::f32("unread", 2), Table::f32("first", 2), Table::f32("second", 2)];
    let term =
        Term::with_tables("fn score(x: f32, at: Pair) -> f32 { return 10.0 * second[at.key] + first[at.key]; }", &tables).expect("valid");
    let words = [[5.0f32, 6.0], [1.0, 2.0], [3.0, 4.0]].map(|table| table.map(f32::to_bits));
    let words = words.each_ref().map(|table| &table[..]);
    let program = term.functions().score.as_ref().expect("it has one");
    assert_eq!(f32::from_bits(evaluate(program, &Pairs::default(), &words, &mut Vec::new())[0]), 31.0);
    assert_eq!(walk::score(term.functions(), &words, 0.0, [0; 9]).0, 31.0);
}
