//! Device capabilities as plain data, so that plans are made and tested without a device.

/// Capabilities and limits of a device, as far as the planner uses them.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceCaps {
    /// Kind of device, by which first choices differ.
    pub class: DeviceClass,
    /// Smallest subgroup size; 0 where subgroup operations are not supported.
    pub subgroup_size: u32,
    /// Largest subgroup size; 0 where subgroup operations are not supported.
    pub subgroup_max: u32,
    /// Size of the cooperative matrices (f16 factors, f32 sums) that kernels may use: 8, 16, or 0 for none. Only an
    /// adapter reports it: see [`crate::gpu::matrix_size`].
    pub matrix_size: u32,
    /// True if kernels of cooperative matrices are the first choice where they work. A setting, not a property of the
    /// device; autotuning tries them in any case.
    pub prefer_matrices: bool,
    /// True if a software adapter takes ten seconds or more to compile a large kernel: llvmpipe with LLVM before 2023.
    pub slow_compiler: bool,
    /// True if a software adapter compiles kernels with barriers several times as long as others: SwiftShader, which saves
    /// all variables at each.
    pub slow_barriers: bool,
    /// `max_compute_workgroup_storage_size`.
    pub workgroup_bytes: u32,
    /// `max_compute_invocations_per_workgroup`, and `max_compute_workgroup_size_x` if that is smaller.
    pub workgroup_threads: u32,
    /// `max_compute_workgroups_per_dimension`.
    pub workgroups_per_dimension: u32,
    /// `max_storage_buffer_binding_size`.
    pub binding_bytes: u64,
    /// `max_buffer_size`.
    pub buffer_bytes: u64,
    /// `max_storage_buffers_per_shader_stage`.
    pub storage_buffers: u32,
    /// `min_storage_buffer_offset_alignment`.
    pub storage_alignment: u32,
    /// `min_uniform_buffer_offset_alignment`.
    pub uniform_alignment: u32,
    /// True if kernels read their parameters from a read-only storage buffer instead of a uniform buffer, unless that
    /// is one storage buffer too many. Mesa 22.3's lavapipe recompiles a kernel for every dispatch whose uniforms could
    /// be constants of its loops: half a second each, and a megabyte that is never freed.
    pub params_in_storage: bool,
    /// Iterations, over all loops of an invocation, after which the device ends its loops; `None` if no limit was seen.
    pub loop_iterations: Option<u32>,
    /// Maximum size of a plan's scratch buffers together, in bytes. A setting, not a property of the device.
    pub scratch_budget: u64,
    /// Policy for specialised kernels. A setting, not a property of the device.
    pub specialise: Specialise,
}

/// Policy for compiling a kernel for one head_dim and one set of options instead of reading them at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Specialise {
    /// Specialise where it pays: always on a GPU; on a software adapter if a problem runs longer than a compilation.
    #[default]
    Auto,
    /// Never specialise: few kernels, each quick to compile and slow to run.
    Never,
    /// Always specialise.
    Always,
}

/// Kind of device, by which first choices differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceClass {
    /// Software adapter, which runs on the CPU: lavapipe, llvmpipe, SwiftShader, WARP.
    Software,
    /// Integrated GPU, or a device of unknown kind.
    Integrated,
    /// Discrete GPU.
    Discrete,
}

impl DeviceClass {
    /// Class of a device by the names that browsers give: `nvidia`, `ampere`. They tell neither for AMD, whose
    /// architectures are those of cards and of processors alike; unknown kinds are planned for as integrated.
    pub fn of_browser(vendor: &str, architecture: &str) -> Self {
        match (vendor, architecture) {
            (_, "swiftshader" | "software" | "warp") => Self::Software,
            ("nvidia", _) => Self::Discrete,
            // Arc: `gen-12hp`, `xe-2hpg`.
            ("intel", name) if name.contains("hp") => Self::Discrete,
            _ => Self::Integrated,
        }
    }
}

impl DeviceCaps {
    /// Returns the WebGPU default limits, without subgroups.
    pub const fn webgpu_defaults() -> Self {
        Self {
            class: DeviceClass::Integrated,
            subgroup_size: 0,
            subgroup_max: 0,
            matrix_size: 0,
            prefer_matrices: false,
            slow_compiler: false,
            slow_barriers: false,
            workgroup_bytes: 16384,
            workgroup_threads: 256,
            workgroups_per_dimension: 65535,
            binding_bytes: 128 << 20,
            buffer_bytes: 256 << 20,
            storage_buffers: 8,
            storage_alignment: 256,
            uniform_alignment: 256,
            params_in_storage: false,
            loop_iterations: None,
            scratch_budget: u64::MAX,
            specialise: Specialise::Auto,
        }
    }

    /// Floating-point operations of one dispatch, few enough that it ends well before a driver's watchdog acts (one to
    /// two seconds): about a quarter of a second on the slowest known GPU of the class. A software adapter has no
    /// watchdog; there it bounds how long a cancellation may take.
    pub const fn dispatch_flops(&self) -> f64 {
        match self.class {
            DeviceClass::Software => 20e9,   // 10 GFLOP/s, two seconds
            DeviceClass::Integrated => 25e9, // 100 GFLOP/s
            DeviceClass::Discrete => 250e9,  // 1 TFLOP/s
        }
    }

    /// True if `flops` of a generic kernel's work are worth a specialised kernel. On a software adapter one takes half
    /// a second to compile (two or three with a slow compiler) and runs at tens of GFLOP/s; a generic one reaches one.
    pub(crate) fn specialises(&self, flops: f64) -> bool {
        match self.specialise {
            Specialise::Auto => self.class != DeviceClass::Software || flops > if self.slow_compiler { 5e7 } else { 2e7 },
            Specialise::Never => false,
            Specialise::Always => true,
        }
    }

    /// Returns capabilities for a plan that is replayed: specialising it pays sooner than specialising a single call.
    #[must_use]
    pub fn for_replays(&self, flops: f64) -> Self {
        const STEPS: f64 = 32.0;
        let always = self.specialise == Specialise::Auto && self.specialises(STEPS * flops);
        Self { specialise: if always { Specialise::Always } else { self.specialise }, ..self.clone() }
    }

    /// Number of workgroups that keep the whole device busy.
    pub(crate) const fn full_grid(&self) -> usize {
        match self.class {
            DeviceClass::Software => 16,
            DeviceClass::Integrated => 64,
            DeviceClass::Discrete => 256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DeviceClass;

    #[test]
    fn classes_of_browsers_devices() {
        for (vendor, architecture, expected) in [
            ("google", "swiftshader", DeviceClass::Software),
            ("mesa", "software", DeviceClass::Software),
            ("nvidia", "ampere", DeviceClass::Discrete),
            ("intel", "gen-12hp", DeviceClass::Discrete),
            ("intel", "gen-12lp", DeviceClass::Integrated),
            ("apple", "metal-3", DeviceClass::Integrated),
            ("amd", "rdna-3", DeviceClass::Integrated),
            ("", "", DeviceClass::Integrated),
        ] {
            assert_eq!(DeviceClass::of_browser(vendor, architecture), expected, "{vendor} {architecture}");
        }
    }
}
