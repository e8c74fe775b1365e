//! Device loss. wgpu reports it in one callback, which is the app's, and then silently creates objects that do nothing.
//! So every wgpu call here is inside error scopes, and mapping a buffer shows whether the device is there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Error scopes of every kind on this thread, which keep errors from the app's handler. The last opened drops first.
pub(super) struct Scopes([wgpu::ErrorScopeGuard; 3]);

impl Scopes {
    pub(super) fn open(device: &wgpu::Device) -> Self {
        let kinds = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal];
        let [memory, validation, internal] = kinds.map(|kind| device.push_error_scope(kind));
        Self([internal, validation, memory])
    }

    /// Closes the scopes. Returns the first error of the most telling kind.
    pub(super) fn close(self) -> Option<wgpu::Error> {
        let [internal, validation, memory] = self.0.map(|scope| pollster::block_on(scope.pop()));
        internal.or(validation).or(memory)
    }
}

/// Unused buffer. A lost device refuses to map it at once; any other leaves the mapping to the next poll.
#[derive(Debug)]
pub(super) struct Sentinel(Mutex<wgpu::Buffer>);

impl Sentinel {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        let _scopes = Scopes::open(device);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let descriptor = wgpu::BufferDescriptor { label: Some("attention sentinel"), size: 16, usage, mapped_at_creation: false };
        Self(Mutex::new(device.create_buffer(&descriptor)))
    }

    pub(super) fn sees_loss(&self, device: &wgpu::Device) -> bool {
        let buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _scopes = Scopes::open(device);
        let refused = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&refused);
        buffer.map_async(wgpu::MapMode::Read, .., move |result| told.store(result.is_err(), Ordering::Release));
        let refused = refused.load(Ordering::Acquire);
        buffer.unmap();
        refused
    }
}

/// Polls the device; an error says why it failed. wgpu 30 panics in a poll if the driver loses the device.
pub(super) fn poll(device: &wgpu::Device, how: wgpu::PollType) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| device.poll(how))) {
        Ok(polled) => polled.map(|_| ()).map_err(|error| error.to_string()),
        Err(_) => Err("the driver lost the device while it was waited for".into()),
    }
}
