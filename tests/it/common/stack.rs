//! Stack of layers that decodes with a device cache, bound once.

use wgpu_attention::cache::Queries;
use wgpu_attention::gpu::{DeviceCache, DeviceNorm, DeviceRotary, Dispatches, Gpu, NewTokens, QueryBindings, RotatedQuery, Rotation, Rows};
use wgpu_attention::{Algorithm, DType, Layout, Problem, TensorSpec, wgpu};

use super::buffers::{devices, empty, upload};

/// Opens one device per adapter, with all of the adapter's limits.
pub(crate) fn gpus() -> Vec<Gpu> {
    devices(wgpu::Adapter::limits).into_iter().map(|(device, queue)| Gpu::from_device(device, queue)).collect()
}

/// Layer of a stack: its buffers, and the dispatches that are recorded for it.
pub(crate) struct Layer {
    pub(crate) problem: Problem,
    pub(crate) query: wgpu::Buffer,
    pub(crate) key: wgpu::Buffer,
    pub(crate) value: wgpu::Buffer,
    pub(crate) output: wgpu::Buffer,
    /// Written if the problem wants key sums.
    pub(crate) key_sums: wgpu::Buffer,
    pub(crate) append: Dispatches,
    pub(crate) attention: Dispatches,
}

/// All dispatches of a step, bound once.
pub(crate) struct Stack {
    pub(crate) layers: Vec<Layer>,
}

impl Stack {
    /// Binds a step of every slot. `change` sets the options of each layer's problem; norms are those of the layers, or none.
    pub(crate) fn new(
        gpu: &Gpu,
        cache: &DeviceCache,
        queries: Queries,
        change: impl Fn(Problem) -> Problem,
        (norms, rotary): (&[DeviceNorm], Option<&DeviceRotary>),
        tables: Option<&wgpu::Buffer>,
    ) -> Self {
        let slots = 0..cache.size().slots;
        let layer = |layer: usize| {
            let problem = change(cache.problem(layer, slots.clone(), queries).expect("a layer"));
            let d = problem.dims;
            let attention = cache.attention(layer, &problem, slots.clone(), Algorithm::Auto).expect("planned");
            let new = |heads: usize, dim: usize| empty(gpu.device(), d.batch * heads * d.seq_len_q * dim);
            let (query, key, value) = (new(d.num_heads, d.head_dim), new(d.num_kv_heads, d.head_dim), new(d.num_kv_heads, d.head_dim_v));
            let output = new(d.num_heads, d.head_dim_v);
            let spec = TensorSpec::new(DType::F32, Layout::Bshd);
            let tokens = NewTokens {
                slots: slots.clone(),
                seq_len: d.seq_len_q,
                key: Rows::new(&key, spec),
                value: Rows::new(&value, spec),
                rotation: (rotary.is_some() || !norms.is_empty()).then(|| Rotation {
                    norm: norms.get(layer),
                    rotary: rotary.map(Into::into),
                    query: Some(RotatedQuery { rows: Rows::new(&query, problem.query), num_heads: d.num_heads }),
                }),
            };
            let append = cache.append(layer, &tokens).expect("bound");
            let tables = tables.map(wgpu::Buffer::as_entire_buffer_binding);
            let sums = upload(gpu.device(), gpu.queue(), &vec![f32::NAN; problem.key_sums_len()]);
            let key_sums = problem.want.key_sums.map(|_| sums.as_entire_buffer_binding());
            let buffers = QueryBindings { tables, key_sums, ..QueryBindings::new(&query, &output) };
            let attention = attention.bind(cache, layer, &buffers).expect("bound");
            Layer { problem, query, key, value, output, key_sums: sums, append, attention }
        };
        Self { layers: (0..cache.shape().layers.len()).map(layer).collect() }
    }

    pub(crate) fn record(&self, cache: &DeviceCache, pass: &mut wgpu::ComputePass<'_>) {
        cache.advance().record_in(pass);
        for layer in &self.layers {
            layer.append.record_in(pass);
            layer.attention.record_in(pass);
        }
    }
}
