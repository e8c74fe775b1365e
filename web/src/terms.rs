//! Masks and scores that users write in WGSL.

use js_sys::{Float32Array, Int32Array, Object, Uint32Array};
use wasm_bindgen::{JsCast, JsValue};
use wgpu_attention::{Error, Problem, TableData, Term};

use crate::errors::{Answer, invalid, to_js};
use crate::object::{member, text};

/// Adds the user's term, and returns the data of its tables.
pub(crate) fn user_term(request: &JsValue, problem: &mut Problem) -> Answer<Vec<u32>> {
    let (score, visible) = (text(request, "score")?, text(request, "visible")?);
    let mut named: Vec<(String, Table)> = Vec::new();
    if let Some(tables) = member(request, "tables") {
        for name in Object::keys(&Object::from(tables.clone())).iter().filter_map(|name| name.as_string()) {
            let table = member(&tables, &name).and_then(|value| table(&value));
            let remedy = "give a Float32Array, an Int32Array or a Uint32Array";
            named.push((name.clone(), table.ok_or_else(|| invalid("tables", &format!("`{name}` is no typed array"), remedy))?));
        }
    }
    if score.is_none() && visible.is_none() {
        return if named.is_empty() {
            Ok(Vec::new())
        } else {
            Err(invalid("tables", "nobody reads them", "give `score` or `visible` too"))
        };
    }
    let data: Vec<(&str, TableData<'_>)> = named.iter().map(|(name, table)| (&name[..], table.data())).collect();
    let tables: Vec<_> = data.iter().map(|(name, data)| data.table(name)).collect();
    // One term, so that both functions may read the tables.
    let first = score.as_deref().map_or(0, |score| score.lines().count());
    let whole: String = score.iter().chain(&visible).flat_map(|text| text.lines()).flat_map(|line| [line, "\n"]).collect();
    let term = Term::with_tables(&whole, &tables).map_err(|error| {
        let of_score = score.as_ref().is_some_and(|score| visible.is_none() || Term::with_tables(score, &tables).is_err());
        in_its_text(error, if of_score { "score" } else { "visible" }, if of_score { 0 } else { first })
    })?;
    problem.user_terms.push(term);
    problem.term_tables(&data).map_err(to_js)
}

impl Table {
    fn data(&self) -> TableData<'_> {
        match self {
            Self::F32(data) => TableData::F32(data),
            Self::I32(data) => TableData::I32(data),
            Self::U32(data) => TableData::U32(data),
        }
    }
}

/// Error about a user's text, with the line in it: `before` lines of the whole are another one's.
fn in_its_text(error: Error, argument: &str, before: usize) -> JsValue {
    const REMEDY: &str = "see docs/terms.md: `fn score(x: f32, at: Pair) -> f32`, `fn visible(at: Pair) -> bool`";
    let Error::Invalid { argument: "term", why } = &error else { return to_js(error) };
    let place = why.strip_prefix("line ").and_then(|rest| rest.split_once(','));
    match place.and_then(|(line, rest)| Some((line.parse::<usize>().ok()?.checked_sub(before)?, rest))) {
        Some((line, rest)) => invalid(argument, &format!("line {line},{rest}"), REMEDY),
        None => invalid(argument, why, REMEDY),
    }
}

/// Words of a table and their type, from a typed array.
fn table(value: &JsValue) -> Option<Table> {
    if let Some(array) = value.dyn_ref::<Float32Array>() {
        return Some(Table::F32(array.to_vec()));
    }
    if let Some(array) = value.dyn_ref::<Int32Array>() {
        return Some(Table::I32(array.to_vec()));
    }
    value.dyn_ref::<Uint32Array>().map(|array| Table::U32(array.to_vec()))
}

/// Table of a user's term.
enum Table {
    F32(Vec<f32>),
    I32(Vec<i32>),
    U32(Vec<u32>),
}
