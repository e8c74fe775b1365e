//! Cache of one sequence and one layer, in host memory or on a device.

use wgpu_attention::cache::{CacheShape, KvCache, Queries, SequenceId};
use wgpu_attention::gpu::{
    CacheSize, DeviceCache, DeviceNorm, DeviceRotary, Dispatches, Gpu, Growth, NewTokens, QueryBindings, RotatedQuery, Rotation, Rows,
    Tables,
};
use wgpu_attention::layer::Linear;
use wgpu_attention::rotary::{QkNorm, Rotary};
use wgpu_attention::wgpu::{self, BufferUsages};
use wgpu_attention::{Algorithm, Cause, DType, Engine, Error, Inputs, Layout, Problem, Result, TensorSpec};

use super::file::LayerFile;

/// Engine that computes, and where the cache is: on its device, or in host memory.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) device_cache: bool,
}

/// Attention of a layer: what its models differ in between the projections.
pub(crate) struct Attention<'a> {
    /// Shape of a cache of one layer.
    pub(crate) shape: CacheShape,
    pub(crate) num_heads: usize,
    /// Norm of each query and key, before its rotation.
    pub(crate) norm: Option<QkNorm>,
    /// Angles for the first elements of each query and key.
    pub(crate) rotary: Option<Rotary>,
    /// Sink of each head; none if empty.
    pub(crate) sinks: Vec<f32>,
    /// Options of the problem, whose keys are those of the cache.
    pub(crate) options: &'a dyn Fn(Problem) -> Problem,
}

/// Cache of one sequence.
pub(crate) enum Cache<'a> {
    Host { engine: &'a Engine, layer: Attention<'a>, cache: KvCache, id: SequenceId },
    Device { gpu: &'a Gpu, layer: Attention<'a>, cache: Box<DeviceCache>, heads: DeviceHeads, bound: Option<BoundStep> },
}

/// Norm and angles on a device.
pub(crate) struct DeviceHeads {
    norm: Option<DeviceNorm>,
    rotary: Option<DeviceRotary>,
}

/// Step of a number of tokens, bound once and recorded for each step of this kind.
pub(crate) struct BoundStep {
    seq_len: usize,
    /// New queries, keys and values.
    new: [wgpu::Buffer; 3],
    output: wgpu::Buffer,
    append: Dispatches,
    attention: Dispatches,
}

impl<'a> Attention<'a> {
    /// Output of the layer for the hidden states of a file, step by step, with the projections W_Q, W_K, W_V and W_O.
    pub(crate) fn layer(self, place: Place<'a>, file: &LayerFile, [w_q, w_k, w_v, w_o]: [&Linear; 4]) -> Result<Vec<f32>> {
        let mut cache = Cache::new(place, self)?;
        let mut output = Vec::new();
        for hidden in file.steps()? {
            let new = [w_q.forward(hidden)?, w_k.forward(hidden)?, w_v.forward(hidden)?];
            output.extend(w_o.forward(&cache.step(new)?)?);
        }
        Ok(output)
    }

    /// Adds the options of this layer to the problem of a cache. Projections leave heads side by side.
    fn problem(&self, problem: Problem) -> Problem {
        let mut problem = (self.options)(problem);
        problem.sinks = !self.sinks.is_empty();
        (problem.query.layout, problem.output.layout) = (Layout::Bshd, Layout::Bshd);
        problem
    }
}

impl<'a> Cache<'a> {
    pub(crate) fn new(place: Place<'a>, layer: Attention<'a>) -> Result<Self> {
        let (engine, shape) = (place.engine, layer.shape.clone());
        let Some(gpu) = engine.gpu().filter(|_| place.device_cache) else {
            let mut cache = KvCache::new(shape)?;
            let id = cache.pool_mut().start();
            return Ok(Self::Host { engine, layer, cache, id });
        };
        let size = CacheSize { slots: 1, pages_per_slot: shape.pages };
        let mut cache = Box::new(DeviceCache::new(gpu, shape, size)?);
        cache.start()?;
        let norm = layer.norm.as_ref().map(|norm| DeviceNorm::new(gpu, norm)).transpose()?;
        let rotary = layer.rotary.as_ref().map(|rotary| DeviceRotary::new(gpu, rotary)).transpose()?;
        Ok(Self::Device { gpu, layer, cache, heads: DeviceHeads { norm, rotary }, bound: None })
    }

