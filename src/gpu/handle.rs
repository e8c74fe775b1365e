//! State of one handle of a device. Each call has a handle of its own, so that calls at the same time do not share errors.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::loss::Later;
use super::pipeline::{Pipeline, PipelineKey};
use crate::error::Result;

/// Errors and pipelines that wait for a browser's answer, and buffers that end with the handle.
#[derive(Default)]
pub(super) struct Handle {
    /// Verdicts that are not known yet, in the order of the calls of wgpu.
    late: Mutex<Vec<Later<Result<()>>>>,
    /// Pipelines whose verdicts are not known yet. Other handles do not get them.
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    /// Buffers to destroy, if the handle is that of a call: browsers free them no sooner than JavaScript's garbage.
    buffers: Option<Mutex<Vec<wgpu::Buffer>>>,
}

impl Handle {
    /// Handle of a call, which destroys the buffers that were created by it.
    pub(super) fn of_call() -> Self {
        Self { late: Mutex::default(), pipelines: Mutex::default(), buffers: Some(Mutex::default()) }
    }

    pub(super) fn pipelines(&self) -> MutexGuard<'_, HashMap<PipelineKey, Arc<Pipeline>>> {
        lock(&self.pipelines)
    }

    /// Remembers a buffer of a call.
    pub(super) fn owns(&self, buffer: &wgpu::Buffer) {
        if let Some(buffers) = &self.buffers {
            lock(buffers).push(buffer.clone());
        }
    }

    /// Returns the verdict if it is known, `None` after keeping it for [`Self::late`].
    pub(super) fn verdict(&self, mut verdict: Later<Result<()>>) -> Option<Result<()>> {
        if let Poll::Ready(verdict) = poll_once(verdict.as_mut()) {
            return Some(verdict);
        }
        let mut late = lock(&self.late);
        // Drop those that are known by now, so that a handle that nobody settles does not grow.
        late.retain_mut(|earlier| match poll_once(earlier.as_mut()) {
            Poll::Ready(Ok(())) => false,
            Poll::Ready(Err(error)) => {
                *earlier = Box::pin(std::future::ready(Err(error)));
                true
            }
            Poll::Pending => true,
        });
        late.push(verdict);
        None
    }

    /// Waits for every verdict. Returns the first error, as later ones often follow from it.
    pub(super) async fn late(&self) -> Result<()> {
        let late = std::mem::take(&mut *lock(&self.late));
        let mut first = Ok(());
        for verdict in late {
            first = first.and(verdict.await);
        }
        first
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        for buffer in self.buffers.iter().flat_map(|buffers| std::mem::take(&mut *lock(buffers))) {
            buffer.destroy();
        }
    }
}

/// Polls a future that nothing wakes.
pub(super) fn poll_once<T>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    /// Verdict that is unknown when it is first asked for, as in a browser.
    fn later(verdict: Result<()>) -> Later<Result<()>> {
        let mut asked = false;
        Box::pin(std::future::poll_fn(move |context| {
            if std::mem::replace(&mut asked, true) {
                return Poll::Ready(verdict.clone());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        }))
    }

    #[test]
    fn late_errors_belong_to_their_handle() {
        let failed = |why: &str| Err(Error::Device { why: why.into() });
        let (one, other) = (Handle::default(), Handle::of_call());
        assert_eq!(one.verdict(Box::pin(std::future::ready(failed("at once")))), Some(failed("at once")));
        for verdict in [Ok(()), failed("first"), Ok(()), failed("second")] {
            assert_eq!(one.verdict(later(verdict)), None);
            assert_eq!(other.verdict(later(Ok(()))), None);
        }
        assert_eq!(lock(&other.late).len(), 1, "those that are known by now are not kept");
        assert_eq!(pollster::block_on(other.late()), Ok(()));
        assert_eq!(pollster::block_on(one.late()), failed("first"));
        assert_eq!(pollster::block_on(one.late()), Ok(()), "errors are told once");
    }
}
