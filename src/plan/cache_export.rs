//! Dispatches of cache kernels as plain data.

use super::cache_step::CacheStep;
use super::export::{BindingExport, BufferExport, DispatchExport, KernelExport, PlanExport, RequiredExport};
use super::shader::Shader;
use super::tensor::TensorExport;
use crate::wgsl::{Access, CacheKey};

impl PlanExport {
    /// Describes dispatches of cache kernels, each with the tensors of its storage bindings in the order of their numbers.
    pub(crate) fn of_cache_steps(steps: &[(CacheStep, Vec<TensorExport>)]) -> Self {
        let mut keys: Vec<CacheKey> = Vec::new();
        let (mut tensors, mut dispatches, mut names) = (Vec::<TensorExport>::new(), Vec::new(), Vec::new());
        for (step, bound) in steps {
            if !keys.contains(&step.key) {
                keys.push(step.key);
            }
            let binding =
                |number, access: Access, buffer| BindingExport { binding: number, kind: access.kind(), buffer, offset: 0, size: None };
            let mut bindings = vec![binding(0, Access::Uniform, BufferExport::Params)];
            for ((slot, access), tensor) in step.key.bindings().into_iter().skip(1).zip(bound) {
                bindings.push(binding(slot as u32, access, BufferExport::Tensor(tensor.name)));
                if tensors.iter().all(|other| other.name != tensor.name) {
                    tensors.push(TensorExport { written: access == Access::ReadWrite, ..tensor.clone() });
                }
            }
            let kernel = keys.iter().position(|&key| key == step.key).expect("each key is listed");
            let ([x, y], params) = (step.grid, bytemuck::bytes_of(&step.params).to_vec());
            let flops = f64::from(step.params.workgroups) * f64::from(CacheKey::THREADS);
            dispatches.push(DispatchExport { kernel, grid: [x, y, 1], params, bindings, flops });
            names.push(format!("{} in {x}x{y} workgroups", step.key));
        }
        tensors.sort_by_key(|tensor| tensor.written);
        let shaders: Vec<Shader> = keys.into_iter().map(Shader::of_cache).collect();
        let mut export = Self {
            version: Self::VERSION,
            summary: names.join("; "),
            options: Vec::new(),
            requires: RequiredExport::default(),
            tensors,
            scratch: Vec::new(),
            kernels: shaders.iter().map(KernelExport::from).collect(),
            dispatches,
        };
        export.require(&shaders, None);
        export
    }
}
