//! candle's CPU flash attention.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn, flash_attn_varlen_cpu};

use crate::{Peer, Request, version};

pub(crate) fn new(request: &Request) -> std::result::Result<Peer, String> {
    let &Request { shape: [batch, heads, kv_heads, rows, keys, dim], causal, window, .. } = request;
    // Only the first request sets the number of threads; attn asks for the same number each time.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(request.threads).build_global();
    let dtype = match request.dtype.as_str() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => return Err(format!("no {other} here")),
    };
    // candle's order of the axes: batch, seq, heads, dim.
    let load = |name: &str, heads: usize, seq: usize| -> std::result::Result<Tensor, String> {
        let tensor = Tensor::from_vec(request.load(name)?, (batch, heads, seq, dim), &Device::Cpu);
        tensor.and_then(|tensor| tensor.to_dtype(dtype)?.transpose(1, 2)?.contiguous()).map_err(|error| error.to_string())
    };
    let (query, key, value) = (load("query", heads, rows)?, load("key", kv_heads, keys)?, load("value", kv_heads, keys)?);
    let scale = 1.0 / (dim as f32).sqrt();
    let attend = move || -> Result<Tensor> {
        if let Some(window) = window {
            return windowed(&query, &key, &value, scale, window);
        }
        let mask = match causal {
            // candle's causal mask is aligned to the first key.
            true if rows > 1 => match keys.checked_sub(rows) {
                Some(offset) => AttnMask::causal_with_offset(offset),
                None => candle_core::bail!("no rows before the first key"),
            },
            _ => AttnMask::None,
        };
        match dtype {
            DType::F32 => flash_attn::<f32>(&query, &key, &value, scale, mask, None, None),
            DType::F16 => flash_attn::<half::f16>(&query, &key, &value, scale, mask, None, None),
            _ => flash_attn::<half::bf16>(&query, &key, &value, scale, mask, None, None),
        }
    };
    let run = move |wanted: bool| {
        let started = Instant::now();
        let output = attend().map_err(|error| error.to_string())?;
        let time = started.elapsed();
        let numbers = || output.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
        let answer = if wanted { Some(numbers().map_err(|error| error.to_string())?) } else { None };
        Ok((time, answer))
    };
    Ok(Peer { adapter: format!("candle-nn {} CPU", version("candle-nn")), op: "flash_attn", run: Box::new(run) })
}

/// Computes attention to the last `window` keys up to each row, which only candle's varlen function supports.
fn windowed(query: &Tensor, key: &Tensor, value: &Tensor, scale: f32, window: usize) -> Result<Tensor> {
    let ((batch, rows, heads, dim), keys) = (query.dims4()?, key.dim(1)?);
    let lengths = |length: usize| Tensor::new(vec![length as u32; batch], &Device::Cpu);
    let packed = |tensor: &Tensor| tensor.flatten(0, 1);
    let (query, key, value) = (packed(query)?, packed(key)?, packed(value)?);
    let left = Some(window - 1);
    let output =
        flash_attn_varlen_cpu(&query, &key, &value, None, &lengths(rows)?, &lengths(keys)?, rows, keys, scale, true, left, Some(0))?;
    output.reshape((batch, rows, heads, dim))?.transpose(1, 2)?.contiguous()
}
