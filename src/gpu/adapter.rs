//! Adapters: listing and selection.

use std::fmt;

use crate::error::{Error, Result};
use crate::plan::{DeviceCaps, DeviceClass, Specialise};
use crate::problem::Backend;

/// Description of an adapter, before a device is made of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterReport {
    /// Name of the adapter. Browsers may hide it until a device is opened.
    pub name: String,
    /// Backend of wgpu: `vulkan`, `metal`, `dx12`, `gl`, `webgpu`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// Capabilities that the planner would work with.
    pub caps: DeviceCaps,
    /// Features that matter here, by their wgpu names.
    pub features: Vec<&'static str>,
    /// Reason why [`Backend::Auto`] would or would not use the adapter.
    pub verdict: String,
    /// True if [`Backend::Auto`] would use the adapter.
    pub would_be_chosen: bool,
}

impl fmt::Display for AdapterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.name, self.backend, self.driver)
    }
}

/// Adapter, and why it was chosen.
pub(crate) struct Chosen {
    pub(crate) adapter: wgpu::Adapter,
    pub(crate) why: String,
}

/// Requests of the environment, in wgpu's own variables.
struct Wishes {
    backends: Option<wgpu::Backends>,
    name: Option<String>,
    low_power: bool,
}

impl Wishes {
    fn from_env() -> Self {
        Self {
            backends: wgpu::Backends::from_env(),
            name: std::env::var("WGPU_ADAPTER_NAME").ok().filter(|name| !name.is_empty()).map(|name| name.to_lowercase()),
            low_power: wgpu::PowerPreference::from_env() == Some(wgpu::PowerPreference::LowPower),
        }
    }

    /// True if a backend or a name is requested, which permits software adapters.
    fn is_explicit(&self) -> bool {
        self.backends.is_some() || self.name.is_some()
    }
}

fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // Validation is the caller's choice (WGPU_VALIDATION, WGPU_DEBUG), not the build profile's.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    descriptor.backends = wgpu::Backends::from_env().unwrap_or(wgpu::Backends::all());
    wgpu::Instance::new(descriptor)
}

/// Adapters that can compute, best first.
async fn adapters(wishes: &Wishes) -> Vec<wgpu::Adapter> {
    let found = every_adapter(wishes).await;
    let mut adapters: Vec<_> = found.into_iter().filter(can_compute).collect();
    adapters.sort_by_key(|adapter| rank(&adapter.get_info(), wishes.low_power));
    adapters
}

#[cfg(not(target_family = "wasm"))]
async fn every_adapter(_: &Wishes) -> Vec<wgpu::Adapter> {
    instance().enumerate_adapters(wgpu::Backends::all()).await
}

/// Adapter that the browser prefers: it shows one at a time.
#[cfg(target_family = "wasm")]
async fn every_adapter(wishes: &Wishes) -> Vec<wgpu::Adapter> {
    let power_preference = if wishes.low_power { wgpu::PowerPreference::LowPower } else { wgpu::PowerPreference::HighPerformance };
    let options = wgpu::RequestAdapterOptions { power_preference, ..Default::default() };
    instance().request_adapter(&options).await.into_iter().collect()
}

fn can_compute(adapter: &wgpu::Adapter) -> bool {
    adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
        && adapter.limits().max_storage_buffers_per_shader_stage >= 4
}

/// Sort key; lower is better.
fn rank(info: &wgpu::AdapterInfo, low_power: bool) -> (u8, u8) {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => u8::from(low_power),
        wgpu::DeviceType::IntegratedGpu => u8::from(!low_power),
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (kind, u8::from(info.backend == wgpu::Backend::Gl))
}

/// Lists every adapter that can compute, best first.
pub async fn list() -> Vec<AdapterReport> {
    choose_every().await.iter().map(|chosen| &chosen.adapter).scan(false, |taken, adapter| Some(report(adapter, taken))).collect()
}

