//! Decoding steps with a cache on a device.

use std::time::Instant;

use wgpu_attention::cache::{CacheShape, LayerShape, Queries};
use wgpu_attention::gpu::{CacheSize, DeviceCache, Dispatches, Gpu, Growth, NewTokens, QueryBindings, Rows};
use wgpu_attention::wgpu::{self, BufferUsages};
use wgpu_attention::{Algorithm, Alignment, DType, Error, HostVec, Layout, TensorSpec};

use super::decode::{Full, Kind, Step};
use crate::failure::Failure;

/// Fills the cache of one layer, all but the new tokens, and binds a step that appends them. Returns the step with the
/// bytes of the cache.
pub(super) fn step<'a>(gpu: &'a Gpu, full: &'a Full, Kind { has_tree, .. }: Kind, page_size: usize) -> Result<(Step<'a>, u64), Error> {
    // Bhsd keeps the keys of a head contiguous; other layouts jump between memory pages of the machine.
    let pages = full.keys.div_ceil(page_size);
    let shape = CacheShape::uniform(1, full.shape).page_size(page_size).pages(pages).layout(Layout::Bhsd);
    let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: 1, pages_per_slot: pages })?;
    let slot = cache.start()?;
    debug_assert_eq!(slot, 0);
    // Pages are allocated in order, so the pool holds the sequence contiguously.
    for (bank, pools) in cache.pools(0)?.iter().enumerate() {
        let heads = full.shape.num_kv_heads / cache.pools(0)?.len();
        for (pool, data) in pools.iter().zip([&full.key, &full.value]) {
            write_heads(gpu, pool, data, (&full.shape, page_size), bank * heads..(bank + 1) * heads);
        }
    }
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    let before = full.keys - full.rows;
    if before > 0 {
        cache.extend(Growth { tokens: &[before], steps: 1 }, &mut encoder)?;
        cache.advance().record(&mut encoder);
    }
    gpu.queue().submit([encoder.finish()]);
    let [query, key, value] = [&full.query, &full.new[0], &full.new[1]].map(|data| upload(gpu, data));
    let output = upload(gpu, &vec![0.0; full.query.len()]);
    let append = cache.append(0, &new_tokens(full.rows, &key, &value))?;
    let problem = full.look(cache.problem(0, 0..1, Queries { num_heads: full.num_heads, seq_len: full.rows })?, has_tree)?;
    let words: Vec<f32> = full.words(has_tree)?.into_iter().map(f32::from_bits).collect();
    let tables = has_tree.then(|| upload(gpu, &words));
    let tables = tables.as_ref().map(wgpu::Buffer::as_entire_buffer_binding);
    let buffers = QueryBindings { tables, ..QueryBindings::new(&query, &output) };
    let attention = cache.attention(0, &problem, 0..1, Algorithm::Auto)?.bind(&cache, 0, &buffers)?;
    let bytes = cache.bytes();
    // A step goes from the host's bookkeeping to the answer on the device; then the new tokens are removed again.
    let step = move |wanted| {
        let seconds = shortest(gpu, 1, Until::Idle, |encoder| record_step(&mut cache, full.rows, encoder, &[&append, &attention]))?;
        cache.truncate(0, before)?;
        Ok((seconds * 1e3, if wanted { read(gpu, &output)? } else { Vec::new() }))
    };
    Ok((Box::new(step), bytes))
}

fn record_step(cache: &mut DeviceCache, rows: usize, encoder: &mut wgpu::CommandEncoder, layers: &[&Dispatches]) -> Result<(), Error> {
    cache.extend(Growth { tokens: &[rows], steps: 1 }, encoder)?;
    let mut pass = encoder.begin_compute_pass(&Default::default());
    cache.advance().record_in(&mut pass);
    layers.iter().for_each(|dispatches| dispatches.record_in(&mut pass));
    Ok(())
}

/// End of a measurement.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Until {
    /// Commands are submitted.
    Submitted,
    /// The device is idle again.
    Idle,
}

