//! From text to functions: naga parses and validates it; what a function of a pair may not have is refused by its place.

use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{Function, Module, ScalarKind, Span, Type, TypeInner};

use super::functions::{Functions, TableType};
use super::interval::Intervals;
use super::owner::{self, Owner, TableGradient};
use super::program::{Binary, Field, Id, Op, Program, Scalar};
use super::status::TileRule;
use super::tile::TILE_FIELDS;
use super::{builder, derive, lower, sizes};
use crate::error::{Error, Result};

/// Most bytes of a text.
const MOST_BYTES: usize = 64 << 10;
/// Stack of the thread that parses: nested statements and expressions recurse.
#[cfg(not(target_arch = "wasm32"))]
const STACK: usize = 512 << 20;

/// Reads the functions of a term; `sorted` and `owners` have those of each table.
pub(super) fn functions(text: &str, tables: Vec<(String, TableType)>, sorted: Vec<bool>, owners: &[Option<Owner>]) -> Result<Functions> {
    if text.len() > MOST_BYTES {
        return Err(refused(format!("has {} bytes; at most {MOST_BYTES} are read", text.len())));
    }
    let read = || read(text, tables, sorted, owners);
    #[cfg(target_arch = "wasm32")]
    return read();
    #[cfg(not(target_arch = "wasm32"))]
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, read);
        let thread = thread.map_err(|error| refused(format!("cannot be parsed: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(refused("cannot be parsed".into())))
    })
}

fn refused(why: String) -> Error {
    Error::invalid("term", why)
}

/// Error at a place of the text.
fn refused_at(text: &str, span: Span, why: &str) -> Error {
    match span.to_range().filter(|range| range.start < text.len()) {
        Some(_) => {
            let at = span.location(text);
            refused(format!("line {}, column {}: {why}", at.line_number, at.line_position))
        }
        None => refused(why.into()),
    }
}

fn read(text: &str, tables: Vec<(String, TableType)>, sorted: Vec<bool>, owners: &[Option<Owner>]) -> Result<Functions> {
    if let Some((at, why)) = sizes::refused(text) {
        return Err(refused_at(text, Span::new(at as u32, at as u32 + 1), &why));
    }
    let source = format!("{text}\n{}", declarations(text, &tables)?);
    let module = naga::front::wgsl::parse_str(&source).map_err(|error| {
        let place = error.labels().next().map_or(Span::UNDEFINED, |(span, _)| span);
        let labels: Vec<&str> = error.labels().map(|(_, label)| label).filter(|label| !error.message().contains(label)).collect();
        refused_at(text, place, &[&[error.message()], &labels[..]].concat().join(": "))
    })?;
    check_module(text, &module, tables.len())?;
    Validator::new(ValidationFlags::all(), Capabilities::empty()).validate(&module).map_err(|error| {
        // The smallest part of the text: others are those around it.
        let places = error.spans().map(|&(span, _)| span).filter(|place| place.is_defined());
        let place = places.min_by_key(|place| place.to_range().map(|range| range.len())).unwrap_or_default();
        let mut why = error.as_inner().to_string();
        let mut source = std::error::Error::source(error.as_inner());
        while let Some(inner) = source {
            why = format!("{why}: {inner}");
            source = inner.source();
        }
        refused_at(text, place, &why)
    })?;

    let program = |name: &str, floats: usize, result: ScalarKind| -> Result<Option<Program>> {
        let Some((handle, function)) = module.functions.iter().find(|(_, function)| function.name.as_deref() == Some(name)) else {
            return Ok(None);
        };
        let argument = if name == "status" { "Tile" } else { "Pair" };
        if !has_form(&module, function, floats, argument, result) {
            let form = form(name);
            return Err(refused_at(text, module.functions.get_span(handle), &format!("`{name}` must be `{form}`")));
        }
        let program = lower::lower(&module, function);
        program.map(Some).map_err(|(span, why)| refused_at(text, span, &format!("`{name}` {why}")))
    };
    let (visible, score) = (program("visible", 0, ScalarKind::Bool)?, program("score", 1, ScalarKind::Float)?);
    let own = program("slope", 2, ScalarKind::Float)?;
    let status = program("status", 0, ScalarKind::Uint)?;
    if visible.is_none() && score.is_none() {
        return Err(refused(format!("defines neither `{}` nor `{}`", form("visible"), form("score"))));
    }
    if own.is_some() && score.is_none() {
        return Err(refused(format!("defines `slope` without `{}`", form("score"))));
    }
    if status.is_some() && visible.is_none() {
        return Err(refused(format!("defines `status` without `{}`", form("visible"))));
    }
    // A score that stays as it is needs no function, unless its derivative is said to be another.
    let is_identity = own.is_none() && score.iter().any(|score| score.nodes.last().is_some_and(|last| last.op == Op::Score));
    let slope = match (own, &score) {
        (Some(own), _) => Some(Ok(own)),
        (None, Some(score)) => Some(derive::derive(score, derive::Seed::Score).map_err(|(place, why)| {
            let place = Span::new(place, place + 1).location(text);
            format!("cannot be derived: line {}, column {}: {why}", place.line_number, place.line_position)
        })),
        (None, None) => None,
    };
    let gradients = gradients(text, &tables, owners, score.as_ref(), visible.as_ref())?;
    let score = score.filter(|_| !is_identity);
    // Neither does a mask that shows every pair.
    let visible = visible.filter(|visible| visible.constant() != Some(1));
    let status = match (&visible, status) {
        (None, _) => None,
        (Some(_), Some(own)) => Some(TileRule::Own(bounded(&own).ok_or_else(|| refused("`status` has too many operations".into()))?)),
        (Some(visible), None) => Some(TileRule::Derived(Intervals::new(visible, &sorted))),
    };
    Ok(Functions { text: text.into(), tables, sorted, module, visible, status, score, slope, gradients })
}

