//! Progress and cancellation of long work.

use std::ops::ControlFlow;

use crate::error::{Error, Result};

/// Reports the progress of a call, and can cancel it between two pieces of work.
///
/// ```
/// use std::ops::ControlFlow;
/// let mut seen = 0.0;
/// let mut progress = |done: f64| {
///     seen = done;
///     ControlFlow::Continue(())
/// };
/// let control = wgpu_attention::Progress::new(&mut progress);
/// # drop(control);
/// ```
#[derive(Default)]
pub struct Progress<'a> {
    progress: Option<&'a mut ProgressFn<'a>>,
}

/// Function that is called with the completed share, 0 to 1. `Send`, except in browsers, where JavaScript's are not.
#[cfg(not(target_family = "wasm"))]
pub type ProgressFn<'a> = dyn FnMut(f64) -> ControlFlow<()> + Send + 'a;
/// Function that is called with the completed share, 0 to 1. `Send`, except in browsers, where JavaScript's are not.
#[cfg(target_family = "wasm")]
pub type ProgressFn<'a> = dyn FnMut(f64) -> ControlFlow<()> + 'a;

impl std::fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("is_watched", &self.is_watched()).finish_non_exhaustive()
    }
}

impl<'a> Progress<'a> {
    /// Calls `progress` with the completed share, 0 to 1. `Break` makes the call return [`Error::Cancelled`].
    pub fn new(progress: &'a mut ProgressFn<'a>) -> Self {
        Self { progress: Some(progress) }
    }

    /// True if a progress function is set.
    pub(crate) fn is_watched(&self) -> bool {
        self.progress.is_some()
    }

    pub(crate) fn report(&mut self, done: f64) -> Result<()> {
        match self.progress.as_mut().map(|progress| progress(done)) {
            Some(ControlFlow::Break(())) => Err(Error::Cancelled),
            _ => Ok(()),
        }
    }
}
