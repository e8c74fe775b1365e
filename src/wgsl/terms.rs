//! Joins the terms of a kernel: the functions through which kernels see all terms at once.

use std::fmt::Write;

use super::KernelKey;
use crate::terms::{TERMS, Term, TermSet};

/// Writes `interval_of_terms`, `is_visible`, `score_of`, `slopes_of` and the values of the terms. A specialised variant has
/// only the pair terms of its key; a generic one has all, each behind its switch. Interval terms are always switched:
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
    let any = |wanted: &dyn Fn(&Term) -> bool| {
        let bits: u32 = pairs.iter().filter(|(_, term)| wanted(term)).map(|(bit, _)| 1 << bit).sum();
        if key.generic { format!("(params.terms & {bits}u) != 0u") } else { (bits != 0).to_string() }
    };
    let _ = writeln!(text, "fn has_pair_terms() -> bool {{ return {}; }}", any(&|_| true));
    let _ = writeln!(text, "fn has_visible_terms() -> bool {{ return {}; }}", any(&|term| term.defines("visible")));
    let skips = pairs.iter().any(|(_, term)| term.defines("visible"));
    let _ = writeln!(text, "const SKIPS_TILES: bool = {skips};");

    text.push_str("fn is_visible(at: Pair) -> bool {\n    var result = true;\n");
    for (bit, term) in pairs.iter().filter(|(_, term)| term.defines("visible")) {
        let _ = writeln!(text, "    if ({}) {{ result = result && {}_visible(at); }}", condition(*bit), term.name);
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
    text.push_str("    return scored;\n}\n");

    // The scores before the first term that adds to them.
    text.push_str("fn score_before_biases(x: f32, at: Pair) -> f32 {\n    var score = x;\n");
    for (bit, term) in scores.iter().take_while(|(_, term)| term.defines("slope")) {
        let _ = writeln!(text, "    if ({}) {{ score = {}_score(score, at); }}", condition(*bit), term.name);
    }
    text.push_str("    return score;\n}\n");

    // Scores are computed again only as far as a later slope needs them.
    let last = scores.iter().rposition(|(_, term)| term.defines("slope"));
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
    text.push_str("    return slopes;\n}\n");
}

/// WGSL that tells at run time whether the problem has a term.
fn switch(bit: usize) -> String {
    format!("(params.terms & {}u) != 0u", 1u32 << bit)
}
