//! The functions that a case file runs on.

use crate::engine::Engine;
use crate::problem::AttentionFn;
use crate::verify::expect_backward::AttendBackward;

/// Runner of a file.
pub(super) struct Runner<'a> {
    pub(super) attend: &'a AttentionFn<'a>,
    /// Engine of layers.
    pub(super) engine: Option<&'a Engine>,
    pub(super) backward: Option<&'a AttendBackward<'a>>,
}
