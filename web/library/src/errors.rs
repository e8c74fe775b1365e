//! Errors as JavaScript sees them.

use js_sys::{Error as JsError, Reflect};
use wasm_bindgen::JsValue;
use wgpu_attention::Error;

/// `Error` with the properties `kind` and, where there are such, `argument` and `remedy`.
pub(crate) type Thrown = JsValue;

pub(crate) fn to_js(error: Error) -> Thrown {
    let (kind, argument, remedy) = match &error {
        Error::Invalid { argument, .. } => ("invalid", Some(*argument), None),
        Error::Unsupported { remedy, .. } => ("unsupported", None, Some(&remedy[..])),
        Error::Limit { limit, remedy, .. } => ("limit", Some(*limit), Some(&remedy[..])),
        Error::NoAdapter { .. } => ("no-adapter", None, None),
        Error::Device { .. } => ("device", None, None),
        Error::Lost { .. } => ("lost", None, Some("start again")),
        Error::Shader { .. } => ("shader", None, None),
        Error::Miscomputed { .. } => ("miscomputed", None, Some("use the backend `cpu`")),
        Error::Cancelled => ("cancelled", None, None),
        _ => ("other", None, None),
    };
    let thrown = JsError::new(&error.to_string());
    for (name, text) in [("kind", Some(kind)), ("argument", argument), ("remedy", remedy)] {
        if let Some(text) = text {
            // A new object takes every property.
            let _ = Reflect::set(&thrown, &name.into(), &text.into());
        }
    }
    thrown.into()
}
