//! Stack of layers that decodes with a device cache, bound once.

use wgpu_attention::gpu::{DeviceCache, DeviceRotary, Dispatches, Gpu, NewTokens, QueryBindings};
use wgpu_attention::{Algorithm, DType, Layout, Problem, TensorSpec, wgpu};

use super::buffers::{devices, empty};

/// Opens one device per adapter, with all of the adapter's limits.
pub(crate) fn gpus() -> Vec<Gpu> {
    devices(wgpu::Adapter::limits).into_iter().map(|(device, queue)| Gpu::from_device(device, queue)).collect()
}

/// Layer of a stack: its buffers, and the dispatches that are recorded for it.
pub(crate) struct Layer {
    pub(crate) query: wgpu::Buffer,
    pub(crate) key: wgpu::Buffer,
    pub(crate) value: wgpu::Buffer,
    pub(crate) output: wgpu::Buffer,
    pub(crate) append: Dispatches,
    pub(crate) attention: Dispatches,
}

/// All dispatches of a step, bound once.
pub(crate) struct Stack {
    pub(crate) problem: Problem,
    pub(crate) layers: Vec<Layer>,
}

impl Stack {
    pub(crate) fn new(
        gpu: &Gpu,
        cache: &DeviceCache,
        problem: Problem,
        rotary: Option<&DeviceRotary>,
        tables: Option<&wgpu::Buffer>,
    ) -> Self {
        let d = problem.dims;
        let attention = cache.attention(&problem, 0, Algorithm::Auto).expect("planned");
        let layer = |layer: usize| {
            let new = |heads: usize, dim: usize| empty(gpu.device(), d.batch * heads * d.seq_len_q * dim);
            let (query, key, value) = (new(d.num_heads, d.head_dim), new(d.num_kv_heads, d.head_dim), new(d.num_kv_heads, d.head_dim_v));
            let output = new(d.num_heads, d.head_dim_v);
            let tokens = TensorSpec::new(DType::F32, Layout::Bshd);
            let tokens = NewTokens {
                key: key.as_entire_buffer_binding(),
                key_spec: tokens,
                value: value.as_entire_buffer_binding(),
                value_spec: tokens,
                rotary,
                query: rotary.map(|_| (query.as_entire_buffer_binding(), problem.query, d.num_heads)),
            };
            let append = cache.append(layer, 0..d.batch, d.seq_len_q, &tokens).expect("bound");
            let tables = tables.map(wgpu::Buffer::as_entire_buffer_binding);
            let buffers = QueryBindings { tables, ..QueryBindings::new(&query, &output) };
            let attention = attention.bind(cache, layer, &buffers).expect("bound");
            Layer { query, key, value, output, append, attention }
        };
        let layers = (0..cache.size().layers).map(layer).collect();
        Self { problem, layers }
    }

    pub(crate) fn record(&self, cache: &DeviceCache, pass: &mut wgpu::ComputePass<'_>) {
        cache.advance().record_in(pass);
        for layer in &self.layers {
            layer.append.record_in(pass);
            layer.attention.record_in(pass);
        }
    }
}
