//! Errors as JavaScript sees them.

use js_sys::{Object, Reflect};
use wasm_bindgen::JsValue;
use wgpu_attention::Error;

/// Object with the members of `AttentionError`.
pub(crate) type Thrown = JsValue;

/// Result of what JavaScript calls.
pub(crate) type Answer<T> = Result<T, Thrown>;

/// Error about a part of the request, by its name in JavaScript.
pub(crate) fn invalid(argument: &str, why: &str, remedy: &str) -> Thrown {
    thrown("invalid", &format!("invalid `{argument}`: {why}"), Some(argument), Some(remedy))
}

pub(crate) fn thrown(kind: &str, message: &str, argument: Option<&str>, remedy: Option<&str>) -> Thrown {
    let error = Object::new();
    for (name, text) in [("kind", Some(kind)), ("message", Some(message)), ("argument", argument), ("remedy", remedy)] {
        if let Some(text) = text {
            // A new object takes every property.
            let _ = Reflect::set(&error, &name.into(), &text.into());
        }
    }
    error.into()
}

pub(crate) fn to_js(error: Error) -> Thrown {
    if let Error::Invalid { argument: "term", why } = &error {
        return invalid("score", why, "see docs/terms.md");
    }
    let message = in_js(&error.to_string());
    match &error {
        Error::Invalid { argument, .. } => {
            let argument = in_js(argument);
            thrown("invalid", &message, Some(&argument), Some(&format!("change `{argument}`")))
        }
        Error::Unsupported { remedy, .. } => thrown("unsupported", &message, None, Some(&in_js(remedy))),
        Error::Limit { limit, remedy, .. } => thrown("limit", &message, Some(&in_js(limit)), Some(&in_js(remedy))),
        Error::Miscomputed { .. } => thrown("miscomputed", &message, None, Some("use the backend `cpu`")),
        Error::Cancelled => thrown("cancelled", &message, None, None),
        _ => thrown("device", &message, None, None),
    }
}

/// Text of the library with the names that JavaScript has: `num_kv_heads` becomes `numKvHeads`.
pub(crate) fn in_js(text: &str) -> String {
    let text = text.replace("Backend::Cpu", "the backend `cpu`");
    let mut named = String::with_capacity(text.len());
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, letters.peek()) {
            ('_', Some(next)) if next.is_ascii_lowercase() && named.ends_with(|before: char| before.is_ascii_lowercase()) => {
                named.push(next.to_ascii_uppercase());
                letters.next();
            }
            _ => named.push(letter),
        }
    }
    named
}
