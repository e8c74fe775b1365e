//! Translation of WGSL to SPIR-V as wgpu 30 does it for a trusted shader: no checks, workgroup memory not zeroed.

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};

/// Compute shader with one entry point.
pub(crate) struct Module {
    pub(crate) words: Vec<u32>,
    pub(crate) entry_point: String,
    /// Group, number, and true for a uniform buffer; all others are storage buffers.
    pub(crate) bindings: Vec<(u32, u32, bool)>,
}

/// Reads and validates a shader.
pub(crate) fn parse(wgsl: &str) -> Result<(naga::Module, naga::valid::ModuleInfo), String> {
    let capabilities = naga::valid::Capabilities::all();
    let options = naga::front::wgsl::Options { parse_doc_comments: false, capabilities };
    let module = naga::front::wgsl::Frontend::new_with_options(options).parse(wgsl).map_err(|error| error.emit_to_string(wgsl))?;
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).map_err(|error| error.emit_to_string(wgsl))?;
    Ok((module, info))
}

/// Translates a shader to SPIR-V.
pub(crate) fn compile(wgsl: &str) -> Result<Module, String> {
    let (module, info) = parse(wgsl)?;
    let [entry] = &module.entry_points[..] else {
        return Err(format!("{} entry points, not one", module.entry_points.len()));
    };
    let unchecked = BoundsCheckPolicy::Unchecked;
    let options = spv::Options {
        lang_version: (1, 6),
        flags: spv::WriterFlags::empty(),
        capabilities: None,
        bounds_check_policies: BoundsCheckPolicies { index: unchecked, buffer: unchecked, image_load: unchecked, binding_array: unchecked },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        emit_int_div_checks: false,
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: entry.name.clone() };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline)).map_err(|error| error.to_string())?;
    let binding = |variable: &naga::GlobalVariable| {
        let is_uniform = matches!(variable.space, naga::AddressSpace::Uniform);
        variable.binding.map(|binding| (binding.group, binding.binding, is_uniform))
    };
    let bindings = module.global_variables.iter().filter_map(|(_, variable)| binding(variable)).collect();
    Ok(Module { words, entry_point: entry.name.clone(), bindings })
}
