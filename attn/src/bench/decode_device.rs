//! Decoding steps with a cache on a device.

use std::time::Instant;

use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{CacheSize, DeviceCache, Dispatches, Gpu, Growth, NewTokens, QueryBindings, Rows};
use wgpu_attention::wgpu::{self, BufferUsages};
use wgpu_attention::{Algorithm, Alignment, DType, Error, HostVec, Layout, TensorSpec};

use super::decode::Full;
use crate::failure::Failure;

/// Device cache of one layer, full except for the last token, which a step appends.
pub(super) struct OnDevice<'a> {
    gpu: &'a Gpu,
    cache: DeviceCache,
    append: Dispatches,
    attention: Dispatches,
    output: wgpu::Buffer,
}

impl<'a> OnDevice<'a> {
    /// Fills the cache and binds the step. The inner error says why the device does not support it.
    pub(super) fn new(gpu: &'a Gpu, full: &Full, page_size: usize) -> Result<Result<Self, String>, Failure> {
        match Self::fill(gpu, full, page_size) {
            Err(error @ (Error::Unsupported { .. } | Error::Limit { .. })) => Ok(Err(error.to_string())),
            other => Ok(Ok(other?)),
        }
    }

    fn fill(gpu: &'a Gpu, full: &Full, page_size: usize) -> Result<Self, Error> {
        // Bhsd keeps the keys of a head contiguous; other layouts jump between memory pages of the machine.
        let pages = full.keys.div_ceil(page_size);
        let shape = CacheShape::uniform(1, full.shape).page_size(page_size).pages(pages).layout(Layout::Bhsd);
        let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: 1, pages_per_slot: pages })?;
        let slot = cache.start()?;
        // Pages are allocated in order, so the pool holds the sequence contiguously.
        for (bank, pools) in cache.pools(0)?.iter().enumerate() {
            let heads = full.shape.num_kv_heads / cache.pools(0)?.len();
            for (pool, data) in pools.iter().zip([&full.key, &full.value]) {
                write_heads(gpu, pool, data, (&full.shape, page_size), bank * heads..(bank + 1) * heads);
            }
        }
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        if full.keys > 1 {
            cache.extend(Growth { tokens: &[full.keys - 1], steps: 1 }, &mut encoder)?;
            cache.advance().record(&mut encoder);
        }
        gpu.queue().submit([encoder.finish()]);
        debug_assert_eq!(slot, 0);
        let [query, key, value] = [&full.query, &full.new[0], &full.new[1]].map(|data| upload(gpu, data));
        let output = upload(gpu, &vec![0.0; full.query.len()]);
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let new = NewTokens { slots: 0..1, seq_len: 1, key: Rows::new(&key, spec), value: Rows::new(&value, spec), rotation: None };
        let append = cache.append(0, &new)?;
        let problem = full.look(cache.problem(0, 0..1, Queries { num_heads: full.num_heads, seq_len: 1 })?);
        let attention = cache.attention(0, &problem, 0..1, Algorithm::Auto)?.bind(&cache, 0, &QueryBindings::new(&query, &output))?;
        Ok(Self { gpu, cache, append, attention, output })
    }

    pub(super) fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Runs one step, from the host's bookkeeping to the answer on the device, then removes the token again.
    pub(super) fn step(&mut self, full: &Full, wanted: bool) -> Result<(f64, Vec<f32>), Failure> {
        let started = Instant::now();
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        self.cache.extend(Growth { tokens: &[1], steps: 1 }, &mut encoder)?;
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            self.cache.advance().record_in(&mut pass);
            self.append.record_in(&mut pass);
            self.attention.record_in(&mut pass);
        }
        self.gpu.queue().submit([encoder.finish()]);
        wait(self.gpu)?;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        self.cache.truncate(0, full.keys - 1)?;
        Ok((ms, if wanted { read(self.gpu, &self.output)? } else { Vec::new() }))
    }
}

