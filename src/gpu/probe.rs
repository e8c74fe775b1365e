//! Small shaders that probe what a device does where specifications leave it open.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::Gpu;
use super::loss::{Scopes, poll};
use crate::error::Result;
/// Number of iterations tried: one invocation that visits a million keys one by one.
const TRIED: u32 = 1 << 20;

/// Loop whose end the compiler does not know, with a state that only the loop can compute.
const LOOP: &str = "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(1) fn main() {
    var state = words[1];
    for (var i = 0u; i < words[0]; i++) { state = state * 1664525u + 1013904223u; }
    words[1] = state;
}";

/// Iterations after which the device ends all loops of an invocation; `None` if it does not, or does not answer.
///
/// Found once per adapter and driver in a process, by compiling a kernel and waiting for a dispatch of milliseconds.
pub(super) fn loop_iterations(device: &wgpu::Device, queue: &wgpu::Queue, adapter: &str) -> Option<u32> {
    static FOUND: Mutex<Option<HashMap<String, Option<u32>>>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let found = found.get_or_insert_default();
    if let Some(&known) = found.get(adapter) {
        return known;
    }
    let seed = 1;
    let words = match run(device, queue, LOOP, &[TRIED, seed]) {
        Ok(words) => words,
        Err(error) => {
            log::warn!("{adapter}: the probe of its loops failed: {error}");
            return None;
        }
    };
    let bound = steps_to(seed, words[1]);
    if let Some(bound) = bound {
        log::info!("{adapter} ends loops after {bound} iterations of an invocation");
    }
    found.insert(adapter.to_string(), bound);
    bound
}

/// Number of iterations that lead from one state to another, if fewer than requested.
fn steps_to(seed: u32, end: u32) -> Option<u32> {
    let mut state = seed;
    (0..TRIED).find(|_| {
        let reached = state == end;
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        reached
    })
}

/// Findings about a device where specifications leave it open. Kernels rely on none of them but `loop_iterations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Findings {
    /// Iterations after which all loops of an invocation end; `None` if unseen, or on a real GPU, which is not probed.
    pub loop_iterations: Option<u32>,
    /// True if `exp(NaN)` is NaN.
    pub exp_keeps_nan: bool,
    /// True if `max(NaN, 1.0)` is NaN.
    pub max_keeps_nan: bool,
    /// True if NaN differs from itself.
    pub nan_differs: bool,
    /// Bits of 70,000 as an f16 by `pack2x16float`; 0x7c00 is infinity.
    pub half_of_70000: u16,
    /// Number of threads in the first subgroup of a workgroup of 128, if there are subgroups.
    pub subgroup_size: Option<u32>,
    /// True if the lanes of each subgroup are consecutive threads, if there are subgroups.
    pub lanes_in_order: Option<bool>,
}

const NUMBERS: &str = "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(1) fn main() {
    let nan = bitcast<f32>(words[0]);
    words[0] = bitcast<u32>(exp(nan));
    words[1] = bitcast<u32>(max(nan, bitcast<f32>(words[1])));
    words[2] = pack2x16float(vec2<f32>(bitcast<f32>(words[2]), 0.0));
    words[3] = u32(nan != nan);
}";

const LANES: &str = "@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@compute @workgroup_size(128) fn main(@builtin(local_invocation_index) at: u32, @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32) {
    words[2u * at] = size;
    words[2u * at + 1u] = lane;
}";

impl Gpu {
    /// Probes the device with a few tiny shaders: compiles, submits and waits. Not in browsers.
    pub fn findings(&self) -> Result<Findings> {
        let try_out = |wgsl: &str, words: &[u32]| run(self.device(), self.queue(), wgsl, words).map_err(|why| self.failure(why));
        let is_nan = |bits: u32| f32::from_bits(bits).is_nan();
        let numbers = try_out(NUMBERS, &[f32::NAN.to_bits(), 1.0f32.to_bits(), 70_000.0f32.to_bits(), 0])?;
        let lanes = if self.caps().subgroup_size > 0 { try_out(LANES, &[0; 256])? } else { Vec::new() };
        let ordered = |(at, pair): (u32, &[u32])| pair[0] > 0 && at % pair[0] == pair[1];
        Ok(Findings {
            loop_iterations: self.caps().loop_iterations,
            exp_keeps_nan: is_nan(numbers[0]),
            max_keeps_nan: is_nan(numbers[1]),
            nan_differs: numbers[3] == 1,
            half_of_70000: numbers[2] as u16,
            subgroup_size: lanes.first().copied(),
            lanes_in_order: (!lanes.is_empty()).then(|| (0..).zip(lanes.chunks_exact(2)).all(ordered)),
        })
    }
}

/// Runs one workgroup of a shader on the words at its binding 0, and returns them.
pub(super) fn run(device: &wgpu::Device, queue: &wgpu::Queue, wgsl: &str, words: &[u32]) -> Result<Vec<u32>, String> {
    let scopes = Scopes::open(device);
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some("attention probe"), source: wgpu::ShaderSource::Wgsl(wgsl.into()) };
    // SAFETY: own shaders that stay inside their one buffer and end; unchecked like the kernels that they probe for.
    let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("attention probe"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions::default(),
        cache: None,
    });
    let size = size_of_val(words) as u64;
    let buffer = |usage| device.create_buffer(&wgpu::BufferDescriptor { label: Some("probe"), size, usage, mapped_at_creation: false });
    let storage = buffer(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST);
    let staging = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    queue.write_buffer(&storage, 0, bytemuck::cast_slice(words));
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("attention probe"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: storage.as_entire_binding() }],
    });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("attention probe") });
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&storage, 0, &staging, 0, size);
    let submission = queue.submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |_| {});
    let polled = poll(device, wgpu::PollType::Wait { submission_index: Some(submission), timeout: None });
    let view = staging.get_mapped_range(..).map(|view| bytemuck::pod_collect_to_vec(&view)).map_err(|error| error.to_string());
    match scopes.close() {
        Some(error) => Err(error.to_string()),
        None => polled.and(view),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_ends_are_counted() {
        let after = |steps: u32| (0..steps).fold(1u32, |state, _| state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        assert_eq!(steps_to(1, after(65_535)), Some(65_535));
        assert_eq!(steps_to(1, 1), Some(0), "a loop that never began");
        assert_eq!(steps_to(1, after(TRIED)), None, "all of them");
    }
}
