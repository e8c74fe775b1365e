//! Buffers: created, filled, read back together.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::loss::poll;
use super::wait::{Waiting, map};
use super::{Gpu, Phase};
use crate::error::{Cause, Result};

/// Creates a storage buffer of whole vec4s, at least one.
pub(super) fn storage(gpu: &Gpu, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
    make(gpu, label, bytes, usage | wgpu::BufferUsages::STORAGE, false)
}

/// Creates a buffer with these bytes, written while it is mapped: no queue operation for the app's submits to overtake.
pub(super) fn filled(gpu: &Gpu, label: &str, usage: wgpu::BufferUsages, bytes: &[u8]) -> Result<wgpu::Buffer> {
    let buffer = make(gpu, label, bytes.len() as u64, usage, true)?;
    gpu.guarded(|| {
        let view = buffer.get_mapped_range_mut(..).map(|mut view| view.slice(..bytes.len()).copy_from_slice(bytes));
        buffer.unmap();
        view
    })?
    .map_err(|error| gpu.failure(Cause::new(error)))?;
    Ok(buffer)
}

/// Creates a buffer with the params of some dispatches. Returns it with the stride in bytes.
pub(super) fn params_buffer<T: bytemuck::NoUninit>(
    gpu: &Gpu,
    label: &str,
    params: impl ExactSizeIterator<Item = T>,
) -> Result<(wgpu::Buffer, u32)> {
    let caps = gpu.caps();
    let (usage, alignment) = if caps.params_in_storage {
        (wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::STORAGE, caps.uniform_alignment.max(caps.storage_alignment))
    } else {
        (wgpu::BufferUsages::UNIFORM, caps.uniform_alignment)
    };
    let stride = size_of::<T>().next_multiple_of(alignment as usize);
    let mut bytes = vec![0; stride * params.len().max(1)];
    for (slot, params) in bytes.chunks_exact_mut(stride).zip(params) {
        slot[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&params));
    }
    Ok((filled(gpu, label, usage, &bytes)?, stride as u32))
}

/// Binding of the params of one dispatch, at the dynamic offset that is bound with it.
pub(super) fn params_binding<T>(buffer: &wgpu::Buffer) -> wgpu::BufferBinding<'_> {
    wgpu::BufferBinding { buffer, offset: 0, size: wgpu::BufferSize::new(size_of::<T>() as u64) }
}

/// Usage of buffers that each call refills. Where device and host share memory they are written in place, which saves a
/// second copy and the pages of a new staging buffer.
pub(super) fn refilled(gpu: &Gpu) -> wgpu::BufferUsages {
    let device = gpu.device();
    let shared = device.adapter_info().device_type != wgpu::DeviceType::DiscreteGpu;
    let in_place = shared && device.features().contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS);
    wgpu::BufferUsages::COPY_DST | if in_place { wgpu::BufferUsages::MAP_WRITE } else { wgpu::BufferUsages::empty() }
}

/// Writes bytes of any number; the last word is padded with zeros. Call it within [`Gpu::guarded`].
pub(super) fn write(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: &[u8]) {
    if buffer.usage().contains(wgpu::BufferUsages::MAP_WRITE) && write_in_place(gpu, buffer, bytes) {
        return;
    }
    let whole = bytes.len() / 4 * 4;
    gpu.queue().write_buffer(buffer, 0, &bytes[..whole]);
    if whole < bytes.len() {
        let mut word = [0; 4];
        word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
        gpu.queue().write_buffer(buffer, whole as u64, &word);
    }
}

/// Writes through a mapping. False if the buffer cannot be mapped because a dropped call still uses it.
fn write_in_place(gpu: &Gpu, buffer: &wgpu::Buffer, bytes: &[u8]) -> bool {
    let mapped = Arc::new(AtomicBool::new(false));
    let told = mapped.clone();
    buffer.map_async(wgpu::MapMode::Write, .., move |result| told.store(result.is_ok(), Ordering::Release));
    let polled = poll(gpu.device(), wgpu::PollType::Poll);
    let written = polled.is_ok()
        && mapped.load(Ordering::Acquire)
        && buffer.get_mapped_range_mut(..).is_ok_and(|mut view| {
            view.slice(..bytes.len()).copy_from_slice(bytes);
            let end = bytes.len().next_multiple_of(4);
            view.slice(bytes.len()..end).copy_from_slice(&[0; 4][..end - bytes.len()]);
            true
        });
    buffer.unmap();
    written
}

/// Size of a buffer for `bytes`: whole vec4s, at least one.
pub(super) fn whole_vec4s(bytes: u64) -> u64 {
    bytes.next_multiple_of(16).max(16)
}

fn make(gpu: &Gpu, label: &str, bytes: u64, usage: wgpu::BufferUsages, mapped_at_creation: bool) -> Result<wgpu::Buffer> {
    let size = whole_vec4s(bytes);
    let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation };
    let buffer = gpu.guarded(|| gpu.device().create_buffer(&descriptor))?;
    gpu.owns(&buffer);
    Ok(buffer)
}

/// Buffers that are read back together.
#[derive(Debug)]
pub(super) struct ReadBack {
    /// Buffers, each with its range of bytes in `staging`.
    parts: Vec<(wgpu::Buffer, Range<u64>)>,
    pub(super) staging: wgpu::Buffer,
}

impl ReadBack {
    /// Creates the staging buffer for the given number of bytes of each buffer.
    pub(super) fn new(gpu: &Gpu, parts: impl IntoIterator<Item = (wgpu::Buffer, u64)>) -> Result<Self> {
        let mut end = 0u64;
        let place = |(buffer, bytes): (wgpu::Buffer, u64)| {
            let start = end.next_multiple_of(16);
            end = start + bytes;
            (buffer, start..end)
        };
        let parts = parts.into_iter().map(place).collect();
        let staging = make(gpu, "read back", end, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST, false)?;
        Ok(Self { parts, staging })
    }

    pub(super) fn copy(&self, encoder: &mut wgpu::CommandEncoder) {
        for (buffer, place) in &self.parts {
            encoder.copy_buffer_to_buffer(buffer, 0, &self.staging, place.start, (place.end - place.start).next_multiple_of(4));
        }
    }

    /// Passes the bytes of each buffer to `take`, in order, once `submission`, which contains the copies, is done. Returns
    /// late errors of the handle first: they are the causes of others.
    pub(super) async fn read<T>(
        &self,
        gpu: &Gpu,
        submission: Option<wgpu::SubmissionIndex>,
        waiting: Waiting,
        take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>) -> T,
    ) -> Result<T> {
        let mapped = gpu.timed_async(Phase::Run, map(gpu, &self.staging, submission, waiting)).await;
        gpu.settled().await?;
        mapped?;
        let take = || {
            let view = self.staging.get_mapped_range(..);
            let taken = view.map(|view| take(&mut self.parts.iter().map(|(_, place)| &view[place.start as usize..place.end as usize])));
            self.staging.unmap();
            taken
        };
        gpu.timed(Phase::ReadBack, || gpu.guarded(take))?.map_err(|error| gpu.failure(Cause::new(error)))
    }
}