/// Describes an adapter; `taken` is true once a better one would be chosen.
pub(super) fn report(adapter: &wgpu::Adapter, taken: &mut bool) -> AdapterReport {
    let info = adapter.get_info();
    let refusal = refusal(&info, &Wishes::from_env());
    let would_be_chosen = refusal.is_none() && !*taken;
    *taken |= would_be_chosen;
    AdapterReport {
        name: info.name.clone(),
        backend: info.backend.to_str().to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        caps: caps(adapter.features(), &adapter.limits(), &info, matrix_size(adapter)),
        features: notable(adapter.features()),
        would_be_chosen,
        verdict: refusal.unwrap_or_else(|| if would_be_chosen { "the best there is".into() } else { "a better one is there".into() }),
    }
}

/// Reason why [`Backend::Auto`] does not use an adapter.
fn refusal(info: &wgpu::AdapterInfo, wishes: &Wishes) -> Option<String> {
    if let Some(name) = &wishes.name
        && !info.name.to_lowercase().contains(name)
    {
        return Some(format!("WGPU_ADAPTER_NAME asks for `{name}`"));
    }
    if let Some(backends) = wishes.backends
        && !backends.contains(info.backend.into())
    {
        return Some("WGPU_BACKEND asks for another backend".into());
    }
    (info.device_type == wgpu::DeviceType::Cpu && !wishes.is_explicit())
        .then(|| "a software adapter is taken only when asked for: the CPU path is faster".into())
}

/// Adapter for `backend`; `None` means the CPU.
pub(crate) async fn choose(backend: &Backend) -> Result<Option<Chosen>> {
    let asked_for = match backend {
        Backend::Cpu | Backend::Oracle => return Ok(None),
        Backend::Auto => None,
        Backend::Adapter(text) => Some(text),
    };
    let wishes = Wishes::from_env();
    let adapters = adapters(&wishes).await;
    let names: Vec<String> = adapters.iter().map(|a| format!("{} ({})", a.get_info().name, a.get_info().backend.to_str())).collect();
    let found = if names.is_empty() { "none".into() } else { names.join(", ") };
    let fits = |info: &wgpu::AdapterInfo| match asked_for {
        None => refusal(info, &wishes).is_none(),
        Some(text) => {
            let (name, wanted) = (info.name.to_lowercase(), text.to_lowercase());
            wanted.split_whitespace().all(|word| info.backend.to_str() == word || name.contains(word))
        }
    };
    let (why, missing) = match asked_for {
        Some(text) => (format!("`{text}` was asked for"), Some(format!("none matches `{text}`"))),
        None if wishes.is_explicit() => ("the environment asks for it".into(), Some("none fits WGPU_BACKEND and WGPU_ADAPTER_NAME".into())),
        None => ("the best GPU there is".into(), None),
    };
    match (adapters.into_iter().find(|adapter| fits(&adapter.get_info())), missing) {
        (Some(adapter), _) => Ok(Some(Chosen { adapter, why })),
        (None, Some(missing)) => Err(Error::NoAdapter { why: format!("{missing}; found: {found}") }),
        (None, None) => Ok(None),
    }
}

/// Lists every adapter that can compute, best first.
pub(crate) async fn choose_every() -> Vec<Chosen> {
    let adapters = adapters(&Wishes::from_env()).await;
    adapters.into_iter().map(|adapter| Chosen { adapter, why: "every backend was asked for".into() }).collect()
}

/// Features that kernels or calls from host memory may use; cooperative matrices are requested separately.
pub(crate) fn wanted_features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let mapped = match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => wgpu::Features::empty(),
        _ => wgpu::Features::MAPPABLE_PRIMARY_BUFFERS,
    };
    adapter.features() & (wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE | mapped)
}

/// Features that a device needs to use [`matrix_size`]: cooperative matrices, f16, subgroups.
pub const MATRIX_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16).union(wgpu::Features::SUBGROUP);

