//! Progress of long work, as JavaScript sees it.

use std::ops::ControlFlow;

use js_sys::Function;
use wasm_bindgen::JsValue;

/// Calls `watch`, a function of the completed share, if there is one.
pub(crate) fn progress(watch: Option<Function>) -> impl FnMut(f64) -> ControlFlow<()> {
    move |done| {
        if let Some(watch) = &watch {
            // Nobody awaits what it throws.
            let _ = watch.call1(&JsValue::UNDEFINED, &done.into());
        }
        ControlFlow::Continue(())
    }
}
