//! Host that runs exported plans by wgpu alone, as docs/export.md says.

use std::collections::HashMap;

use wgpu_attention::plan::{BindingExport, BufferExport, PlanExport};
use wgpu_attention::wgpu::{self, BufferUsages};

/// Buffers that a plan binds, by the names of its tensors.
pub(crate) type Named<'a> = [(&'static str, &'a wgpu::Buffer)];

/// Device that runs plans. Pipelines are kept by the text of their kernels.
pub(crate) struct PlanHost {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pipelines: HashMap<String, (wgpu::ComputePipeline, wgpu::BindGroupLayout)>,
}

/// Plan bound to buffers.
pub(crate) struct BoundPlan {
    dispatches: Vec<(wgpu::ComputePipeline, wgpu::BindGroup, [u32; 3])>,
}

impl PlanHost {
    pub(crate) fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        Self { device: device.clone(), queue: queue.clone(), pipelines: HashMap::new() }
    }

    pub(crate) fn buffer(&self, size: u64, usage: BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// Creates a buffer for a tensor, as large as the plan says.
    pub(crate) fn tensor(&self, plan: &PlanExport, name: &str) -> wgpu::Buffer {
        let tensor = plan.tensors.iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{}: no {name}", plan.summary));
        self.buffer(tensor.bytes.next_multiple_of(4), BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC)
    }

    /// Creates a buffer for a tensor with these first bytes.
    pub(crate) fn filled(&self, plan: &PlanExport, name: &str, bytes: &[u8]) -> wgpu::Buffer {
        let buffer = self.tensor(plan, name);
        self.queue.write_buffer(&buffer, 0, bytes);
        buffer
    }

    /// Binds exactly the tensors of the plan.
    pub(crate) fn bind(&mut self, plan: &PlanExport, given: &Named<'_>) -> BoundPlan {
        for tensor in &plan.tensors {
            let buffer = given.iter().find(|(name, _)| *name == tensor.name).unwrap_or_else(|| panic!("{} is not given", tensor.name)).1;
            assert!(buffer.size() >= tensor.bytes, "{}: {} has {} bytes, not {}", plan.summary, tensor.name, buffer.size(), tensor.bytes);
        }
        let scratch: Vec<_> = plan.scratch.iter().map(|&bytes| self.buffer(bytes, BufferUsages::STORAGE)).collect();
        let mut bound = BoundPlan { dispatches: Vec::new() };
        for dispatch in &plan.dispatches {
            let params = self.buffer(dispatch.params.len() as u64, BufferUsages::UNIFORM | BufferUsages::COPY_DST);
            self.queue.write_buffer(&params, 0, &dispatch.params);
            let (pipeline, layout) = self.pipeline(&plan.kernels[dispatch.kernel].text, &dispatch.bindings);
            let entry = |binding: &BindingExport| {
                let buffer = match binding.buffer {
                    BufferExport::Params => &params,
                    BufferExport::Scratch(index) => &scratch[index],
                    BufferExport::Tensor(name) => given.iter().find(|(given, _)| *given == name).expect("given").1,
                };
                let size = binding.size.map(|size| size.min(buffer.size() - binding.offset));
                let resource = wgpu::BufferBinding { buffer, offset: binding.offset, size: size.and_then(wgpu::BufferSize::new) };
                wgpu::BindGroupEntry { binding: binding.binding, resource: wgpu::BindingResource::Buffer(resource) }
            };
            let entries: Vec<_> = dispatch.bindings.iter().map(entry).collect();
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
            bound.dispatches.push((pipeline, self.device.create_bind_group(&descriptor), dispatch.grid));
        }
        bound
    }

    fn pipeline(&mut self, text: &str, bindings: &[BindingExport]) -> (wgpu::ComputePipeline, wgpu::BindGroupLayout) {
        let device = &self.device;
        let compile = || {
            let source = wgpu::ShaderSource::Wgsl(text.into());
            let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
            let entry = |binding: &BindingExport| {
                let ty = match binding.kind {
                    "uniform" => wgpu::BufferBindingType::Uniform,
                    "storage" => wgpu::BufferBindingType::Storage { read_only: false },
                    _ => wgpu::BufferBindingType::Storage { read_only: true },
                };
                wgpu::BindGroupLayoutEntry {
                    binding: binding.binding,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                    count: None,
                }
            };
            let entries: Vec<_> = bindings.iter().map(entry).collect();
            let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
            let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: None,
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions { zero_initialize_workgroup_memory: false, ..Default::default() },
                cache: None,
            });
            (pipeline, layout)
        };
        self.pipelines.entry(text.to_string()).or_insert_with(compile).clone()
    }
}

impl BoundPlan {
    pub(crate) fn record_in(&self, pass: &mut wgpu::ComputePass<'_>) {
        for (pipeline, group, [x, y, z]) in &self.dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*x, *y, *z);
        }
    }
}
