//! Devices and buffers owned by the app, and data to put into them.

use wgpu_attention::wgpu::{self, BufferUsages};

/// Opens one device per adapter, with the limits that `limits` picks.
pub(crate) fn devices(limits: impl Fn(&wgpu::Adapter) -> wgpu::Limits) -> Vec<(wgpu::Device, wgpu::Queue)> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    insist_on_adapters(adapters.len());
    adapters
        .iter()
        .map(|adapter| {
            let descriptor = wgpu::DeviceDescriptor {
                required_features: adapter.features() & (wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY),
                required_limits: limits(adapter),
                ..Default::default()
            };
            pollster::block_on(adapter.request_device(&descriptor)).expect("a device")
        })
        .collect()
}

/// Warns loudly if there is no GPU adapter; panics then if `CI` is set.
pub(crate) fn insist_on_adapters(found: usize) {
    if found == 0 {
        let message = "NO GPU ADAPTER: nothing that runs on a GPU is tested. scripts/test.sh installs a software one.";
        assert!(std::env::var_os("CI").is_none(), "{message}");
        eprintln!("\n*** {message} ***\n");
    }
}

/// Returns elements between -1 and 1.
pub(crate) fn draw(seed: usize, len: usize) -> Vec<f32> {
    let mut state = (seed as u32).wrapping_mul(747_796_405).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub(crate) fn upload(device: &wgpu::Device, queue: &wgpu::Queue, data: &[f32]) -> wgpu::Buffer {
    let buffer = empty(device, data.len());
    queue.write_buffer(&buffer, 0, bytemuck::cast_slice(data));
    buffer
}

pub(crate) fn empty(device: &wgpu::Device, len: usize) -> wgpu::Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
    device.create_buffer(&wgpu::BufferDescriptor { label: None, size: 4 * len as u64, usage, mapped_at_creation: false })
}

pub(crate) fn read(device: &wgpu::Device, queue: &wgpu::Queue, buffer: &wgpu::Buffer) -> Vec<f32> {
    let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
    let staging = device.create_buffer(&wgpu::BufferDescriptor { label: None, size: buffer.size(), usage, mapped_at_creation: false });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
    queue.submit([encoder.finish()]);
    staging.map_async(wgpu::MapMode::Read, .., |result| result.expect("mapped"));
    device.poll(wgpu::PollType::wait_indefinitely()).expect("polled");
    bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..).expect("a view"))
}
