//! Members of JavaScript's objects, with their types checked.

use js_sys::{Array, Float32Array, Object, Reflect, Uint8Array, Uint16Array, Uint32Array};
use wasm_bindgen::{JsCast, JsValue};
use wgpu_attention::{DType, HostVec, bf16, f16};

use crate::errors::{Answer, invalid};

/// Member of an object; `None` if it is undefined or null.
pub(crate) fn member(object: &JsValue, name: &str) -> Option<JsValue> {
    Reflect::get(object, &name.into()).ok().filter(|value| !value.is_undefined() && !value.is_null())
}

/// Refuses members that are not `known`, as words that were misspelt.
pub(crate) fn check_names(object: &JsValue, argument: &str, known: &[&str]) -> Answer<()> {
    let Some(object) = object.dyn_ref::<Object>() else {
        return Err(invalid(argument, "is no object", &format!("give {{ {} }}", known.join(", "))));
    };
    for name in Object::keys(object).iter().filter_map(|name| name.as_string()) {
        if !known.contains(&&name[..]) && member(object, &name).is_some() {
            return Err(invalid(&name, "is not known", &format!("one of {}", known.join(", "))));
        }
    }
    Ok(())
}

/// Whole number from 0 on.
pub(crate) fn count(object: &JsValue, name: &str) -> Answer<Option<usize>> {
    let Some(value) = member(object, name) else { return Ok(None) };
    match value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(x)) {
        Some(x) => Ok(Some(x as usize)),
        None => Err(invalid(name, "is no whole number from 0 on", "give a number")),
    }
}

pub(crate) fn number(object: &JsValue, name: &str) -> Answer<Option<f32>> {
    let Some(value) = member(object, name) else { return Ok(None) };
    value.as_f64().map(|x| Some(x as f32)).ok_or_else(|| invalid(name, "is no number", "give a number, or leave it out"))
}

pub(crate) fn flag(object: &JsValue, name: &str) -> Answer<bool> {
    let Some(value) = member(object, name) else { return Ok(false) };
    value.as_bool().ok_or_else(|| invalid(name, "is neither true nor false", "give true or false"))
}

pub(crate) fn text(object: &JsValue, name: &str) -> Answer<Option<String>> {
    let Some(value) = member(object, name) else { return Ok(None) };
    value.as_string().map(Some).ok_or_else(|| invalid(name, "is no text", "give a string"))
}

/// One of some words; `None` if it is left out.
pub(crate) fn word<T: Copy>(object: &JsValue, name: &str, words: &[(&str, T)]) -> Answer<Option<T>> {
    let Some(text) = text(object, name)? else { return Ok(None) };
    let choices = || words.iter().map(|(word, _)| format!("'{word}'")).collect::<Vec<_>>().join(", ");
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|&(_, value)| Some(value)).ok_or_else(|| invalid(name, &format!("is '{text}'"), &format!("one of {}", choices())))
}

fn array<T: JsCast>(object: &JsValue, name: &str, kind: &str) -> Answer<Option<T>> {
    let Some(value) = member(object, name) else { return Ok(None) };
    value.dyn_into().map(Some).map_err(|_| invalid(name, &format!("is no {kind}"), &format!("give a {kind}")))
}

pub(crate) fn f32s(object: &JsValue, name: &str) -> Answer<Option<Vec<f32>>> {
    Ok(array::<Float32Array>(object, name, "Float32Array")?.map(|array| array.to_vec()))
}

pub(crate) fn u32s(object: &JsValue, name: &str) -> Answer<Option<Vec<u32>>> {
    Ok(array::<Uint32Array>(object, name, "Uint32Array")?.map(|array| array.to_vec()))
}

pub(crate) fn u8s(object: &JsValue, name: &str) -> Answer<Option<Vec<u8>>> {
    Ok(array::<Uint8Array>(object, name, "Uint8Array")?.map(|array| array.to_vec()))
}

/// Counts of an array.
pub(crate) fn counts(object: &JsValue, name: &str) -> Answer<Vec<usize>> {
    let missing = || invalid(name, "is no array of whole numbers", "give an array such as [1, 1, rows, keys]");
    let array: Array = member(object, name).and_then(|value| value.dyn_into().ok()).ok_or_else(missing)?;
    let one = |value: JsValue| value.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as usize).ok_or_else(missing);
    array.iter().map(one).collect()
}

/// Elements of a tensor: f32 numbers, which are stored as `dtype`, or the bits of it.
pub(crate) fn elements(object: &JsValue, name: &str, dtype: DType) -> Answer<HostVec> {
    let Some(value) = member(object, name) else {
        return Err(invalid(name, "is missing", "give a Float32Array"));
    };
    if let Some(array) = value.dyn_ref::<Float32Array>() {
        let numbers = array.to_vec();
        return Ok(if dtype == DType::F32 { HostVec::F32(numbers) } else { HostVec::from_f32(dtype, &numbers) });
    }
    match (value.dyn_ref::<Uint16Array>().map(Uint16Array::to_vec), dtype) {
        (Some(bits), DType::F16) => Ok(HostVec::F16(bits.into_iter().map(f16::from_bits).collect())),
        (Some(bits), DType::BF16) => Ok(HostVec::BF16(bits.into_iter().map(bf16::from_bits).collect())),
        _ => Err(invalid(name, &format!("is no array of {dtype}"), "give a Float32Array, or the bits of f16 or bf16 as a Uint16Array")),
    }
}

/// Elements as an array of JavaScript: numbers, or bits.
pub(crate) fn to_array(elements: HostVec) -> JsValue {
    match elements {
        HostVec::F32(numbers) => Float32Array::from(&numbers[..]).into(),
        HostVec::F16(numbers) => Uint16Array::from(bytemuck::cast_slice::<f16, u16>(&numbers)).into(),
        HostVec::BF16(numbers) => Uint16Array::from(bytemuck::cast_slice::<bf16, u16>(&numbers)).into(),
        HostVec::Q8(words) | HostVec::Q4(words) => Uint32Array::from(&words[..]).into(),
    }
}

/// Sets a member of an object that was made here.
pub(crate) fn set(object: &Object, name: &str, value: &JsValue) {
    // A new object takes every property.
    let _ = Reflect::set(object, &name.into(), value);
}