/// A `status` that returns 1 where it returns more than 2; `None` if it is too long for that.
fn bounded(status: &Program) -> Option<Program> {
    let mut builder = builder::Builder::of(status);
    let (result, [some, all]) = (status.nodes.len() as Id - 1, [1, 2].map(|bits| builder.constant(Scalar::U32, bits)));
    let is_more = builder.binary(Binary::Less, all, result);
    let result = builder.select(is_more, some, result);
    builder.finish(result)
}

/// Gradients of the tables that have an owner.
fn gradients(
    text: &str,
    tables: &[(String, TableType)],
    owners: &[Option<Owner>],
    score: Option<&Program>,
    visible: Option<&Program>,
) -> Result<Vec<TableGradient>> {
    let mut gradients = Vec::new();
    for (table, ((name, ty), owner)) in (0..).zip(tables.iter().zip(owners)) {
        let Some(owner) = *owner else { continue };
        if *ty != TableType::F32 {
            return Err(refused(format!("table `{name}` has an owner, but integers have no gradient; leave the owner out")));
        }
        let of = |owner| owner::gradient(table, owner, score, visible);
        gradients.push(of(owner).map_err(|(place, why)| {
            let remedy = match Owner::ALL.iter().find(|&&other| of(other).is_ok()) {
                Some(other) => format!("say Owner::{other:?}"),
                None => "leave the owner out".into(),
            };
            let place = if place == 0 { Span::UNDEFINED } else { Span::new(place, place + 1) };
            refused_at(text, place, &format!("table `{name}` has no gradient by Owner::{owner:?}: {why}; {remedy}"))
        })?);
    }
    Ok(gradients)
}

const fn form(name: &str) -> &'static str {
    match name.as_bytes() {
        b"visible" => "fn visible(at: Pair) -> bool",
        b"score" => "fn score(x: f32, at: Pair) -> f32",
        b"status" => "fn status(at: Tile) -> u32",
        _ => "fn slope(x: f32, y: f32, at: Pair) -> f32",
    }
}

/// WGSL of what a text may use: `Pair`, `Tile` and the results of `status` if it names a `Tile`, and its tables.
fn declarations(text: &str, tables: &[(String, TableType)]) -> Result<String> {
    let names_tile = text.contains("Tile");
    let fields: Vec<String> = Field::ALL.iter().map(|field| format!("{}: i32", field.name())).collect();
    let mut text = format!("struct Pair {{ {} }}\n", fields.join(", "));
    if names_tile {
        let fields = TILE_FIELDS.map(|(name, ..)| format!("{name}: i32"));
        text += &format!("struct Tile {{ {} }}\nconst NONE: u32 = 0;\nconst SOME: u32 = 1;\nconst ALL: u32 = 2;\n", fields.join(", "));
    }
    for (at, (name, ty)) in tables.iter().enumerate() {
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name || tables[..at].iter().any(|(other, _)| other == name) {
            return Err(refused(format!("`{name}` is no name of a table, or the name of two: letters, digits and _ are allowed")));
        }
        let element = match ty {
            TableType::F32 => "f32",
            TableType::I32 => "i32",
            TableType::U32 => "u32",
        };
        text += &format!("@group(0) @binding({at}) var<storage, read> {name}: array<{element}>;\n");
    }
    Ok(text)
}

/// Refuses what only whole shaders have.
fn check_module(text: &str, module: &Module, tables: usize) -> Result<()> {
    if let Some(entry) = module.entry_points.first() {
        return Err(refused(format!("has an entry point, `{}`", entry.name)));
    }
    if let Some((handle, _)) = module.overrides.iter().next() {
        return Err(refused_at(text, module.overrides.get_span(handle), "has an override; use `const`"));
    }
    let foreign = module.global_variables.iter().find(|&(handle, _)| {
        let place = module.global_variables.get_span(handle).to_range();
        place.is_none_or(|range| range.start < text.len())
    });
    if let Some((handle, _)) = foreign {
        let why = "declares a variable outside of functions; tables are declared beside the text";
        return Err(refused_at(text, module.global_variables.get_span(handle), why));
    }
    debug_assert_eq!(module.global_variables.len(), tables);
    Ok(())
}

/// True if a function takes some floats and a struct of this name, and returns a number of this kind.
fn has_form(module: &Module, function: &Function, floats: usize, argument: &str, result: ScalarKind) -> bool {
    let is = |ty: naga::Handle<Type>, kind| matches!(module.types[ty].inner, TypeInner::Scalar(scalar) if scalar.kind == kind);
    let arguments = &function.arguments;
    arguments.len() == floats + 1
        && arguments[..floats].iter().all(|argument| is(argument.ty, ScalarKind::Float))
        && module.types[arguments[floats].ty].name.as_deref() == Some(argument)
        && function.result.as_ref().is_some_and(|returned| is(returned.ty, result))
}
