//! Waiting for the device.

use std::sync::Arc;

use futures_intrusive::channel::shared::{OneshotSender, oneshot_channel};

use super::Gpu;
use crate::error::Result;

/// Runs a call to its end on the calling thread.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn block_on<T>(call: impl Future<Output = Result<T>>, _twin: &'static str) -> Result<T> {
    pollster::block_on(call)
}

/// Runs a call that need not wait, as of the CPU path. A browser lets nothing wait: others are refused, with the name of
/// the `twin` to await.
#[cfg(target_family = "wasm")]
pub(crate) fn block_on<T>(call: impl Future<Output = Result<T>>, twin: &'static str) -> Result<T> {
    match super::handle::poll_once(std::pin::pin!(call)) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => Err(crate::error::Error::unsupported("waiting for a device in a browser", format!("await `{twin}`"))),
    }
}

/// Signal that a call can go on, or why it cannot.
type Signal = OneshotSender<Result<(), String>>;

/// Maps a buffer for reading once `submission` is done.
pub(super) async fn map(gpu: &Gpu, buffer: &wgpu::Buffer, submission: Option<wgpu::SubmissionIndex>, waiting: Waiting) -> Result<()> {
    let start = |signal: Arc<Signal>| {
        buffer.map_async(wgpu::MapMode::Read, .., move |result| {
            let _ = signal.send(result.map_err(|error| error.to_string())); // fails if the call was dropped
        });
    };
    wait(gpu, start, submission, waiting).await
}

/// Waits until `submission` is done.
pub(super) async fn finished(gpu: &Gpu, submission: wgpu::SubmissionIndex, waiting: Waiting) -> Result<()> {
    #[cfg(not(target_family = "wasm"))]
    if waiting == Waiting::Blocking {
        let wait = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
        return super::loss::poll(gpu.device(), wait).map_err(|why| gpu.failure(why));
    }
    // wgpu signals once everything submitted so far is done: polling waits for that, not for `submission`.
    let _ = submission;
    let start = |signal: Arc<Signal>| {
        gpu.queue().on_submitted_work_done(move || {
            let _ = signal.send(Ok(())); // fails if the call was dropped
        });
    };
    wait(gpu, start, None, waiting).await
}

/// Waits for the signal that `start` requests from wgpu. Polls until `submission` is done, or all work without one.
async fn wait(gpu: &Gpu, start: impl FnOnce(Arc<Signal>), submission: Option<wgpu::SubmissionIndex>, waiting: Waiting) -> Result<()> {
    let (signal, receiver) = oneshot_channel();
    let signal = Arc::new(signal);
    gpu.guarded(|| start(Arc::clone(&signal)))?;
    poll(gpu, submission, waiting, signal);
    match receiver.receive().await {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => Err(gpu.failure(why)),
        None => Err(gpu.failure("the device never answered")),
    }
}

/// Way in which a call waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Polls on the calling thread.
    Blocking,
    /// Polls on a thread of its own while the future is pending; in a browser the event loop drives the device.
    Async,
}

/// Ensures that the device is polled until `submission` is done, and signals if that fails.
#[cfg(not(target_family = "wasm"))]
fn poll(gpu: &Gpu, submission: Option<wgpu::SubmissionIndex>, waiting: Waiting, signal: Arc<Signal>) {
    let device = gpu.device().clone();
    let poll = move || {
        if let Err(why) = super::loss::poll(&device, wgpu::PollType::Wait { submission_index: submission, timeout: None }) {
            let _ = signal.send(Err(why)); // already signalled, or the call was dropped
        }
    };
    match waiting {
        Waiting::Blocking => poll(),
        Waiting::Async => drop(std::thread::spawn(poll)),
    }
}

#[cfg(target_family = "wasm")]
fn poll(_: &Gpu, _: Option<wgpu::SubmissionIndex>, _: Waiting, _: Arc<Signal>) {}
