//! Status of random tiles against every pair of them, for random masks: in Rust, and by the functions that kernels have.

use super::{TileRule, contradiction};
use crate::custom::evaluate::{LANES, Pairs, evaluate};
use crate::custom::program::Field;
use crate::custom::tile::{Status, Tile};
use crate::custom::{Table, Term, emit};
use crate::numbers::Random;
use crate::verify::random_text;

/// Masks that are drawn.
const MASKS: u64 = 600;
/// Tiles of each mask.
const TILES: usize = 24;
const LENGTHS: [usize; 4] = [5, 19, 90, 7];
const INTERVALS: &str = include_str!("../../../shaders/lib/interval.wgsl");
const TILE_BITS: &str = include_str!("../../../shaders/lib/tile_bits.wgsl");

fn table(at: usize, name: &'static str) -> Table<'static> {
    let len = LENGTHS[at];
    match at {
        0 => Table::f32(name, len),
        1 => Table::i32(name, len),
        2 => Table::i32(name, len).sorted(),
        _ => Table::u32(name, len),
    }
}

const NAMES: [&str; 4] = ["rates", "ids", "starts", "words"];

struct Mask {
    text: String,
    term: Term,
    words: [Vec<u32>; 4],
}

impl Mask {
    fn tables(&self) -> Vec<&[u32]> {
        self.words.iter().map(Vec::as_slice).collect()
    }

    fn rule(&self) -> Option<&TileRule> {
        self.term.functions().status.as_ref()
    }
}

/// A mask of integers and tables.
fn draw(random: &mut Random) -> Option<Mask> {
    let text = match random.below(4) {
        0 => random_text::draw(random, 25, true),
        _ => format!("fn visible(at: Pair) -> bool {{ return {}; }}", condition(random, 3)),
    };
    let tables: [Table<'_>; 4] = std::array::from_fn(|at| table(at, NAMES[at]));
    let term = Term::with_tables(&text, &tables).ok()?;
    let mut words = [
        (0..LENGTHS[0]).map(|_| random.normal().to_bits()).collect(),
        (0..LENGTHS[1]).map(|_| random.below(40) as u32).collect(),
        (0..LENGTHS[2]).map(|_| (random.below(9) as i32 - 2) as u32).collect::<Vec<_>>(),
        (0..LENGTHS[3]).map(|_| if random.one_in(3) { random.word() } else { random.below(9) as u32 }).collect(),
    ];
    words[2].sort_by_key(|&word| word as i32);
    Some(Mask { text, term, words })
}

/// Comparisons that people write.
const COMPARISONS: [&str; 10] = [
    "starts[at.key] == starts[at.row]",
    "starts[at.row] <= starts[at.key]",
    "starts[at.key + at.head] != starts[at.position]",
    "starts[at.key] < 4",
    "at.position - at.key < ids[at.head]",
    "at.position - at.key < 4 * ids[at.key / 16]",
    "i32(words[at.key / 8]) == at.head",
    "words[at.row / 8] <= u32(at.key)",
    "at.key <= at.position",
    "at.key / 8 == at.row / 8",
];

fn condition(random: &mut Random, depth: usize) -> String {
    if random.one_in(3) {
        return format!("({})", random.pick(&COMPARISONS));
    }
    let mut integer = || integer(random, depth);
    let (a, b) = (integer(), integer());
    if depth == 0 || random.one_in(2) {
        let sign = random.pick(&["<", "<=", ">", "==", "!=", ">="]);
        return format!("({a} {sign} {b})");
    }
    let (a, b) = (condition(random, depth - 1), condition(random, depth - 1));
    match random.below(4) {
        0 => format!("!{a}"),
        1 => format!("({a} && {b})"),
        2 => format!("({a} != {b})"),
        _ => format!("({a} || {b})"),
    }
}

fn integer(random: &mut Random, depth: usize) -> String {
    if depth == 0 || random.one_in(3) {
        let field = Field::ALL[random.below(Field::ALL.len())].name();
        return if random.one_in(4) { random.pick(&["1", "7", "-3", "40", "2147483647"]).into() } else { format!("at.{field}") };
    }
    let (a, b) = (integer(random, depth - 1), integer(random, depth - 1));
    let few = random.pick(&["2", "3", "8", "-5"]);
    match random.below(18) {
        0 | 1 => format!("({a} - {b})"),
        2 => format!("({a} + {b})"),
        3 => format!("({a} * {b})"),
        4 => format!("({a} / {few})"),
        5 => format!("({a} % {few})"),
        6 => format!("min({a}, {b})"),
        7 => format!("max({a}, {b})"),
        8 => format!("abs({a})"),
        9 => format!("({a} & 7)"),
        10 => format!("select({a}, {b}, {})", condition(random, depth - 1)),
        11 => format!("ids[{a}]"),
        12 => format!("i32(words[u32({a})])"),
        13 => format!("(-({a} >> 2u))"),
        _ => format!("starts[{a}]"),
    }
}

fn tile(random: &mut Random) -> Tile {
    let mut span = |most: usize, spread: usize| {
        let first = random.below(most) as i64;
        [first, first + random.below(spread) as i64]
    };
    let (batch, heads, kv_head, rows, keys, lens) = (span(3, 1), span(4, 3), span(3, 1), span(70, 12), span(70, 24), span(90, 1));
    let offset = if random.one_in(12) { i64::from(i32::MAX) - 90 } else { random.below(40) as i64 - 20 };
    [batch, heads, kv_head, rows, keys, rows.map(|row| row + offset), keys, lens, lens]
}

/// Counts visible and masked pairs of a tile.
fn count(mask: &Mask, tile: &Tile, registers: &mut Vec<[u32; LANES]>) -> [usize; 2] {
    let of = |field: Field| tile[field as usize];
    let range = |field: Field| of(field)[0]..=of(field)[1];
    let offset = of(Field::Position)[0] - of(Field::Row)[0];
    let mut pairs = Vec::new();
    for (head, row) in range(Field::Head).flat_map(|head| range(Field::Row).map(move |row| (head, row))) {
        let one = |field: Field| of(field)[0];
        let of_key = |key| [one(Field::Batch), head, one(Field::KvHead), row, key, row + offset, key, one(Field::LenQ), one(Field::LenKv)];
        pairs.extend(range(Field::Key).map(of_key));
    }
    let program = mask.term.functions().visible.as_ref().expect("only masks are counted");
    let mut counts = [0; 2];
    for pairs in pairs.chunks(LANES) {
        let mut lanes = Pairs::default();
        for (lane, pair) in pairs.iter().enumerate() {
            pair.iter().zip(&mut lanes.fields).for_each(|(&value, field)| field[lane] = value as u32);
        }
        let visible = evaluate(program, &lanes, &mask.tables(), registers);
        visible[..pairs.len()].iter().for_each(|&visible| counts[usize::from(visible == 0)] += 1);
    }
    counts
}

const fn holds(status: Status, [visible, masked]: [usize; 2]) -> bool {
    match status {
        Status::None => visible == 0,
        Status::Some => true,
        Status::All => masked == 0,
    }
}

/// The status as kernels compute it, as a score that reads the tile from a table; `None` if it is too long.
fn in_wgsl(rule: &TileRule) -> Option<Term> {
    let place = |of: &str| TILE_BITS.find(of).expect("it is there");
    let mut text = [&TILE_BITS[place("const SHOWS_NONE")..place("struct TileBits")], INTERVALS].concat();
    text += "fn table(at: u32) -> u32 { return all_words[at]; }\n";
    rule.emit(&mut text, "user_status", 0);
    let mut first = 0;
    for (at, length) in LENGTHS.into_iter().enumerate() {
        let place = format!("0u + {first}u");
        text = text.replace(&emit::start(at as u32), &place).replace(&emit::length(at as u32), &format!("{length}u"));
        first += length;
    }
    let fields: Vec<String> = (0..Field::ALL.len()).map(|at| format!("vec2<i32>(tile[{}], tile[{}])", 2 * at, 2 * at + 1)).collect();
    text += &format!("fn score(x: f32, at: Pair) -> f32 {{ return f32(user_status(Tile({}))); }}", fields.join(", "));
    let tables = [Table::u32("all_words", LENGTHS.iter().sum()), Table::i32("tile", 2 * Field::ALL.len())];
    match Term::with_tables(&text.replace("Tile", "Spans"), &tables) {
        Ok(term) => Some(term),
        Err(error) if error.to_string().contains("too long") || error.to_string().contains("operations a pair") => None,
        Err(error) => panic!("{error}\n{text}"),
    }
}

fn of_wgsl(term: &Term, mask: &Mask, tile: &Tile) -> Status {
    let tile: Vec<u32> = tile.iter().flatten().map(|&end| end as u32).collect();
    let words = mask.words.concat();
    let score = term.functions().score.as_ref().expect("it is a score");
    match f32::from_bits(evaluate(score, &Pairs::default(), &[&words, &tile], &mut Vec::new())[0]) {
        0.0 => Status::None,
        2.0 => Status::All,
        _ => Status::Some,
    }
}

#[test]
fn statuses_hold_for_every_pair() {
    let (mut known, mut unknown, mut masks, mut compared) = ([0; 2], 0, 0, 0);
    for seed in 0..MASKS {
        let random = &mut Random::new(seed);
        let Some(mask) = draw(random) else { continue };
        let Some(rule) = mask.rule() else { continue };
        let wgsl = in_wgsl(rule);
        masks += 1;
        for _ in 0..TILES {
            let tile = tile(random);
            let (status, counts) = (rule.of(&tile, &mask.tables()), count(&mask, &tile, &mut Vec::new()));
            assert!(holds(status, counts), "seed {seed}: {status:?} of {tile:?}, visible and masked: {counts:?}\n{}", mask.text);
            let visible = mask.term.functions().visible.as_ref().expect("a rule is one of a mask");
            for status in [Status::None, Status::All] {
                let pair = contradiction(visible, status, &tile, &mask.tables());
                assert_eq!(pair.is_none(), holds(status, counts), "seed {seed}: {pair:?} of {tile:?}\n{}", mask.text);
            }
            match status {
                Status::None | Status::All => known[usize::from(status == Status::All)] += 1,
                Status::Some if counts[0] == 0 || counts[1] == 0 => unknown += 1,
                Status::Some => {}
            }
            if let Some(wgsl) = &wgsl {
                // Kernels take fewer products and quotients for certain.
                let of_kernels = of_wgsl(wgsl, &mask, &tile);
                assert!(
                    of_kernels == status || of_kernels == Status::Some,
                    "seed {seed}: {status:?} of {tile:?}, in WGSL {of_kernels:?}\n{}",
                    mask.text
                );
                compared += usize::from(of_kernels != Status::Some);
            }
        }
    }
    println!("{masks} masks; none, all: {known:?}, not found: {unknown}; in WGSL: {compared}");
    assert!(masks > MASKS as usize / 2 && known.iter().all(|&known| known > 500), "{masks} masks, {known:?}");
    assert!(10 * compared > 8 * known.iter().sum::<usize>(), "{compared} of {known:?} in WGSL");
}

/// The test above finds a status that is that of another tile, and a table that is not sorted.
#[test]
fn wrong_statuses_are_found() {
    let mut found = [0; 2];
    for seed in 0..MASKS {
        let random = &mut Random::new(seed);
        let Some(mut mask) = draw(random) else { continue };
        if mask.rule().is_none() {
            continue;
        }
        for _ in 0..TILES {
            let tile = tile(random);
            let mut other = tile;
            (other[Field::Key as usize][1], other[Field::KeyPosition as usize][1]) =
                (tile[Field::Key as usize][0], tile[Field::Key as usize][0]);
            let wrong = mask.rule().expect("it is there").of(&other, &mask.tables());
            found[0] += usize::from(!holds(wrong, count(&mask, &tile, &mut Vec::new())));
            let sorted = mask.words[2].clone();
            mask.words[2].iter_mut().for_each(|word| *word = random.below(9) as u32);
            let wrong = mask.rule().expect("it is there").of(&tile, &mask.tables());
            found[1] += usize::from(!holds(wrong, count(&mask, &tile, &mut Vec::new())));
            mask.words[2] = sorted;
        }
    }
    assert!(found.iter().all(|&found| found > 20), "{found:?}");
}

/// Status of heads, rows and keys of a term with one table.
fn of_tile(text: &str, tables: (Table<'_>, &[u32]), heads: [i64; 2], rows: [i64; 2], keys: [i64; 2]) -> Status {
    let term = Term::with_tables(text, &[tables.0]).expect("valid");
    let tile = [[0, 0], heads, [0, 0], rows, keys, rows, keys, [100, 100], [100, 100]];
    term.functions().status.as_ref().expect("a mask").of(&tile, &[tables.1])
}

#[test]
fn tables_are_known_by_their_ends_or_where_they_are_short() {
    let segments: Vec<u32> = (0..100).map(|at| at / 30).collect();
    let text = "fn visible(at: Pair) -> bool { return documents[at.row] == documents[at.key]; }";
    let status = |rows, keys, is_sorted| {
        let table = Table { is_sorted, ..Table::i32("documents", 100) };
        of_tile(text, (table, &segments), [0, 0], rows, keys)
    };
    for (rows, keys, wanted) in [
        ([0, 29], [30, 99], Status::None),
        ([0, 29], [0, 29], Status::All),
        ([31, 50], [40, 59], Status::All),
        ([0, 30], [0, 29], Status::Some),
        ([90, 200], [90, 150], Status::All),
    ] {
        assert_eq!(status(rows, keys, true), wanted, "{rows:?} {keys:?}");
        let is_short = [rows, keys].iter().all(|[first, last]| last.min(&99) - first < 16);
        assert!(is_short || status(rows, keys, false) == Status::Some, "{rows:?} {keys:?}");
    }
    assert_eq!(status([0, 15], [14, 29], false), Status::All);
    assert_eq!(status([0, 15], [40, 55], false), Status::None);

    let window = "fn visible(at: Pair) -> bool { return at.position - at.key < widths[at.head]; }";
    let status = |heads, keys| of_tile(window, (Table::i32("widths", 3), &[1, 16, 64]), heads, [64, 79], keys);
    assert_eq!([status([0, 0], [0, 63]), status([1, 1], [0, 48]), status([0, 1], [0, 48])], [Status::None; 3]);
    assert_eq!([status([2, 2], [16, 31]), status([1, 2], [64, 79])], [Status::All; 2]);
    assert_eq!([status([1, 2], [16, 31]), status([0, 0], [64, 79])], [Status::Some; 2]);
}

#[test]
fn users_say_the_status_themselves() {
    let visible = "fn visible(at: Pair) -> bool { return at.key == 3; }";
    let status = |body: &str| {
        let text = format!("{visible} fn status(at: Tile) -> u32 {{ {body} }}");
        of_tile(&text, (Table::i32("widths", 3), &[1, 16, 64]), [2, 3], [8, 9], [4, 6])
    };
    assert_eq!(
        ["return NONE;", "return SOME;", "return ALL;", "return 3u;", "return 0xffffffffu;"].map(status),
        [Status::None, Status::Some, Status::All, Status::Some, Status::Some]
    );
    assert_eq!(
        status("return u32(at.first_head == 2 && at.last_row == 9 && at.first_key == 4 && widths[at.kv_head] == 1) * 2;"),
        Status::All
    );
    assert_eq!(status("return u32(at.len_q + at.len_kv == 200 && at.last_position - at.first_position == 1) * ALL;"), Status::All);
    let refused = |text: &str| Term::wgsl(text).expect_err(text).to_string();
    assert!(
        refused("fn visible(at: Pair) -> bool { return true; } fn status(at: Pair) -> u32 { return 1u; }")
            .contains("fn status(at: Tile) -> u32")
    );
    assert!(refused("fn score(x: f32, at: Pair) -> f32 { return x; } fn status(at: Tile) -> u32 { return ALL; }").contains("without"));
    // The names of the results are free in other texts.
    assert!(Term::wgsl("const ALL = 4; fn visible(at: Pair) -> bool { return at.key < ALL; }").is_ok());
    let reads_position =
        Term::wgsl(&format!("{visible} fn status(at: Tile) -> u32 {{ return u32(at.first_position < 4); }}")).expect("valid");
    assert!(reads_position.uses_position());
}

#[test]
fn masks_that_show_every_pair_cost_nothing() {
    for text in
        ["fn visible(at: Pair) -> bool { return true; }", "fn visible(at: Pair) -> bool { if (false) { return false; } return 2 > 1; }"]
    {
        let term = Term::wgsl(text).expect("valid");
        assert!(term.has_visible() && term.functions().is_identity());
    }
    let hides_all = Term::wgsl("fn visible(at: Pair) -> bool { return false; }").expect("valid");
    assert!(!hides_all.functions().is_identity());
}
