//! Small shaders that probe what a device does where specifications leave it open.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;

use futures_intrusive::channel::shared::oneshot_channel;

use super::handle::poll_once;
use super::loss::{Scopes, poll};

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
/// Found once per adapter and driver in a process, by compiling a kernel and waiting for a dispatch of milliseconds. Not
/// in browsers, which let nothing wait.
pub(super) fn loop_iterations(device: &wgpu::Device, queue: &wgpu::Queue, adapter: &str) -> Option<u32> {
    static FOUND: Mutex<Option<HashMap<String, Option<u32>>>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    let found = found.get_or_insert_default();
    if let Some(&known) = found.get(adapter) {
        return known;
    }
    let seed = 1;
    let words = match poll_once(pin!(run(device, queue, LOOP, &[TRIED, seed]))) {
        Poll::Ready(Ok(words)) => words,
        Poll::Ready(Err(error)) => {
            log::warn!("{adapter}: the probe of its loops failed: {error}");
            return None;
        }
        Poll::Pending => return None,
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

/// Runs one workgroup of a shader on the words at its binding 0, and returns them. Blocks, except in browsers.
pub(super) async fn run(device: &wgpu::Device, queue: &wgpu::Queue, wgsl: &str, words: &[u32]) -> Result<Vec<u32>, String> {
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
    let (signal, mapped) = oneshot_channel();
    staging.map_async(wgpu::MapMode::Read, .., move |result| {
        let _ = signal.send(result); // fails if nobody waits any more
    });
    let error = scopes.close();
    let polled = poll(device, wgpu::PollType::Wait { submission_index: Some(submission), timeout: None });
    if let Some(error) = error.await {
        return Err(error.to_string());
    }
    polled?;
    let words = match mapped.receive().await {
        Some(Ok(())) => staging.get_mapped_range(..).map(|view| bytemuck::pod_collect_to_vec(&view)).map_err(|error| error.to_string()),
        _ => Err("the words cannot be read back".into()),
    };
    [storage, staging].iter().for_each(wgpu::Buffer::destroy);
    words
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
