//! Pipelines, made once for each kernel variant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Gpu;
use crate::shader::{
    Access, CacheKey, CacheParams, CacheSlot, KernelKey, LinearKey, LinearParams, Params, Slot, Source, compose, compose_cache,
    compose_linear, compose_transpose,
};
use crate::{Error, Result};

/// A compiled kernel.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
}

/// What pipelines are kept by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PipelineKey {
    Attention(KernelKey),
    Linear(LinearKey),
    Cache(CacheKey),
    Transpose,
}

#[derive(Default)]
pub(super) struct PipelineCache(Mutex<HashMap<PipelineKey, Arc<Pipeline>>>);

impl PipelineCache {
    /// The pipeline of `key`, compiled now if it was not before.
    pub(super) fn get(&self, gpu: &Gpu, key: PipelineKey) -> Result<Arc<Pipeline>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = lock().get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(compile(gpu, &key)?);
        Ok(Arc::clone(lock().entry(key).or_insert(pipeline)))
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl PipelineKey {
    fn label(&self) -> String {
        match self {
            Self::Attention(key) => format!("{:?}", key.kernel),
            Self::Linear(_) => "linear".into(),
            Self::Cache(key) => key.to_string(),
            Self::Transpose => "transpose".into(),
        }
    }

    fn source(&self) -> Source {
        match self {
            Self::Attention(key) => compose(key),
            Self::Linear(key) => compose_linear(*key),
            Self::Cache(key) => compose_cache(*key),
            Self::Transpose => compose_transpose(),
        }
    }

    fn layout_entries(&self) -> Vec<wgpu::BindGroupLayoutEntry> {
        match self {
            Self::Attention(key) => {
                let entry = |(slot, access): (Slot, Access)| layout_entry(slot as u32, access, size_of::<Params>());
                key.bindings().into_iter().map(entry).collect()
            }
            Self::Cache(key) => {
                let entry = |(slot, access): (CacheSlot, Access)| layout_entry(slot as u32, access, size_of::<CacheParams>());
                key.bindings().into_iter().map(entry).collect()
            }
            Self::Linear(key) => {
                let accesses = [Access::Uniform, Access::Read, Access::Read, Access::ReadWrite, Access::Read];
                let entry = |(number, &access)| layout_entry(number as u32, access, size_of::<LinearParams>());
                accesses[..if key.bias { 5 } else { 4 }].iter().enumerate().map(entry).collect()
            }
            Self::Transpose => {
                let entry = |(number, access)| layout_entry(number, access, size_of::<LinearParams>());
                [(0, Access::Uniform), (1, Access::Read), (2, Access::ReadWrite)].map(entry).to_vec()
            }
        }
    }
}

fn compile(gpu: &Gpu, key: &PipelineKey) -> Result<Pipeline> {
    let device = gpu.device();
    let started = std::time::Instant::now();
    let label = key.label();
    let source = key.source();
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);

    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&label), source: wgpu::ShaderSource::Wgsl(source.text.as_str().into()) };
    let checks = if gpu.is_checked() { wgpu::ShaderRuntimeChecks::checked() } else { wgpu::ShaderRuntimeChecks::unchecked() };
    // SAFETY: the project's own shaders. Every index into a buffer is below the tensor's extent, which the planner and `bind`
    // compare with the buffer: rows and keys are tested against the item's lengths, head_dim tails against HEAD_DIM; cu_seqlens
    // and kv_lengths are checked on the host or promised by the caller of `record`, and the driver's own robustness stays on.
    // Every loop ends: bounds are constants or lengths. The suite runs the same kernels with all checks on too.
    let module = unsafe { device.create_shader_module_trusted(descriptor, checks) };
    let entries = key.layout_entries();
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(&label),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(&label),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions { zero_initialize_workgroup_memory: gpu.is_checked(), ..Default::default() },
        cache: None,
    });

    let errors = [pollster::block_on(internal.pop()), pollster::block_on(validation.pop())];
    if let Some(error) = errors.into_iter().flatten().next() {
        let messages = pollster::block_on(module.get_compilation_info()).messages;
        let place =
            messages.iter().find_map(|message| message.location.as_ref()).map(|location| source.locate(location.line_number as usize));
        return Err(Error::Shader { at: place.unwrap_or(label), why: error.to_string() });
    }
    log::debug!("compiled {key:?} in {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    Ok(Pipeline { pipeline, layout })
}

fn layout_entry(binding: u32, access: Access, uniform_bytes: usize) -> wgpu::BindGroupLayoutEntry {
    let (ty, has_dynamic_offset, min_binding_size) = match access {
        Access::Uniform => (wgpu::BufferBindingType::Uniform, true, wgpu::BufferSize::new(uniform_bytes as u64)),
        Access::Read => (wgpu::BufferBindingType::Storage { read_only: true }, false, None),
        Access::ReadWrite => (wgpu::BufferBindingType::Storage { read_only: false }, false, None),
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size },
        count: None,
    }
}
