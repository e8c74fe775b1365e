//! Status of tiles of users' terms: a wrong one is found, and how tiles are judged changes no bit of a result.

use crate::common::{adapters, engines};
use wgpu_attention::gpu::ShaderOptions;
use wgpu_attention::plan::{DeviceCaps, DeviceClass, Plan};
use wgpu_attention::verify::{Case, Fill, Verdict, check, oracle};
use wgpu_attention::{Algorithm, Alignment, Backend, Dims, Engine, EngineOptions, Error, Problem, Table, TableData, Term};

const TOKENS: usize = 150;

/// Five documents; few rows change theirs within a tile.
fn segments() -> Vec<i32> {
    (0..TOKENS).map(|at| (at / 37) as i32 - 2).collect()
}

fn case(text: &str, is_sorted: bool) -> Case {
    let segments = segments();
    let table = Table { is_sorted, ..Table::i32("documents", TOKENS) };
    let tables = if text.contains("documents") { vec![table] } else { vec![] };
    let term = Term::with_tables(text, &tables).unwrap_or_else(|error| panic!("{error}: {text}"));
    let dims = Dims { num_heads: 4, num_kv_heads: 2, ..Dims::self_attention(1, 4, TOKENS, 16) };
    let problem = Problem::new(dims).aligned(Alignment::TopLeft).with_term(term).with_lse();
    let mut case = Case::new("status", problem, Fill { poison: false, ..Fill::seed(5) }).expect("valid");
    if !tables.is_empty() {
        case.data.term_tables = case.problem.term_tables(&[("documents", TableData::I32(&segments))]).expect("sorted");
    }
    case
}

/// Masks, and a `status` of each that is wrong in a few tiles.
const WRONG: [(&str, &str); 4] = [
    ("at.key <= at.position", "if (at.first_key > at.first_position) { return NONE; } return SOME;"),
    ("at.key <= at.position", "if (at.first_key <= at.last_position) { return ALL; } return NONE;"),
    ("documents[at.key] == documents[at.row]", "if (documents[at.first_key] != documents[at.first_row]) { return NONE; } return SOME;"),
    ("at.key % 50 != 7 || at.head != 3", "return ALL;"),
];

fn with_status(visible: &str, status: &str) -> String {
    format!("fn visible(at: Pair) -> bool {{ return {visible}; }}\nfn status(at: Tile) -> u32 {{ {status} }}")
}

#[test]
fn a_wrong_status_fails_verification_and_is_an_error_where_engines_check() {
    let checked = |backend| {
        let shaders = ShaderOptions { checked: true, ..Default::default() };
        Engine::new(EngineOptions { backend, shaders, ..Default::default() }).expect("the CPU is always there")
    };
    for (visible, status) in WRONG {
        let case = case(&with_status(visible, status), true);
        let Verdict::Failed(report) = check(&case, &oracle) else { panic!("`{status}` passes") };
        assert!(report.contains("rows ") && report.contains("but the pair of head "), "{report}");
        for engine in [checked(Backend::Cpu), checked(Backend::Oracle)] {
            let error = engine.attention(&case.problem, &case.data.inputs()).expect_err("the status is wrong");
            assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains("`status` of term 0"), "{error}");
        }
    }
    let right = case(&with_status("at.key <= at.position", "return select(SOME, 0u, at.first_key > at.last_position);"), true);
    assert_eq!(check(&right, &|problem, inputs| checked(Backend::Cpu).attention(problem, inputs)), Verdict::Passed);
}

#[test]
fn checked_devices_find_a_wrong_status() {
    for engine in adapters(ShaderOptions { checked: true, ..Default::default() }) {
        let case = case(&with_status(WRONG[3].0, WRONG[3].1), true);
        let error = engine.attention(&case.problem, &case.data.inputs()).expect_err("the status is wrong");
        assert!(error.to_string().contains("`status` of term 0"), "{}: {error}", engine.chosen());
    }
}

/// A derived status, one that always says some, and a score of -inf, where no tile is skipped.
#[test]
fn no_status_changes_a_bit() {
    for visible in ["documents[at.key] == documents[at.row]", "at.position - at.key < 20 * (1 + at.head) && at.key <= at.position"] {
        let plain = format!("fn visible(at: Pair) -> bool {{ return {visible}; }}");
        let score = format!("fn score(x: f32, at: Pair) -> f32 {{ return select(bitcast<f32>(0xff800000u), x, {visible}); }}");
        let variants = [(plain.clone(), true), (plain, false), (with_status(visible, "return SOME;"), true), (score, false)];
        for tested in engines() {
            let answers = variants.each_ref().map(|(text, is_sorted)| {
                let case = case(text, *is_sorted);
                let outputs =
                    (tested.attend)(&case.problem, &case.data.inputs()).unwrap_or_else(|error| panic!("{}: {error}", tested.name));
                (outputs.output.to_f32().iter().map(|x| x.to_bits()).collect::<Vec<_>>(), outputs.lse)
            });
            for (variant, answer) in variants.iter().zip(&answers) {
                assert!(*answer == answers[0], "{}: other bits of {}", tested.name, variant.0);
            }
        }
    }
}

#[test]
fn tables_that_are_not_sorted_are_refused() {
    let mut case = case("fn visible(at: Pair) -> bool { return documents[at.key] == documents[at.row]; }", true);
    case.data.term_tables.swap(70, 80);
    let engine = Engine::new(EngineOptions { backend: Backend::Cpu, ..Default::default() }).expect("the CPU is always there");
    let error = engine.attention(&case.problem, &case.data.inputs()).expect_err("it is not sorted");
    assert!(error.to_string().contains("`documents` is declared sorted, but element 71 is -1, after 0"), "{error}");
    let error = Term::with_tables("fn score(x: f32, at: Pair) -> f32 { return x; }", &[Table::f32("a", 3).sorted()]).expect_err("floats");
    assert!(error.to_string().contains("only tables of integers"), "{error}");
}

/// Keys are split by built-in intervals alone, so that skipping what a status rules out changes no bit.
#[test]
fn splits_do_not_follow_a_status() {
    let window = "at.key <= at.position && at.position - at.key < 100";
    let plain = format!("fn visible(at: Pair) -> bool {{ return {window}; }}");
    let [derived, given] = [plain, with_status(window, "return SOME;")].map(|text| {
        let term = Term::wgsl(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let problem = Problem::new(Dims::self_attention(1, 1, 9000, 8)).aligned(Alignment::BottomRight).with_term(term);
        let caps = DeviceCaps { class: DeviceClass::Software, ..DeviceCaps::webgpu_defaults() };
        Plan::new(&problem, &caps, Algorithm::Fused).expect("it can be planned").summary().to_string()
    });
    assert_eq!(derived, given);
}
