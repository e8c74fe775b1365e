//! What a device can do, as plain numbers: plans are made and tested without one.

/// What the planner needs to know of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceCaps {
    /// What kind of device it is; first choices differ.
    pub class: DeviceClass,
    /// Smallest subgroup, where subgroup operations can be used; 0 where not.
    pub subgroup_size: u32,
    /// Largest subgroup, where subgroup operations can be used; 0 where not.
    pub subgroup_max: u32,
    /// Rows and columns of the cooperative matrices with f16 factors and f32 sums that kernels may use: 8, 16, or 0 for none. Only an adapter
    /// knows: see [`crate::gpu::matrix_size`].
    pub matrix_size: u32,
    /// Whether kernels of cooperative matrices are the first choice where they work. A choice, not read off the device; autotuning tries them
    /// in any case.
    pub prefer_matrices: bool,
    /// A software adapter that takes ten seconds and more to compile a large kernel: llvmpipe with an LLVM from before 2023.
    pub slow_compiler: bool,
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
    /// True if kernels read their parameters from a read-only storage buffer instead of a uniform one, where that is not one buffer too
    /// many. Mesa 22.3's lavapipe compiles a kernel again for every dispatch whose uniforms could be constants of its loops: half a second
    /// each, and a megabyte that it never gives back.
    pub params_in_storage: bool,
    /// Iterations after which the device ends every loop of an invocation, all of its loops together; `None` if it was not seen to do so.
    pub loop_iterations: Option<u32>,
    /// When kernels are made for one problem only. A choice, not read off the device.
    pub specialise: Specialise,
}

/// When a kernel is compiled for one head_dim and one set of options, instead of taking them at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Specialise {
    /// Where it pays: always on a GPU; on a software adapter for problems that run longer than a kernel compiles.
    #[default]
    Auto,
    /// Never: few kernels, each quick to compile, slow to run.
    Never,
    /// Always.
    Always,
}

/// Kinds of devices between which first choices differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceClass {
    /// A CPU that plays a GPU: lavapipe, llvmpipe, SwiftShader, WARP.
    Software,
    /// An integrated GPU, or one of which nothing is known.
    Integrated,
    /// A discrete GPU.
    Discrete,
}

impl DeviceCaps {
    /// The WebGPU default limits, without subgroups.
    pub const fn webgpu_defaults() -> Self {
        Self {
            class: DeviceClass::Integrated,
            subgroup_size: 0,
            subgroup_max: 0,
            matrix_size: 0,
            prefer_matrices: false,
            slow_compiler: false,
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
            specialise: Specialise::Auto,
        }
    }

    /// Floating-point operations that one dispatch may take, so that it ends well before a driver loses patience (one to two
    /// seconds): about a quarter of a second on the slowest GPU of the class that we know of. A software adapter has no such
    /// driver; there it is how long a cancellation may take.
    pub(crate) const fn dispatch_flops(&self) -> f64 {
        match self.class {
            DeviceClass::Software => 20e9,   // 10 GFLOP/s, two seconds
            DeviceClass::Integrated => 25e9, // 100 GFLOP/s
            DeviceClass::Discrete => 250e9,  // 1 TFLOP/s
        }
    }

    /// Whether `flops` of a general kernel's work are worth a kernel of their own. On a software adapter that takes half a second to compile, of a slow
    /// compiler two or three, and runs at tens of GFLOP/s where a general one reaches one.
    pub(crate) fn specialises(&self, flops: f64) -> bool {
        match self.specialise {
            Specialise::Auto => self.class != DeviceClass::Software || flops > if self.slow_compiler { 5e7 } else { 2e7 },
            Specialise::Never => false,
            Specialise::Always => true,
        }
    }

    /// For what is made once and replayed step after step: that is worth a kernel of its own sooner than a single call.
    pub(crate) fn for_replays(&self, flops: f64) -> Self {
        const STEPS: f64 = 32.0;
        let always = self.specialise == Specialise::Auto && self.specialises(STEPS * flops);
        Self { specialise: if always { Specialise::Always } else { self.specialise }, ..self.clone() }
    }

    /// Workgroups that keep the whole device busy.
    pub(crate) const fn full_grid(&self) -> usize {
        match self.class {
            DeviceClass::Software => 16,
            DeviceClass::Integrated => 64,
            DeviceClass::Discrete => 256,
        }
    }
}
