//! Kernels as text, to be read, checked or compiled elsewhere.

use crate::wgsl::{CacheKey, LinearKey, Source, compose_cache, compose_linear, compose_transpose, every_cache_key, every_linear_key};

/// A kernel as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shader {
    /// Name of the kernel and its shape.
    pub name: String,
    /// Threads of a workgroup, all along x.
    pub threads: u32,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    pub(super) source: Source,
}

impl Shader {
    pub(super) const fn new(name: String, source: Source, threads: u32, workgroup_bytes: u32) -> Self {
        Self { name, threads, workgroup_bytes, source }
    }

    pub(super) fn of_cache(key: CacheKey) -> Self {
        Self::new(key.to_string(), compose_cache(key), CacheKey::THREADS, 0)
    }

    /// Complete WGSL of the kernel, as naga takes it.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// Locates a line of [`Self::text`], counted from 1, in the project's files: `shaders/fused/tiles.wgsl:12`.
    pub fn locate(&self, line: usize) -> String {
        self.source.locate(line)
    }

    /// Returns the kernel in standard WGSL, as browsers take it: [`Self::text`] after the directives that it needs.
    /// `None` for kernels of cooperative matrices, which the standard does not have.
    pub fn standard(&self) -> Option<Self> {
        Some(Self { source: self.source.standard()?, ..self.clone() })
    }
}

/// Returns every variant of the kernels that maintain a cache on a device.
pub fn cache_shaders() -> Vec<Shader> {
    every_cache_key().into_iter().map(Shader::of_cache).collect()
}

/// Returns every variant of the kernels that the projections of a multi-head layer use.
pub fn linear_shaders() -> Vec<Shader> {
    let shader = |key: LinearKey| Shader::new(key.to_string(), compose_linear(key), key.tile.threads(), key.tile.workgroup_bytes());
    let transpose = Shader::new("transpose".into(), compose_transpose(), 64, 0);
    every_linear_key().map(shader).chain([transpose]).collect()
}