/// Returns the shortest time, in seconds, of several rounds from the creation of the encoder on.
pub(super) fn shortest(
    gpu: &Gpu,
    rounds: usize,
    until: Until,
    mut record: impl FnMut(&mut wgpu::CommandEncoder) -> Result<(), Error>,
) -> Result<f64, Failure> {
    let mut shortest = f64::INFINITY;
    for _ in 0..rounds {
        let started = Instant::now();
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        record(&mut encoder)?;
        gpu.queue().submit([encoder.finish()]);
        let submitted = started.elapsed();
        let waited = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|error| Failure::Check(error.to_string()))?;
        let time = if until == Until::Idle { started.elapsed() } else { submitted };
        shortest = shortest.min(time.as_secs_f64());
    }
    Ok(shortest)
}

/// Keys and values of new tokens, as they are.
fn new_tokens<'a>(rows: usize, key: &'a wgpu::Buffer, value: &'a wgpu::Buffer) -> NewTokens<'a> {
    let spec = TensorSpec::new(DType::F32, Layout::Bshd);
    NewTokens { slots: 0..1, seq_len: rows, key: Rows::new(key, spec), value: Rows::new(value, spec), rotation: None }
}

/// Measures the CPU time, in us, to record and submit a layer's append and attention, in 32 layers with a short cache.
pub(super) fn layer_step_us(gpu: &Gpu) -> Result<f64, Failure> {
    const LAYERS: usize = 32;
    let shape = CacheShape::uniform(LAYERS, LayerShape::new(8, 32)).pages(4).layout(Layout::Bshd);
    let mut cache = DeviceCache::new(gpu, shape, CacheSize { slots: 1, pages_per_slot: 4 })?;
    cache.start()?;
    let [query, output] = [(); 2].map(|()| upload(gpu, &[0.1; 8 * 32]));
    let new = upload(gpu, &[0.5; 8 * 32]);
    let tokens = new_tokens(1, &new, &new);
    let problem = cache.problem(0, 0..1, Queries { num_heads: 8, seq_len: 1 })?.aligned(Alignment::BottomRight).causal();
    let attention = cache.attention(0, &problem, 0..1, Algorithm::Auto)?;
    let bound =
        (0..LAYERS).map(|layer| Ok([cache.append(layer, &tokens)?, attention.bind(&cache, layer, &QueryBindings::new(&query, &output))?]));
    let bound: Vec<[Dispatches; 2]> = bound.collect::<Result<_, Error>>()?;
    let layers: Vec<&Dispatches> = bound.iter().flatten().collect();
    let seconds = shortest(gpu, 40, Until::Submitted, |encoder| record_step(&mut cache, 1, encoder, &layers))?;
    Ok(seconds * 1e6 / LAYERS as f64)
}

/// Measures the bandwidth of a buffer-to-buffer copy in GB/s, reads plus writes: the best of several runs.
pub(super) fn copy_gb_s(gpu: &Gpu) -> Result<f64, Failure> {
    let size = (64u64 << 20).min(gpu.device().limits().max_buffer_size) / 4 * 4;
    let [from, to] = [BufferUsages::COPY_SRC, BufferUsages::COPY_DST].map(|usage| buffer(gpu, size, usage));
    let copy = |encoder: &mut wgpu::CommandEncoder| {
        encoder.copy_buffer_to_buffer(&from, 0, &to, 0, size);
        Ok(())
    };
    Ok(2.0 * size as f64 / shortest(gpu, 8, Until::Idle, copy)? / 1e9)
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

/// Makes a buffer without contents.
pub(super) fn buffer(gpu: &Gpu, size: u64, usage: BufferUsages) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
}

fn upload(gpu: &Gpu, data: &[f32]) -> wgpu::Buffer {
    let buffer = buffer(gpu, 4 * data.len() as u64, BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC);
    gpu.queue().write_buffer(&buffer, 0, bytemuck::cast_slice(data));
    buffer
}

fn read(gpu: &Gpu, from: &wgpu::Buffer) -> Result<Vec<f32>, Failure> {
    let staging = buffer(gpu, from.size(), BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    shortest(gpu, 1, Until::Idle, |encoder| {
        encoder.copy_buffer_to_buffer(from, 0, &staging, 0, from.size());
        encoder.map_buffer_on_submit(&staging, wgpu::MapMode::Read, .., |_| {}); // get_mapped_range reports failures
        Ok(())
    })?;
    let view = staging.get_mapped_range(..).map_err(|error| Failure::Check(error.to_string()))?;
    Ok(bytemuck::pod_collect_to_vec(&view))
}
