//! A Vulkan driver as a compiler: pipeline statistics from VK_KHR_pipeline_executable_properties.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};

use ash::{ext, khr, vk};

use crate::spirv::Module;

/// First device of the driver, opened as wgpu 30 opens it.
pub(crate) struct Driver {
    device: ash::Device,
    properties: khr::pipeline_executable_properties::Device,
    /// Name and version of the driver.
    pub(crate) name: String,
    // The libraries and the instance must live as long as the device.
    _instance: ash::Instance,
    _entry: ash::Entry,
}

/// Report of the driver on one pipeline.
pub(crate) struct Compiled {
    /// Statistics, by the driver's own names.
    pub(crate) statistics: BTreeMap<String, f64>,
    /// Intermediate and machine code, by the driver's own names.
    pub(crate) representations: Vec<(String, String)>,
}

fn text(bytes: &[c_char]) -> String {
    let bytes: Vec<u8> = bytes.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Driver {
    /// Opens the device with robust buffer access 2, which wgpu requests even for trusted shaders, or without it.
    pub(crate) fn open(robust: bool) -> Result<Self, String> {
        // SAFETY: the loader is the system's own, and every structure below outlives the call that it is passed to.
        unsafe { Self::open_unchecked(robust) }
    }

    unsafe fn open_unchecked(robust: bool) -> Result<Self, String> {
        // SAFETY: the caller upholds the contract.
        unsafe {
            let entry = ash::Entry::load().map_err(|error| format!("no Vulkan loader: {error}"))?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let instance = entry
                .create_instance(&vk::InstanceCreateInfo::default().application_info(&application), None)
                .map_err(|error| format!("no Vulkan instance: {error}"))?;
            let physical = instance.enumerate_physical_devices().map_err(|error| format!("no Vulkan device: {error}"))?;
            let &physical = physical.first().ok_or("no Vulkan device")?;
            let extensions = instance.enumerate_device_extension_properties(physical).map_err(|error| error.to_string())?;
            let has = |name: &CStr| extensions.iter().any(|extension| text(&extension.extension_name).as_bytes() == name.to_bytes());
            if !has(khr::pipeline_executable_properties::NAME) {
                return Err("the driver has no VK_KHR_pipeline_executable_properties".into());
            }

            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut about = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(physical, &mut about);
            let device_name = text(&about.properties.device_name);
            let name = format!("{}: {} {}", device_name.trim(), text(&driver.driver_name), text(&driver.driver_info));

            let mut features13 = vk::PhysicalDeviceVulkan13Features::default();
            let mut features12 = vk::PhysicalDeviceVulkan12Features::default();
            let mut features11 = vk::PhysicalDeviceVulkan11Features::default();
            let mut features =
                vk::PhysicalDeviceFeatures2::default().push_next(&mut features13).push_next(&mut features12).push_next(&mut features11);
            instance.get_physical_device_features2(physical, &mut features);
            let core = features.features.robust_buffer_access(robust);
            (features11.p_next, features12.p_next, features13.p_next) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
            features13.robust_image_access = vk::FALSE;
            let mut statistics = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default().pipeline_executable_info(true);
            let mut robustness = vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(robust);
            let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
            let mut names = vec![khr::pipeline_executable_properties::NAME.as_ptr()];
            let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
            let mut info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_features(&core)
                .push_next(&mut features13)
                .push_next(&mut features12)
                .push_next(&mut features11)
                .push_next(&mut statistics);
            if has(ext::robustness2::NAME) {
                names.push(ext::robustness2::NAME.as_ptr());
                info = info.push_next(&mut robustness);
            }
            if has(khr::cooperative_matrix::NAME) {
                names.push(khr::cooperative_matrix::NAME.as_ptr());
                info = info.push_next(&mut matrices);
            }
            let info = info.enabled_extension_names(&names);
            let device = instance.create_device(physical, &info, None).map_err(|error| format!("no device: {error}"))?;
            let properties = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Self { device, properties, name, _instance: instance, _entry: entry })
        }
    }

    /// Compiles a shader. Its Vulkan objects live until the end of the process.
    pub(crate) fn compile(&self, module: &Module) -> Result<Compiled, String> {
        // SAFETY: naga wrote the SPIR-V, the layout has its bindings, and every structure outlives the call.
        unsafe {
            let pipeline = self.pipeline(module).map_err(|error| format!("the driver says {error}"))?;
            let info = vk::PipelineInfoKHR::default().pipeline(pipeline);
            let executables = self.properties.get_pipeline_executable_properties(&info).map_err(|error| error.to_string())?;
            let mut compiled = Compiled { statistics: BTreeMap::new(), representations: Vec::new() };
            for index in 0..executables.len() as u32 {
                let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(index);
                let statistics = self.properties.get_pipeline_executable_statistics(&info).map_err(|error| error.to_string())?;
                compiled.statistics.extend(statistics.iter().map(|statistic| (text(&statistic.name), number(statistic))));
                compiled.representations.extend(self.representations(&info).map_err(|error| error.to_string())?);
            }
            Ok(compiled)
        }
    }

    unsafe fn pipeline(&self, module: &Module) -> Result<vk::Pipeline, vk::Result> {
        // SAFETY: the caller upholds the contract.
        unsafe {
            let sets = module.bindings.iter().map(|&(group, ..)| group + 1).max().unwrap_or(0);
            let mut layouts = Vec::new();
            for set in 0..sets {
                let bindings: Vec<_> = module.bindings.iter().filter(|&&(group, ..)| group == set).map(layout_binding).collect();
                let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
                layouts.push(self.device.create_descriptor_set_layout(&info, None)?);
            }
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&layouts);
            let layout = self.device.create_pipeline_layout(&info, None)?;
            let shader = self.device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(&module.words), None)?;
            let entry_point = CString::new(module.entry_point.as_str()).unwrap_or_default(); // WGSL names have no NUL
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(shader)
                .name(&entry_point)
                .flags(vk::PipelineShaderStageCreateFlags::ALLOW_VARYING_SUBGROUP_SIZE); // as wgpu with Features::SUBGROUP
            let capture = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
            let info = vk::ComputePipelineCreateInfo::default().flags(capture).layout(layout).stage(stage);
            let pipelines = self.device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            pipelines.map(|pipelines| pipelines[0]).map_err(|(_, error)| error) // one pipeline was requested
        }
    }

    /// Returns the representations. ash has no wrapper: one call each for the count, the sizes and the texts.
    unsafe fn representations(&self, info: &vk::PipelineExecutableInfoKHR<'_>) -> Result<Vec<(String, String)>, vk::Result> {
        // SAFETY: the caller upholds the contract; each buffer has the length that the driver returned.
        unsafe {
            let ask = self.properties.fp().get_pipeline_executable_internal_representations_khr;
            let handle = self.device.handle();
            let mut count = 0;
            ask(handle, info, &mut count, std::ptr::null_mut()).result()?;
            let mut found = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            ask(handle, info, &mut count, found.as_mut_ptr()).result()?;
            let mut texts: Vec<Vec<u8>> = found.iter().map(|representation| vec![0; representation.data_size]).collect();
            for (representation, text) in found.iter_mut().zip(&mut texts) {
                representation.p_data = text.as_mut_ptr().cast();
            }
            ask(handle, info, &mut count, found.as_mut_ptr()).result()?;
            let name = |representation: &vk::PipelineExecutableInternalRepresentationKHR<'_>| text(&representation.name);
            let body = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
            Ok(found.iter().map(name).zip(texts.iter().map(body)).collect())
        }
    }
}

fn layout_binding(&(_, number, is_uniform): &(u32, u32, bool)) -> vk::DescriptorSetLayoutBinding<'static> {
    let kind = if is_uniform { vk::DescriptorType::UNIFORM_BUFFER_DYNAMIC } else { vk::DescriptorType::STORAGE_BUFFER };
    vk::DescriptorSetLayoutBinding::default()
        .binding(number)
        .descriptor_count(1)
        .descriptor_type(kind)
        .stage_flags(vk::ShaderStageFlags::COMPUTE)
}

fn number(statistic: &vk::PipelineExecutableStatisticKHR<'_>) -> f64 {
    // SAFETY: the format says which field of the union is set.
    unsafe {
        match statistic.format {
            vk::PipelineExecutableStatisticFormatKHR::UINT64 => statistic.value.u64 as f64,
            vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64 as f64,
            vk::PipelineExecutableStatisticFormatKHR::FLOAT64 => statistic.value.f64,
            _ => f64::from(statistic.value.b32),
        }
    }
}
