//! Storage of a cache's keys and values.

use wasm_bindgen::JsValue;
use wgpu_attention::DType;

use crate::errors::{Answer, Thrown};
use crate::object::{check_names, flag, set, word};

const TYPES: &[(&str, DType)] = &[("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16), ("q8", DType::Q8), ("q4", DType::Q4)];

/// Storage types of keys and of values, rotated or not.
pub(crate) struct Stored {
    pub(crate) key: DType,
    pub(crate) value: DType,
    pub(crate) hadamard: bool,
}

impl Stored {
    /// Reads a word for both types, or `{ key, value, hadamard }`. A type that is left out is f16.
    pub(crate) fn read(stored: Option<JsValue>) -> Answer<Self> {
        let Some(stored) = stored else { return Ok(Self { key: DType::F16, value: DType::F16, hadamard: false }) };
        if stored.is_string() {
            let given = js_sys::Object::new();
            set(&given, "stored", &stored);
            let both = word(&given, "stored", TYPES)?.unwrap_or(DType::F16);
            return Ok(Self { key: both, value: both, hadamard: false });
        }
        check_names(&stored, "stored", &["key", "value", "hadamard"])?;
        let of = |name| Ok::<_, Thrown>(word(&stored, name, TYPES)?.unwrap_or(DType::F16));
        Ok(Self { key: of("key")?, value: of("value")?, hadamard: flag(&stored, "hadamard")? })
    }
}
