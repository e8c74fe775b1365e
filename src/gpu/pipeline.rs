//! Pipelines: compilation of kernel variants.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::clock::timed;
use super::loss::{Later, Scopes};
use crate::error::{Error, Result};
use crate::plan::DeviceCaps;
use crate::wgsl::{
    Access, CacheKey, CacheParams, KernelKey, LinearKey, LinearParams, Params, Source, compose, compose_cache, compose_linear,
    compose_transpose,
};

/// Compiled kernel.
#[derive(Debug)]
pub(super) struct Pipeline {
    /// Name of the kernel, which labels its dispatches.
    pub(super) name: String,
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Number, name and access of each binding, params first.
    pub(super) bindings: Vec<(u32, String, Access)>,
    /// Time of its first dispatch, once it has run.
    pub(super) first_run: Arc<OnceLock<Duration>>,
}

/// Key under which a pipeline is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum PipelineKey {
    Attention(KernelKey),
    Linear(LinearKey),
    Cache(CacheKey),
    Transpose,
}

impl PipelineKey {
    fn name(&self) -> String {
        match self {
            Self::Attention(key) => key.kernel.to_string(),
            Self::Linear(_) => "linear".into(),
            Self::Cache(key) => key.to_string(),
            Self::Transpose => "transpose".into(),
        }
    }

    pub(super) fn source(&self) -> Source {
        match self {
            Self::Attention(key) => compose(key),
            Self::Linear(key) => compose_linear(*key),
            Self::Cache(key) => compose_cache(*key),
            Self::Transpose => compose_transpose(),
        }
    }

    fn bindings(&self) -> Vec<(u32, String, Access)> {
        let named = |names: &[(&str, Access)]| (0..).zip(names).map(|(number, &(name, access))| (number, name.into(), access)).collect();
        match self {
            Self::Attention(key) => key.bindings().into_iter().map(|(slot, access)| (slot as u32, format!("{slot:?}"), access)).collect(),
            Self::Cache(key) => key.bindings().into_iter().map(|(slot, access)| (slot as u32, format!("{slot:?}"), access)).collect(),
            Self::Linear(key) => {
                let all =
                    [("params", Access::Uniform), ("x", Access::Read), ("w", Access::Read), ("y", Access::ReadWrite), ("b", Access::Read)];
                named(&all[..if key.bias { 5 } else { 4 }])
            }
            Self::Transpose => named(&[("params", Access::Uniform), ("x", Access::Read), ("y", Access::ReadWrite)]),
        }
    }

    const fn params_bytes(&self) -> u64 {
        let bytes = match self {
            Self::Attention(_) => size_of::<Params>(),
            Self::Cache(_) => size_of::<CacheParams>(),
            Self::Linear(_) | Self::Transpose => size_of::<LinearParams>(),
        };
        bytes as u64
    }
}

/// Compiles a kernel from `source`, with every runtime check if it is to be `checked`. Also returns the times to parse it
/// and to create the pipeline, and the verdict on it.
///
/// On a lost device, the pipeline does nothing and no error is found.
pub(super) fn compile(
    device: &wgpu::Device,
    caps: &DeviceCaps,
    checked: bool,
    key: &PipelineKey,
    source: Source,
    cache: Option<&wgpu::PipelineCache>,
) -> (Pipeline, [Duration; 2], Later<Result<()>>) {
    let name = key.name();
    let bindings = key.bindings();
    let source = source.with_constant_switches();
    // In a storage buffer, the params count against the limit on storage buffers.
    let params_in_storage = caps.params_in_storage && bindings.len() <= caps.storage_buffers as usize;
    let source = if params_in_storage { source.with_params_in_storage() } else { source };
    // Browsers take standard WGSL, and have no cooperative matrices that the planner could choose.
    let source = if cfg!(target_family = "wasm") { source.standard().unwrap_or(source) } else { source };
    let scopes = Scopes::open(device);
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(&name), source: wgpu::ShaderSource::Wgsl(source.text.as_str().into()) };
    let checks = if checked { wgpu::ShaderRuntimeChecks::checked() } else { wgpu::ShaderRuntimeChecks::unchecked() };
    // SAFETY: the project's own shaders. Every index into a buffer is below the tensor's extent, which the planner and `bind`
    // compare with the buffer: rows and keys are tested against the item's lengths, head_dim tails against HEAD_DIM; cu_seqlens
    // and kv_lengths are checked on the host or promised by the caller of `record`, and the driver's own robustness stays on.
    // Every loop ends: bounds are constants or lengths. The suite runs the same kernels with all checks on too.
    let (module, parse) = timed(|| unsafe { device.create_shader_module_trusted(descriptor, checks) });
    let entries: Vec<_> =
        bindings.iter().map(|&(binding, _, access)| layout_entry(binding, access, key.params_bytes(), params_in_storage)).collect();
    let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&name), entries: &entries });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(&name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: 0,
    });
    let descriptor = wgpu::ComputePipelineDescriptor {
        label: Some(&name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions { zero_initialize_workgroup_memory: checked, ..Default::default() },
        cache,
    };
    let (pipeline, create) = timed(|| device.create_compute_pipeline(&descriptor));

    let (error, label, times) = (scopes.close(), name.clone(), [parse, create]);
    let verdict = async move {
        if let Some(error) = error.await {
            let messages = module.get_compilation_info().await.messages;
            let place =
                messages.iter().find_map(|message| message.location.as_ref()).map(|location| source.locate(location.line_number as usize));
            return Err(Error::Shader { at: place.unwrap_or(label), why: error.to_string() });
        }
        log::debug!("compiled {label} in {:.1} ms", (parse + create).as_secs_f64() * 1e3);
        Ok(())
    };
    (Pipeline { name, pipeline, layout, bindings, first_run: Arc::default() }, times, Box::pin(verdict))
}

fn layout_entry(binding: u32, access: Access, params_bytes: u64, params_in_storage: bool) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Access::Uniform if !params_in_storage => wgpu::BufferBindingType::Uniform,
        _ => wgpu::BufferBindingType::Storage { read_only: access != Access::ReadWrite },
    };
    let has_dynamic_offset = access == Access::Uniform;
    let min_binding_size = if has_dynamic_offset { wgpu::BufferSize::new(params_bytes) } else { None };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size },
        count: None,
    }
}
