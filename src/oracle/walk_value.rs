//! Values of users' functions in f64.

use naga::{Handle, LocalVariable};

use Value::{Bool, F32, I32, Parts, U32};

/// A value: numbers, or a composite of values.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    I32(i32),
    U32(u32),
    /// Number and its derivative by the score, or by the element of a table.
    F32(f64, f64),
    Parts(Vec<Self>),
    Table(usize),
    /// Variable, and the way to a part of it.
    Place(Handle<LocalVariable>, Vec<usize>),
    Element(usize, u32),
}

/// Applies a function of numbers to all numbers of a value.
pub(super) fn each(value: Value, f: impl Fn(Value) -> Value + Copy) -> Value {
    match value {
        Parts(parts) => Parts(parts.into_iter().map(|part| each(part, f)).collect()),
        one => f(one),
    }
}

/// Derivative times a factor: 0 if the derivative is, even if the factor is infinite or NaN.
pub(super) fn times(d: f64, factor: f64) -> f64 {
    if d == 0.0 { 0.0 } else { d * factor }
}

/// Selects a whole value, or each part of vectors by its own condition.
pub(super) fn selected(condition: Value, accept: Value, reject: Value) -> Value {
    match (condition, accept, reject) {
        (Parts(conditions), Parts(accept), Parts(reject)) => {
            Parts(conditions.into_iter().zip(accept).zip(reject).map(|((c, a), b)| selected(c, a, b)).collect())
        }
        (Bool(true), accept, _) => accept,
        (.., reject) => reject,
    }
}

/// Zero of a kind of number.
pub(super) fn zero_of(kind: naga::ScalarKind) -> Value {
    match kind {
        naga::ScalarKind::Bool => Bool(false),
        naga::ScalarKind::Sint => I32(0),
        naga::ScalarKind::Uint => U32(0),
        _ => F32(0.0, 0.0),
    }
}

/// Applies a function of two numbers to the numbers of two values; a number goes with every part of a vector.
pub(super) fn both(a: Value, b: Value, f: impl Fn(Value, Value) -> Value + Copy) -> Value {
    match (a, b) {
        (Parts(a), Parts(b)) => Parts(a.into_iter().zip(b).map(|(a, b)| both(a, b, f)).collect()),
        (Parts(a), b) => Parts(a.into_iter().map(|a| both(a, b.clone(), f)).collect()),
        (a, Parts(b)) => Parts(b.into_iter().map(|b| both(a.clone(), b, f)).collect()),
        (a, b) => f(a, b),
    }
}
