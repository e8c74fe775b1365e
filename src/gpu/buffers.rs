//! Buffers of calls from host arrays: created, filled, read back together, kept for the next call.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Gpu;
use super::host::{Waiting, map};
use super::loss::poll;
use crate::error::Result;
use crate::plan::table_bytes;
use crate::problem::{BroadcastShape, Inputs, Problem};

/// Number of prepared calls kept on a device, per kind; the least recently used are dropped first.
const KEPT: usize = 16;
/// Bytes of buffers kept for prepared calls, per kind; the most recent call is kept even if it has more.
const KEPT_BYTES: u64 = 512 << 20;

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
    .map_err(|error| gpu.failure(error))?;
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

fn make(gpu: &Gpu, label: &str, bytes: u64, usage: wgpu::BufferUsages, mapped_at_creation: bool) -> Result<wgpu::Buffer> {
    let size = bytes.next_multiple_of(16).max(16);
    gpu.guarded(|| gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation }))
}

/// Binding of a whole buffer, if there is one.
pub(super) fn whole(buffer: &Option<wgpu::Buffer>) -> Option<wgpu::BufferBinding<'_>> {
    buffer.as_ref().map(wgpu::Buffer::as_entire_buffer_binding)
}

/// Buffers of a problem besides its operands.
pub(super) struct Options {
    pub(super) tables: Option<wgpu::Buffer>,
    pub(super) bias: Option<wgpu::Buffer>,
    pub(super) mask: Option<wgpu::Buffer>,
}

impl Options {
    pub(super) fn new(gpu: &Gpu, problem: &Problem, table_words: u32) -> Result<Self> {
        let buffer = |label: &str, bytes: Option<u64>| bytes.map(|bytes| storage(gpu, label, bytes, refilled(gpu))).transpose();
        let elements = |shape: BroadcastShape| shape.elements().unwrap_or(0) as u64;
        Ok(Self {
            tables: buffer("tables", (table_words > 0).then_some(4 * u64::from(table_words)))?,
            bias: buffer("bias", problem.bias.map(|shape| 4 * elements(shape)))?,
            mask: buffer("mask", problem.visibility.mask.map(elements))?,
        })
    }

    pub(super) fn upload(&self, gpu: &Gpu, problem: &Problem, inputs: &Inputs<'_>) {
        if let Some(buffer) = &self.tables {
            write(gpu, buffer, &table_bytes(problem, inputs));
        }
        if let Some(buffer) = &self.bias {
            write(gpu, buffer, bytemuck::cast_slice(inputs.bias));
        }
        if let Some(buffer) = &self.mask {
            write(gpu, buffer, bytemuck::cast_slice(inputs.mask));
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        [&self.tables, &self.bias, &self.mask].into_iter().flatten().map(wgpu::Buffer::size).sum()
    }
}

/// Buffers that are read back together.
pub(super) struct ReadBack {
    /// Buffers, each with its range of bytes in `staging`.
    parts: Vec<(wgpu::Buffer, Range<u64>)>,
    staging: wgpu::Buffer,
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

    /// Passes the bytes of each buffer to `take`, in order, once `submission`, which contains the copies, is done.
    pub(super) async fn read<T>(
        &self,
        gpu: &Gpu,
        submission: Option<wgpu::SubmissionIndex>,
        waiting: Waiting,
        take: impl FnOnce(&mut dyn Iterator<Item = &[u8]>) -> T,
    ) -> Result<T> {
        map(gpu, &self.staging, submission, waiting).await?;
        gpu.guarded(|| {
            let view = self.staging.get_mapped_range(..);
            let taken = view.map(|view| take(&mut self.parts.iter().map(|(_, place)| &view[place.start as usize..place.end as usize])));
            self.staging.unmap();
            taken
        })?
        .map_err(|error| gpu.failure(error))
    }

    /// Bytes of the buffers and of the staging buffer.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(|(buffer, _)| buffer.size()).sum::<u64>() + self.staging.size()
    }
}

/// Prepared calls with the bytes of their buffers, least recently used first.
pub(super) struct Kept<T>(Mutex<Vec<(T, u64)>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    /// Takes a call out, so that no other caller can use it while it runs.
    pub(super) fn take(&self, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let mut kept = self.lock();
        let found = kept.iter().position(|(call, _)| is_it(call))?;
        Some(kept.remove(found).0)
    }

    pub(super) fn has(&self, is_it: impl Fn(&T) -> bool) -> bool {
        self.lock().iter().any(|(call, _)| is_it(call))
    }

    /// Keeps a call, and drops the oldest ones beyond the limits.
    pub(super) fn keep(&self, call: T, bytes: u64) {
        let mut kept = self.lock();
        kept.push((call, bytes));
        let mut bytes: u64 = kept.iter().map(|(_, bytes)| bytes).sum();
        while kept.len() > KEPT || (kept.len() > 1 && bytes > KEPT_BYTES) {
            bytes -= kept.remove(0).1;
        }
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(T, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
