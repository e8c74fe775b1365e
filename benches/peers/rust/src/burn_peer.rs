//! burn's attention on its wgpu backend: fused or unfused, whichever its autotune finds faster.

use std::time::Instant;

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};

use crate::{Peer, Request, version};

pub(crate) fn new(request: &Request, options: &[&str]) -> Result<Peer, String> {
    if let Some(other) = options.iter().find(|option| !["device", "fold"].contains(option)) {
        return Err(format!("`{other}` is neither `device` nor `fold`"));
    }
    let (on_device, fold) = (options.contains(&"device"), options.contains(&"fold"));
    let [batch, heads, kv_heads, rows, keys, dim] = request.shape;
    if request.window.is_some() {
        return Err("no windows but as masks of the size of the scores".into());
    }
    if fold && rows > 1 {
        return Err("`fold` needs a single query".into());
    }
    let dtype = match request.dtype.as_str() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => return Err(format!("no {other} here")),
    };
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    if !device.supports_dtype(dtype) {
        return Err(format!("no {} on this adapter", request.dtype));
    }
    let load = |name: &str, heads: usize, seq: usize| -> Result<TensorData, String> {
        TensorData::new(request.load(name)?, [batch, heads, seq, dim]).try_cast(dtype).map_err(|error| error.to_string())
    };
    let arrays = [load("query", heads, rows)?, load("key", kv_heads, keys)?, load("value", kv_heads, keys)?];
    let name = device.identity().map_or_else(|| "wgpu".into(), |identity| identity.name);
    let place = if on_device { ", arrays on the device" } else { "" };
    let adapter = format!("burn {} wgpu, {name}{place}", version("burn"));
    let group = heads / kv_heads;
    let causal = request.causal && rows > 1;
    let upload = {
        let device = device.clone();
        move |arrays: [TensorData; 3]| arrays.map(|array| Tensor::<4>::from_data(array, (&device, dtype)))
    };
    let kept = on_device.then(|| upload(arrays.clone()));
    let run = move |wanted: bool| {
        // burn consumes the arrays, so they are copied outside the timed region.
        let arrays = kept.is_none().then(|| arrays.clone());
        device.sync().map_err(|error| format!("{error:?}"))?;
        let started = Instant::now();
        let [query, key, value] = match (&kept, arrays) {
            (Some(tensors), _) => tensors.clone(),
            (None, arrays) => upload(arrays.ok_or("no arrays")?),
        };
        let output = attend(query, key, value, group, fold, causal);
        let (time, data) = if on_device {
            // The clone keeps the output alive; otherwise burn would have nothing to compute.
            let kept = output.clone();
            device.sync().map_err(|error| format!("{error:?}"))?;
            let time = started.elapsed();
            drop(kept);
            (time, if wanted { Some(read(output)?) } else { None })
        } else {
            let data = read(output)?;
            (started.elapsed(), Some(data))
        };
        let numbers = |data: TensorData| data.try_cast(DType::F32)?.try_into_vec::<f32>();
        let answer = data.filter(|_| wanted).map(numbers).transpose().map_err(|error| error.to_string())?;
        Ok((time, answer))
    };
    let op = if fold && group > 1 { "attention, heads as rows" } else { "attention" };
    Ok(Peer { adapter, op, run: Box::new(run) })
}

/// Reads a tensor into host memory. burn alone would wait, and compute, only when the data is first accessed.
fn read(tensor: Tensor<4>) -> Result<TensorData, String> {
    let data = tensor.try_into_data().map_err(|error| format!("{error:?}"))?;
    std::hint::black_box(data.as_bytes());
    Ok(data)
}

fn attend(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>, group: usize, fold: bool, causal: bool) -> Tensor<4> {
    let options = AttentionModuleOptions { is_causal: causal, ..Default::default() };
    if group == 1 {
        return attention(query, key, value, None, None, options);
    }
    if fold {
        let [batch, heads, _, dim] = query.dims();
        let rows = query.reshape([batch, heads / group, group, dim]);
        return attention(rows, key, value, None, None, options).reshape([batch, heads, 1, dim]);
    }
    let repeat = |tensor: Tensor<4>| {
        let [batch, heads, seq, dim] = tensor.dims();
        tensor.reshape([batch, heads, 1, seq, dim]).expand([batch, heads, group, seq, dim]).reshape([batch, heads * group, seq, dim])
    };
    attention(query, repeat(key), repeat(value), None, None, options)
}
