//! Dispatches of the kernels that maintain a cache.

use super::DeviceCaps;
use crate::error::{Error, Result};
use crate::wgsl::{CacheKey, CacheParams};

/// One dispatch of a kernel that maintains a cache.
#[derive(Clone, Debug)]
pub(crate) struct CacheStep {
    pub(crate) key: CacheKey,
    pub(crate) params: CacheParams,
    /// Workgroups along x and y.
    pub(crate) grid: [u32; 2],
}

impl CacheStep {
    /// Lays out `threads` threads on a grid, which it adds to the params.
    pub(crate) fn new(key: CacheKey, params: CacheParams, threads: usize, caps: &DeviceCaps) -> Result<Self> {
        let width = caps.workgroups_per_dimension as usize;
        let workgroups = threads.div_ceil(CacheKey::THREADS as usize);
        let lines = workgroups.div_ceil(width);
        if lines > width || u32::try_from(threads).is_err() {
            return Err(Error::limit("threads that a shader can count", threads, u32::MAX as usize, "append fewer tokens at a time"));
        }
        let grid = [workgroups.div_ceil(lines.max(1)) as u32, lines as u32];
        Ok(Self { key, params: CacheParams { grid_width: grid[0], workgroups: workgroups as u32, ..params }, grid })
    }
}
