//! Joins the terms of a kernel: the functions through which kernels see all terms at once.

use std::fmt::Write;

use super::{Kernel, KernelKey};
use crate::custom::{Functions, TableGradient, emit};
use crate::terms::{TERMS, Term, TermSet};

/// Most operations of users' functions that take less time for every pair than what a branch around them costs: compilers
/// for processors that run lanes as vectors schedule the products beside it worse. Between them, 1x8x1024x64: a causal mask
/// 17.2 ms with it and 13.4 without, two documents of a table 5.3 and 4.4; 1x8x512x64: softcap 9.0 and 6.8.
const CHEAP: usize = 64;

/// Writes `interval_of_terms`, `is_visible`, `score_of`, `slopes_of` and the values of the terms. A specialised variant has
/// only the pair terms of its key; a generic one has all, each behind its switch, or none. Interval terms are always switched:
/// a row asks for them twice, and constants would multiply the variants.
pub(super) fn chains(text: &mut String, key: &KernelKey) {
    let _ = writeln!(text, "const TERMS: u32 = {}u;", TERMS.len());
    for (at, term) in TERMS.iter().enumerate() {
        if TERMS[..at].iter().all(|earlier| earlier.name != term.name) {
            let _ = writeln!(text, "fn {}_values() -> vec4<u32> {{ return params.term_values[{at}]; }}", term.name);
        }
    }

    text.push_str("fn interval_of_terms(all: Span, item: Item, position: i32) -> Span {\n    var keys = all;\n");
    for (bit, term) in TermSet::intervals().iter() {
        let _ = writeln!(text, "    if ({}) {{ keys = {}_interval(keys, item, position); }}", switch(bit), term.name);
    }
    text.push_str("    return keys;\n}\n");

    let pairs: Vec<_> = key.terms.iter().collect();
    let condition = |bit: usize| if key.generic { switch(bit) } else { "true".into() };
    let users: Vec<User<'_>> = users(key);
    let any_user = |wanted: &dyn Fn(&Functions) -> bool| users.iter().any(|user| wanted(user.functions));
    let any = |wanted: &dyn Fn(&Term) -> bool| {
        let bits: u32 = pairs.iter().filter(|(_, term)| wanted(term)).map(|(bit, _)| 1 << bit).sum();
        if key.is_switched() { format!("(params.terms & {bits}u) != 0u") } else { (bits != 0).to_string() }
    };
    let shows = any_user(&|functions| functions.visible.is_some());
    let has = |built_in: String, user: bool| if user { "true".to_string() } else { built_in };
    let _ = writeln!(
        text,
        "fn has_pair_terms() -> bool {{ return {}; }}",
        has(any(&|_| true), any_user(&|functions| !functions.is_identity()))
    );
    let _ = writeln!(text, "fn has_visible_terms() -> bool {{ return {}; }}", has(any(&|term| term.defines("visible")), shows));
    tile_status(text, key, &users, &any(&|term| term.defines("visible") && !term.defines("status")));
    // Users' functions read tables by clamped indices; built-in terms with arrays of rows and keys need pairs that exist.
    let reads_anywhere = pairs.iter().all(|(_, term)| term.tensor.is_none() && !term.defines("visible"));
    let is_cheap = key.kernel.runs_lanes_as_vectors() && reads_anywhere && users.iter().map(User::operations).sum::<usize>() <= CHEAP;
    let _ = writeln!(text, "const EVALUATES_ALL: bool = {is_cheap};");
    // A tile that is told to be whole needs no test, unless a term tests or changes every pair.
    let told = |term: &Term| term.defines("status");
    let is_told = shows || pairs.iter().any(|(_, term)| told(term));
    let tests = match is_told && !is_cheap && !any_user(&|functions| functions.score.is_some()) {
        true => format!("{} || (has_pair_terms() && tests_told)", any(&|term| !told(term))),
        false => "has_pair_terms()".into(),
    };
    let _ = writeln!(text, "fn tests_pairs() -> bool {{ return {tests}; }}");
    let skips = shows || pairs.iter().any(|(_, term)| term.defines("visible"));
    let _ = writeln!(text, "const SKIPS_TILES: bool = {skips};");

    text.push_str("fn is_visible(at: Pair) -> bool {\n    var result = true;\n");
    for (bit, term) in pairs.iter().filter(|(_, term)| term.defines("visible")) {
        let told = if term.defines("status") { " && tests_told" } else { "" };
        let _ = writeln!(text, "    if ({}{told}) {{ result = result && {}_visible(at); }}", condition(*bit), term.name);
    }
    for user in users.iter().filter(|user| user.functions.visible.is_some()) {
        let _ = match is_cheap {
            true => writeln!(text, "    result = result & {}_visible(at);", user.name),
            false => writeln!(text, "    if (tests_told) {{ result = result && {}_visible(at); }}", user.name),
        };
    }
    text.push_str("    return result;\n}\n");

    let scores: Vec<_> = pairs.iter().filter(|(_, term)| term.defines("score")).collect();
    // A sum of scaled product and biases that is -inf masks, even if a later term makes it finite.
    let first_bias = TERMS.iter().position(|term| term.defines("score") && !term.defines("slope"));
    text.push_str("fn score_of(x: f32, at: Pair) -> Scored {\n    var scored = Scored(x, true);\n");
    for (bit, term) in &scores {
        let sum = if term.defines("slope") && Some(*bit) > first_bias { "scored = next_score(scored, scored.score); " } else { "" };
        let _ =
            writeln!(text, "    if ({}) {{ {sum}scored = next_score(scored, {}_score(scored.score, at)); }}", condition(*bit), term.name);
    }
    if any_user(&|functions| functions.score.is_some()) {
        text.push_str("    scored = next_score(scored, scored.score);\n");
    }
    for user in users.iter().filter(|user| user.functions.score.is_some()) {
        let _ = writeln!(text, "    scored = next_user_score(scored, {}_score(scored.score, at));", user.name);
    }
    text.push_str("    return scored;\n}\n");

    // The scores before the first term that adds to them.
    text.push_str("fn score_before_biases(x: f32, at: Pair) -> f32 {\n    var score = x;\n");
    for (bit, term) in scores.iter().take_while(|(_, term)| term.defines("slope")) {
        let _ = writeln!(text, "    if ({}) {{ score = {}_score(score, at); }}", condition(*bit), term.name);
    }
    text.push_str("    return score;\n}\n");

    // Scores are computed again only as far as a later slope needs them.
    let wanted = |user: &User<'_>| user.table(key).is_some();
    let last_user = users.iter().rposition(|user| wanted(user) || user.functions.slope().is_some() && key.kernel.visits_pairs_backward());
    let last = if last_user.is_some() { Some(scores.len()) } else { scores.iter().rposition(|(_, term)| term.defines("slope")) };
    text.push_str("fn slopes_of(x: f32, at: Pair) -> Slopes {\n    var score = x;\n    var slopes = Slopes(1.0, 1.0);\n");
    for (place, (bit, term)) in scores.iter().enumerate() {
        let (condition, name) = (condition(*bit), term.name);
        let change = match term.defines("slope") {
            true => format!("slopes = next_slopes(slopes, {name}_slope(score, {name}_score(score, at), at));"),
            false => "slopes.biased = 1.0;".into(),
        };
        let score = if Some(place) < last { format!("score = {name}_score(score, at);") } else { String::new() };
        let _ = writeln!(text, "    if ({condition}) {{ {change} {score} }}");
    }
    user_slopes(text, key, &users[..last_user.map_or(0, |last| last + 1)]);
    text.push_str("    return slopes;\n}\n");
}

