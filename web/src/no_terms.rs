//! Stand-in for `terms.rs` in the module without naga's frontend.

use wasm_bindgen::JsValue;
use wgpu_attention::Problem;

use crate::errors::{Answer, thrown};
use crate::object::text;

/// Refuses users' terms: the package takes the other module where one is there.
pub(crate) fn user_term(request: &JsValue, _: &mut Problem) -> Answer<Vec<u32>> {
    match text(request, "score")?.or(text(request, "visible")?) {
        None => Ok(Vec::new()),
        Some(_) => Err(thrown("unsupported", "this module reads no WGSL", Some("score"), Some("load the full one"))),
    }
}
