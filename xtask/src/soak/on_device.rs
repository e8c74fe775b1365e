//! Cache on a device under test: its step is bound once, and recorded for as long as the soak runs.

use wgpu_attention::cache::{CacheShape, PagePool, Queries};
use wgpu_attention::gpu::{CacheSize, DeviceCache, Dispatches, Gpu, Growth, KeptRows, NewTokens, QueryBindings, Rows};
use wgpu_attention::wgpu;
use wgpu_attention::{Algorithm, DType, HostSlice, HostVec, Layout, Result, TensorSpec};

use super::subject::{Plant, ROWS, Step, Subject, masked, sides};
use crate::buffers::Buffers;

/// Cache on a device.
pub(super) struct OnDevice {
    gpu: Gpu,
    cache: DeviceCache,
    layers: Vec<Layer>,
    plant: Option<Plant>,
}

/// Buffers of a layer, and what is recorded for it.
struct Layer {
    /// Query, key and value of new tokens.
    new: [wgpu::Buffer; 3],
    output: wgpu::Buffer,
    append: Dispatches,
    attention: Dispatches,
}

impl OnDevice {
    pub(super) fn new(gpu: Gpu, shape: CacheShape, size: CacheSize, plant: Option<Plant>) -> Result<Self> {
        let cache = DeviceCache::new(&gpu, shape, size)?;
        let layers = (0..cache.shape().layers.len()).map(|layer| bind(&gpu, &cache, layer)).collect::<Result<_>>()?;
        Ok(Self { gpu, cache, layers, plant })
    }
}

/// Binds the step of a layer.
fn bind(gpu: &Gpu, cache: &DeviceCache, layer: usize) -> Result<Layer> {
    let slots = 0..cache.size().slots;
    let [query, key, value] = sides(&cache.shape().layers[layer]);
    let buffer = |(heads, dim): (usize, usize)| Buffers(gpu).empty(4 * slots.len() * ROWS * heads * dim);
    let (new, output) = ([query, key, value].map(buffer), buffer((query.0, value.1)));
    let spec = TensorSpec::new(DType::F32, Layout::Bshd);
    let mut problem = masked(cache.problem(layer, slots.clone(), Queries { num_heads: query.0, seq_len: ROWS })?);
    (problem.query, problem.output) = (spec, spec);
    let attention = cache.attention(layer, &problem, slots.clone(), Algorithm::Auto)?;
    let attention = attention.bind(cache, layer, &QueryBindings::new(&new[0], &output))?;
    let tokens = NewTokens { slots, seq_len: ROWS, key: Rows::new(&new[1], spec), value: Rows::new(&new[2], spec), rotation: None };
    let append = cache.append(layer, &tokens)?;
    Ok(Layer { new, output, append, attention })
}

impl Subject for OnDevice {
    fn pool(&self) -> &PagePool {
        self.cache.pool()
    }

    fn length(&self, slot: usize) -> Result<usize> {
        self.cache.length(slot)
    }

    fn pages(&self, slot: usize) -> Result<&[u32]> {
        self.cache.pages(slot)
    }

    fn most_steps(&self) -> usize {
        3
    }

    fn start(&mut self) -> Result<usize> {
        self.cache.start()
    }

    fn fork(&mut self, slot: usize, prefix: usize) -> Result<usize> {
        self.cache.fork(slot, prefix)
    }

    fn end(&mut self, slot: usize) -> Result<()> {
        self.cache.free(slot).map(|_| ())
    }

    fn truncate(&mut self, slot: usize, length: usize) -> Result<()> {
        self.cache.truncate(slot, length).map(|_| ())
    }

    fn keep(&mut self, kept: KeptRows<'_>) -> Result<()> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.cache.keep(&[kept], &mut encoder)?;
        self.gpu.queue().submit([encoder.finish()]);
        Ok(())
    }

    fn extend(&mut self, tokens: &[usize], steps: usize) -> Result<()> {
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        self.cache.extend(Growth { tokens, steps }, &mut encoder)?;
        if self.plant != Some(Plant::Uncopied) {
            self.gpu.queue().submit([encoder.finish()]);
        }
        Ok(())
    }

    fn step(&mut self, step: &Step<'_>, attends: bool) -> Result<Vec<Vec<f32>>> {
        for (layer, rows) in self.layers.iter().zip(step.rows) {
            for (buffer, rows) in layer.new.iter().zip(rows) {
                self.gpu.queue().write_buffer(buffer, 0, HostSlice::F32(rows).bytes());
            }
        }
        let mut encoder = self.gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        {
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            self.cache.advance().record_in(&mut pass);
            for layer in &self.layers {
                layer.append.record_in(&mut pass);
                if attends {
                    layer.attention.record_in(&mut pass);
                }
            }
        }
        self.gpu.queue().submit([encoder.finish()]);
        let outputs = self.layers.iter().map(|layer| &layer.output).filter(|_| attends);
        Ok(outputs.map(|output| Buffers(&self.gpu).read(output, DType::F32, output.size() as usize / 4).into_f32()).collect())
    }

    fn stored(&self, layer: usize) -> Result<[HostVec; 2]> {
        let shape = &self.cache.shape().layers[layer];
        let tokens = self.cache.shape().pages * self.cache.shape().page_size * shape.num_kv_heads;
        let [key, value] = &self.cache.pools(layer)?[0];
        let read = |buffer, dtype, dim| Buffers(&self.gpu).read(buffer, dtype, tokens * dim);
        Ok([read(key, shape.key, shape.head_dim), read(value, shape.value, shape.head_dim_v)])
    }
}