/// Term that the user wrote, with the prefix of its functions.
struct User<'a> {
    name: String,
    functions: &'a Functions,
    /// Number of its first table among those of all users' terms.
    first_table: u32,
}

impl User<'_> {
    /// Number of operations for each pair.
    fn operations(&self) -> usize {
        [&self.functions.visible, &self.functions.score].into_iter().flatten().map(|program| program.nodes.len()).sum()
    }

    /// Gradient that a kernel computes, if it is that of a table of the term.
    fn table(&self, key: &KernelKey) -> Option<&TableGradient> {
        let table = key.kernel.table()?.checked_sub(self.first_table)?;
        self.functions.gradients.iter().find(|gradient| gradient.table == table)
    }
}

fn users(key: &KernelKey) -> Vec<User<'_>> {
    let (mut users, mut first_table) = (Vec::new(), 0);
    for (at, functions) in key.user_terms().iter().enumerate() {
        users.push(User { name: format!("user{at}"), functions, first_table });
        first_table += functions.tables.len() as u32;
    }
    users
}

/// Writes the scores and slopes of the user's terms up to the last that has a slope.
fn user_slopes(text: &mut String, key: &KernelKey, users: &[User<'_>]) {
    for user @ User { name, functions, .. } in users {
        if functions.score.is_some() {
            let _ = writeln!(text, "    let {name}_before = score;\n    score = {name}_score({name}_before, at);");
        }
        if functions.slope().is_some() {
            let _ = writeln!(text, "    slopes = next_user_slopes(slopes, {name}_slope({name}_before, score, at));");
        }
        // A table is a bias whose derivative may be another than 1.
        if user.table(key).is_some() {
            let _ = writeln!(text, "    slopes.biased = {name}_by_table({name}_before, at);");
        }
    }
}

/// Writes what terms tell of a tile without its pairs, and the switch of their tests: tiles that they show whole need none.
/// `others` is the condition under which other terms mask pairs too.
fn tile_status(text: &mut String, key: &KernelKey, users: &[User<'_>], others: &str) {
    let telling: Vec<_> = key.terms.iter().filter(|(_, term)| term.defines("status")).collect();
    let showing: Vec<_> = users.iter().filter(|user| user.functions.visible.is_some()).collect();
    if !telling.is_empty() || !showing.is_empty() {
        text.push_str("var<private> tests_told: bool = true;\n");
    }
    if !key.kernel.has_tiles() {
        return;
    }
    if !showing.is_empty() {
        let all: Vec<String> = showing.iter().map(|user| format!("{}_status(tile)", user.name)).collect();
        let least = all.into_iter().reduce(|a, b| format!("min({a}, {b})")).unwrap_or_default();
        let _ = writeln!(text, "fn users_show(tile: Tile) -> u32 {{ return {least}; }}");
    }
    if key.kernel == Kernel::TileList {
        let _ = writeln!(text, "const USERS_ALONE: bool = {};", key.terms.iter().all(|(_, term)| !term.defines("visible")));
        return;
    }
    text.push_str("fn told(item: Item, block: Block, rows: u32, first_key: u32, end_key: u32) -> Told {\n");
    if telling.is_empty() && showing.is_empty() {
        let _ = writeln!(text, "    return Told(SHOWS_ALL, {others});\n}}\nfn test_told(wanted: bool) {{}}");
        return;
    }
    text.push_str("    let tile = tile_of(item, block, rows, first_key, end_key);\n    var least = SHOWS_ALL;\n");
    if !showing.is_empty() {
        text.push_str("    least = users_show(tile);\n");
    }
    // Arithmetic that tells of some pairs may be wrong about them; bits are right, and a list knows all terms.
    let open = match (key.listed, showing.is_empty()) {
        (true, _) => "false".into(),
        (false, true) => others.to_string(),
        (false, false) => format!("least == SHOWS_SOME || {others}"),
    };
    let _ = writeln!(text, "    let is_open = {open};");
    for (bit, term) in telling {
        let condition = if key.generic { switch(bit) } else { "true".into() };
        let _ = writeln!(text, "    if ({condition}) {{ least = min(least, {}_status(tile)); }}", term.name);
    }
    if key.listed {
        text.push_str("    least = select(least, SHOWS_NONE, bits_status(tile_list(), tile) == SHOWS_NONE);\n");
    }
    text.push_str("    return Told(least, is_open);\n}\nfn test_told(wanted: bool) { tests_told = wanted; }\n");
}

/// Writes the functions of the user's terms.
pub(super) fn user_functions(text: &mut String, key: &KernelKey) {
    for user in users(key) {
        let User { name, functions, first_table } = &user;
        for (hook, arguments, program) in [
            ("visible", "at: Pair", functions.visible.as_ref()),
            ("score", "x: f32, at: Pair", functions.score.as_ref()),
            ("slope", "x: f32, y: f32, at: Pair", functions.slope().filter(|_| key.kernel.visits_pairs_backward())),
        ] {
            if let Some(program) = program {
                emit::function(text, &format!("{name}_{hook}"), arguments, program, *first_table);
            }
        }
        if let Some(status) = functions.status.as_ref().filter(|_| key.kernel.has_tiles()) {
            status.emit(text, &format!("{name}_status"), *first_table);
        }
        if let Some(gradient) = user.table(key) {
            emit::function(text, &format!("{name}_by_table"), "x: f32, at: Pair", &gradient.slope, *first_table);
            if matches!(key.kernel, Kernel::TableLines(..)) {
                emit::function(text, "table_index", "at: Pair", &gradient.index, *first_table);
            }
        }
    }
}

/// WGSL that tells at run time whether the problem has a term.
fn switch(bit: usize) -> String {
    format!("(params.terms & {}u) != 0u", 1u32 << bit)
}