    /// Appends new tokens, and returns the attention of their queries to all tokens: [tokens, num_heads, head_dim_v]. The
    /// rows are as projections leave them, before norm and rotation.
    pub(crate) fn step(&mut self, [mut query, mut key, value]: [Vec<f32>; 3]) -> Result<Vec<f32>> {
        match self {
            Self::Host { engine, layer, cache, id } => {
                let shape = layer.shape.layers[0];
                let seq_len = query.len() / layer.num_heads / shape.head_dim;
                cache.extend(*id, seq_len)?;
                if let Some(norm) = &layer.norm {
                    norm.apply_query(&mut query)?;
                    norm.apply_key(&mut key)?;
                }
                if let Some(rotary) = &layer.rotary {
                    let length = cache.pool().length(*id)?;
                    let positions: Vec<usize> = (length - seq_len..length).collect();
                    rotary.apply_tokens(&mut query, layer.num_heads, shape.head_dim, &positions)?;
                    rotary.apply_tokens(&mut key, shape.num_kv_heads, shape.head_dim, &positions)?;
                }
                cache.append(0, *id, (&key).into(), (&value).into())?;
                let table = cache.pool().table(&[*id])?;
                let problem = layer.problem(cache.problem(0, &table, Queries { num_heads: layer.num_heads, seq_len })?);
                let (key, value) = (cache.key(0)?, cache.value(0)?);
                let inputs = Inputs { kv_lengths: &table.kv_lengths, page_table: &table.entries, ..Inputs::new(&query, key, value) };
                Ok(engine.attention(&problem, &Inputs { sinks: &layer.sinks, ..inputs })?.output.into_f32())
            }
            Self::Device { gpu, layer, cache, heads, bound } => {
                let seq_len = query.len() / layer.num_heads / layer.shape.layers[0].head_dim;
                let bound = match bound.take().filter(|bound| bound.seq_len == seq_len) {
                    Some(old) => bound.insert(old),
                    None => bound.insert(BoundStep::new(gpu, cache, layer, heads, seq_len)?),
                };
                for (buffer, rows) in bound.new.iter().zip([&query, &key, &value]) {
                    gpu.queue().write_buffer(buffer, 0, bytemuck::cast_slice(rows));
                }
                let mut encoder = gpu.device().create_command_encoder(&Default::default());
                cache.extend(Growth { tokens: &[seq_len], steps: 1 }, &mut encoder)?;
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for dispatches in [cache.advance(), &bound.append, &bound.attention] {
                    dispatches.record_in(&mut pass);
                }
                drop(pass);
                read(gpu, encoder, &bound.output)
            }
        }
    }
}

impl BoundStep {
    fn new(gpu: &Gpu, cache: &DeviceCache, layer: &Attention<'_>, heads: &DeviceHeads, seq_len: usize) -> Result<Self> {
        let num_heads = layer.num_heads;
        let problem = layer.problem(cache.problem(0, 0..1, Queries { num_heads, seq_len })?);
        let d = problem.dims;
        let buffer = |heads: usize, dim: usize| filled(gpu, &vec![0; 4 * seq_len * heads * dim]);
        let new = [buffer(d.num_heads, d.head_dim), buffer(d.num_kv_heads, d.head_dim), buffer(d.num_kv_heads, d.head_dim_v)];
        let output = buffer(d.num_heads, d.head_dim_v);
        let spec = TensorSpec::new(DType::F32, Layout::Bshd);
        let tokens = NewTokens {
            slots: 0..1,
            seq_len,
            key: Rows::new(&new[1], spec),
            value: Rows::new(&new[2], spec),
            rotation: (heads.norm.is_some() || heads.rotary.is_some()).then(|| Rotation {
                norm: heads.norm.as_ref(),
                rotary: heads.rotary.as_ref().map(Into::into),
                query: Some(RotatedQuery { rows: Rows::new(&new[0], problem.query), num_heads }),
            }),
        };
        let append = cache.append(0, &tokens)?;
        // The cache has lengths and page table, so only the sinks are in the tables.
        let mut vectors = Problem { paged: None, ..problem.clone() };
        vectors.visibility.kv_lengths = false;
        let tables = (!layer.sinks.is_empty()).then(|| Tables::new(&vectors).sinks(&layer.sinks).bytes()).transpose()?;
        let tables = tables.map(|bytes| filled(gpu, &bytes));
        let tables = tables.as_ref().map(wgpu::Buffer::as_entire_buffer_binding);
        let attention = cache.attention(0, &problem, 0..1, Algorithm::Auto)?;
        let attention = attention.bind(cache, 0, &QueryBindings { tables, ..QueryBindings::new(&new[0], &output) })?;
        Ok(Self { seq_len, new, output, append, attention })
    }
}

/// Creates a buffer with these bytes.
fn filled(gpu: &Gpu, bytes: &[u8]) -> wgpu::Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
    let size = bytes.len() as u64;
    let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    gpu.queue().write_buffer(&buffer, 0, bytes);
    buffer
}

/// Submits, and reads a buffer.
fn read(gpu: &Gpu, mut encoder: wgpu::CommandEncoder, buffer: &wgpu::Buffer) -> Result<Vec<f32>> {
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let size = buffer.size();
    let staging = gpu.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false });
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
    gpu.queue().submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |_| {});
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).map_err(|error| Error::Device { why: Cause::new(error) })?;
    let view = staging.get_mapped_range(..).map_err(|error| Error::Device { why: Cause::new(error) })?;
    Ok(bytemuck::pod_collect_to_vec(&view))
}
