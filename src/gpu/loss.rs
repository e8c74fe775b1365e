//! Device loss. wgpu reports it in one callback, which is the app's, and then silently creates objects that do nothing.
//! So every wgpu call here is inside error scopes, and mapping a buffer shows whether the device is there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(target_family = "wasm"))]
use std::sync::{Mutex, PoisonError};

/// Future of an answer that browsers give later. It is ready at once elsewhere.
#[cfg(not(target_family = "wasm"))]
pub(super) type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;
#[cfg(target_family = "wasm")]
pub(super) type Later<T> = Pin<Box<dyn Future<Output = T>>>;

/// Error scopes of every kind on this thread, which keep errors from the app's handler. The last opened drops first.
pub(super) struct Scopes([wgpu::ErrorScopeGuard; 3]);

impl Scopes {
    pub(super) fn open(device: &wgpu::Device) -> Self {
        let kinds = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal];
        let [memory, validation, internal] = kinds.map(|kind| device.push_error_scope(kind));
        Self([internal, validation, memory])
    }

    /// Closes the scopes at once. Resolves to the first error of the most telling kind: now, in a browser later.
    pub(super) fn close(self) -> impl Future<Output = Option<wgpu::Error>> + wgpu::WasmNotSend {
        let [internal, validation, memory] = self.0.map(wgpu::ErrorScopeGuard::pop);
        async move { internal.await.or(validation.await).or(memory.await) }
    }
}

/// Unused buffer. A lost device refuses to map it at once; any other leaves the mapping to the next poll.
#[cfg(not(target_family = "wasm"))]
#[derive(Debug)]
pub(super) struct Sentinel(Mutex<wgpu::Buffer>);

/// Loss that the browser has reported. wgpu adds callbacks to the app's there and replaces none.
#[cfg(target_family = "wasm")]
#[derive(Debug)]
pub(super) struct Sentinel(Arc<AtomicBool>);

#[cfg(target_family = "wasm")]
impl Sentinel {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        let lost = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&lost);
        device.set_device_lost_callback(move |_, _| told.store(true, Ordering::Release));
        Self(lost)
    }

    pub(super) fn sees_loss(&self, _: &wgpu::Device) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(not(target_family = "wasm"))]
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
