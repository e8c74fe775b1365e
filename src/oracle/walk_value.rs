//! Values of users' functions in f64.

use naga::{Handle, LocalVariable};

use Value::Parts;

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
