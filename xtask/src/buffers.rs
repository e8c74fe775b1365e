//! Buffers on a device: created, filled, read back.

use wgpu_attention::gpu::Gpu;
use wgpu_attention::wgpu::{self, BufferUsages};
use wgpu_attention::{DType, HostVec};

use crate::host::stored;

/// Buffers on a device.
pub(crate) struct Buffers<'a>(pub(crate) &'a Gpu);

impl Buffers<'_> {
    pub(crate) fn empty(&self, bytes: usize) -> wgpu::Buffer {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let size = bytes.next_multiple_of(4).max(4) as u64;
        self.0.device().create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    pub(crate) fn filled(&self, bytes: &[u8]) -> wgpu::Buffer {
        let buffer = self.empty(bytes.len());
        let mut whole = bytes.to_vec();
        whole.resize(bytes.len().next_multiple_of(4), 0);
        self.0.queue().write_buffer(&buffer, 0, &whole);
        buffer
    }

    pub(crate) fn read(&self, buffer: &wgpu::Buffer, dtype: DType, len: usize) -> HostVec {
        let (device, queue) = (self.0.device(), self.0.queue());
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = device.create_buffer(&wgpu::BufferDescriptor { label: None, size: buffer.size(), usage, mapped_at_creation: false });
        let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, buffer.size());
        queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., |result| result.expect("mapped"));
        device.poll(wgpu::PollType::wait_indefinitely()).expect("polled");
        let bytes = staging.get_mapped_range(..).expect("a view");
        stored(dtype, &bytes[..dtype.bytes(len)], len)
    }
}