/// Measures the CPU time, in us, to record and submit a layer's append and attention, in 32 layers with a short cache.
pub(super) fn layer_step_us(gpu: &Gpu) -> Result<f64, Failure> {
    const LAYERS: usize = 32;
    const STEPS: usize = 40;
    let shape = CacheShape::uniform(LAYERS, LayerShape::new(8, 32)).pages(4).layout(Layout::Bshd);
    let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: 1, pages_per_slot: 4 })?;
    cache.start()?;
    let [query, output] = [(); 2].map(|()| upload(gpu, &[0.1; 8 * 32]));
    let new = upload(gpu, &[0.5; 8 * 32]);
    let spec = TensorSpec::new(DType::F32, Layout::Bshd);
    let tokens = NewTokens { slots: 0..1, seq_len: 1, key: Rows::new(&new, spec), value: Rows::new(&new, spec), rotation: None };
    let problem = cache.problem(0, 0..1, Queries { num_heads: 8, seq_len: 1 })?.aligned(Alignment::BottomRight).causal();
    let attention = cache.attention(0, &problem, 0..1, Algorithm::Auto)?;
    let bound =
        (0..LAYERS).map(|layer| Ok([cache.append(layer, &tokens)?, attention.bind(&cache, layer, &QueryBindings::new(&query, &output))?]));
    let bound: Vec<[Dispatches; 2]> = bound.collect::<Result<_, Error>>()?;
    let mut least = f64::INFINITY;
    for _ in 0..STEPS {
        let started = Instant::now();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        cache.extend(Growth { tokens: &[1], steps: 1 }, &mut encoder)?;
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            cache.advance().record_in(&mut pass);
            bound.iter().flatten().for_each(|bound| bound.record_in(&mut pass));
        }
        gpu.queue().submit([encoder.finish()]);
        least = least.min(started.elapsed().as_secs_f64());
        wait(gpu)?;
    }
    Ok(least * 1e6 / LAYERS as f64)
}

/// Measures the bandwidth of a buffer-to-buffer copy in GB/s, reads plus writes: the best of several runs.
pub(super) fn copy_gb_s(gpu: &Gpu) -> Result<f64, Failure> {
    let size = (64u64 << 20).min(gpu.device().limits().max_buffer_size) / 4 * 4;
    let usage = BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let (from, to) = (gpu.device().create_buffer(&descriptor), gpu.device().create_buffer(&descriptor));
    let mut least = f64::INFINITY;
    for _ in 0..8 {
        let started = Instant::now();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&from, 0, &to, 0, size);
        gpu.queue().submit([encoder.finish()]);
        wait(gpu)?;
        least = least.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * size as f64 / least / 1e9)
}

/// Writes the heads `some` of `data`, `[tokens, heads, dim]`, as pages that hold only these heads.
fn write_heads(gpu: &Gpu, pool: &wgpu::Buffer, data: &HostVec, (shape, page_size): (&LayerShape, usize), some: std::ops::Range<usize>) {
    const PIECE: usize = 8 << 20;
    let bytes = data.as_slice().bytes();
    let row = data.as_slice().dtype().bytes(shape.head_dim);
    let pages = (bytes.len() / row / shape.num_kv_heads).div_ceil(page_size);
    let (mut piece, mut written) = (Vec::new(), 0);
    for (page, head) in (0..pages).flat_map(|page| some.clone().map(move |head| (page, head))) {
        for token in page * page_size..(page + 1) * page_size {
            let from = (token * shape.num_kv_heads + head) * row;
            match bytes.get(from..from + row) {
                Some(numbers) => piece.extend_from_slice(numbers),
                None => piece.resize(piece.len() + row, 0), // the last page is not full
            }
            if piece.len() >= PIECE {
                gpu.queue().write_buffer(pool, written, &piece);
                written += piece.len() as u64;
                piece.clear();
            }
        }
    }
    gpu.queue().write_buffer(pool, written, &piece);
}

fn upload(gpu: &Gpu, data: &[f32]) -> wgpu::Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
    let size = 4 * data.len() as u64;
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(data));
    buffer
}

/// Waits until the device is idle.
pub(super) fn wait(gpu: &Gpu) -> Result<(), Failure> {
    let waited = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    waited.map(|_| ()).map_err(|error| Failure::Check(error.to_string()))
}

fn read(gpu: &Gpu, buffer: &wgpu::Buffer) -> Result<Vec<f32>, Failure> {
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let size = buffer.size();
    let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
    gpu.queue().submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |_| {}); // get_mapped_range reports failures
    wait(gpu)?;
    let view = staging.get_mapped_range(..).map_err(|error| Failure::Check(error.to_string()))?;
    Ok(bytemuck::pod_collect_to_vec(&view))
}