/// Rows and columns of the adapter's cooperative matrices with f16 factors and f32 sums: 16 or 8, or 0 if WGSL has no
/// type for them. Also 0 on Metal, which has 8x8: the kernel translates to its language but has not been run there.
///
/// An app's own device cannot report it: create it with [`MATRIX_FEATURES`] and pass the size in [`super::ShaderOptions`] to
/// [`crate::gpu::Gpu::from_device_with`].
pub fn matrix_size(adapter: &wgpu::Adapter) -> u32 {
    if !adapter.features().contains(MATRIX_FEATURES) || adapter.get_info().backend != wgpu::Backend::Vulkan {
        return 0;
    }
    let properties = adapter.cooperative_matrix_properties();
    let has = |&size: &u32| {
        properties.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [size; 3]
                && p.ab_type == wgpu::CooperativeScalarType::F16
                && p.cr_type == wgpu::CooperativeScalarType::F32
        })
    };
    [16, 8].into_iter().find(has).unwrap_or(0)
}

fn notable(features: wgpu::Features) -> Vec<&'static str> {
    [
        (wgpu::Features::SUBGROUP, "SUBGROUP"),
        (wgpu::Features::SHADER_F16, "SHADER_F16"),
        (wgpu::Features::TIMESTAMP_QUERY, "TIMESTAMP_QUERY"),
        (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "EXPERIMENTAL_COOPERATIVE_MATRIX"),
        (wgpu::Features::PIPELINE_CACHE, "PIPELINE_CACHE"),
    ]
    .into_iter()
    .filter_map(|(feature, name)| features.contains(feature).then_some(name))
    .collect()
}

/// Reads 15 from `llvmpipe (LLVM 15.0.6, 256 bits)`.
fn llvm_version(name: &str) -> Option<u32> {
    let version = name.split_once("LLVM ")?.1;
    version[..version.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

/// Capabilities of an adapter, or of a device with these features; `matrix_size` is the adapter's.
pub(crate) fn caps(features: wgpu::Features, limits: &wgpu::Limits, info: &wgpu::AdapterInfo, matrix_size: u32) -> DeviceCaps {
    let class = match info.device_type {
        wgpu::DeviceType::Cpu => DeviceClass::Software,
        wgpu::DeviceType::DiscreteGpu => DeviceClass::Discrete,
        // The GL backend of llvmpipe calls itself `Other`.
        _ if info.name.to_lowercase().contains("llvmpipe") => DeviceClass::Software,
        _ => DeviceClass::Integrated,
    };
    DeviceCaps {
        class,
        subgroup_size: if features.contains(wgpu::Features::SUBGROUP) { info.subgroup_min_size } else { 0 },
        subgroup_max: if features.contains(wgpu::Features::SUBGROUP) { info.subgroup_max_size } else { 0 },
        prefer_matrices: false,
        matrix_size: if features.contains(MATRIX_FEATURES) && [8, 16].contains(&matrix_size) { matrix_size } else { 0 },
        slow_compiler: llvm_version(&info.name).is_some_and(|version| version < 16),
        slow_barriers: class == DeviceClass::Software && llvm_version(&info.name).is_none(),
        workgroup_bytes: limits.max_compute_workgroup_storage_size,
        workgroup_threads: limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x),
        workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
        binding_bytes: limits.max_storage_buffer_binding_size,
        buffer_bytes: limits.max_buffer_size,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        storage_alignment: limits.min_storage_buffer_offset_alignment,
        uniform_alignment: limits.min_uniform_buffer_offset_alignment,
        // Not on Mesa 22.3's GL: there it gave wrong answers (odd numbers of vec4s per row), and uniforms cost nothing.
        params_in_storage: class == DeviceClass::Software && info.backend == wgpu::Backend::Vulkan,
        loop_iterations: llvm_version(&info.name).is_some_and(|version| version < 16).then_some(65_535),
        scratch_budget: u64::MAX,
        specialise: Specialise::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::llvm_version;

    #[test]
    fn llvm_versions() {
        assert_eq!(llvm_version("llvmpipe (LLVM 15.0.6, 256 bits)"), Some(15));
        assert_eq!(llvm_version("llvmpipe (LLVM 22.1.8, 512 bits)"), Some(22));
        assert_eq!(llvm_version("AMD Radeon RX 7900 XTX (RADV NAVI31)"), None);
        assert_eq!(llvm_version("LLVM "), None);
    }
}
