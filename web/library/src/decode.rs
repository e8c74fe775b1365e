//! Decoding with a cache on the device, compared with the CPU path.

use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{CacheSize, DeviceCache, Gpu, Growth, NewTokens, QueryBindings, Rows};
use wgpu_attention::{
    Algorithm, Backend, DType, Dims, Engine, EngineOptions, Error, HostVec, Inputs, Layout, Problem, Result, TensorSpec, wgpu,
};

const STEPS: usize = 6;
const HEADS: usize = 4;
const HEAD_DIM: usize = 32;
const ROW: usize = HEADS * HEAD_DIM;

/// Largest difference between six steps on the device and the CPU path on the tokens so far.
pub(crate) async fn six_steps(engine: &Engine, stored: &str) -> Result<f32> {
    let dtype = match stored {
        "f32" => DType::F32,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        "q8" => DType::Q8,
        "q4" => DType::Q4,
        _ => return Err(Error::Invalid { argument: "stored", why: format!("`{stored}` is no storage type") }),
    };
    let unsupported = || Error::Unsupported { what: "a cache on the device without one".into(), remedy: "start a GPU".into() };
    let gpu = engine.gpu().ok_or_else(unsupported)?.with_own_errors();
    let shape = CacheShape::uniform(1, LayerShape::new(HEADS, HEAD_DIM).stored(dtype, dtype)).page_size(4).pages(2);
    let mut cache = DeviceCache::new(&gpu, shape, CacheSize { slots: 1, pages_per_slot: 2 })?;
    cache.start()?;
    let buffer = |usage| {
        let descriptor = wgpu::BufferDescriptor { label: None, size: 4 * ROW as u64, usage, mapped_at_creation: false };
        gpu.device().create_buffer(&descriptor)
    };
    let [query, key, value] = [(); 3].map(|()| buffer(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST));
    let output = buffer(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let rows = |buffer| Rows::new(buffer, TensorSpec::new(DType::F32, Layout::Bhsd));
    let new = NewTokens { slots: 0..1, seq_len: 1, key: rows(&key), value: rows(&value), rotation: None };
    let append = cache.append(0, &new)?;
    let problem = cache.problem(0, 0..1, Queries { num_heads: HEADS, seq_len: 1 })?;
    let attention = cache.attention(0, &problem, 0..1, Algorithm::Auto)?;
    let attention = attention.bind(&cache, 0, &QueryBindings::new(&query, &output))?;
    let cpu = Engine::new_async(EngineOptions { backend: Backend::Cpu, ..EngineOptions::default() }).await?;
    let mut tokens = [Vec::new(), Vec::new()];
    let mut worst = 0.0f32;
    for step in 0..STEPS {
        let [q, k, v] = [0, 1, 2].map(|of| (0..ROW).map(|at| ((step * 7 + of * 31 + at) as f32 * 0.37).sin()).collect::<Vec<f32>>());
        for (buffer, data) in [(&query, &q), (&key, &k), (&value, &v)] {
            gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(data));
        }
        let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        cache.extend(Growth { tokens: &[1], steps: 1 }, &mut encoder)?;
        [cache.advance(), &append, &attention].into_iter().for_each(|dispatches| dispatches.record(&mut encoder));
        let staging = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
        encoder.copy_buffer_to_buffer(&output, 0, &staging, 0, 4 * ROW as u64);
        gpu.queue().submit([encoder.finish()]);
        gpu.settled().await?;
        let got = read(&gpu, &staging).await?;
        for (all, new) in tokens.iter_mut().zip([k, v]) {
            all.push(new);
        }
        let expected = expected(&cpu, dtype, &q, &tokens)?;
        worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(worst, f32::max);
    }
    Ok(worst)
}

/// Attention of the CPU path over the keys and values of all tokens, [token][head][dim], stored as `dtype`.
fn expected(cpu: &Engine, dtype: DType, query: &[f32], tokens: &[Vec<Vec<f32>>; 2]) -> Result<Vec<f32>> {
    let dims = Dims { seq_len_q: 1, ..Dims::self_attention(1, HEADS, tokens[0].len(), HEAD_DIM) };
    let stored = TensorSpec::new(dtype, Layout::Bshd);
    let problem = Problem { key: stored, value: stored, ..Problem::new(dims) };
    let [key, value] = tokens.each_ref().map(|tokens| HostVec::from_f32(dtype, &tokens.concat()));
    cpu.attention(&problem, &Inputs::new(query, &key, &value)).map(|outputs| outputs.output.into_f32())
}

async fn read(gpu: &Gpu, staging: &wgpu::Buffer) -> Result<Vec<f32>> {
    let mapped = js_sys::Promise::new(&mut |resolve, reject| {
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            let settle = if result.is_ok() { resolve } else { reject };
            // Settling a promise throws nothing.
            let _ = settle.call0(&wasm_bindgen::JsValue::UNDEFINED);
        });
    });
    let device = |why: &str| if gpu.is_lost() { Error::Lost { why: why.into() } } else { Error::Device { why: why.into() } };
    wasm_bindgen_futures::JsFuture::from(mapped).await.map_err(|_| device("the output cannot be mapped"))?;
    let view = staging.get_mapped_range(..).map_err(|error| device(&error.to_string()))?;
    let read = bytemuck::pod_collect_to_vec(&view);
    staging.destroy();
    Ok(read)
}
