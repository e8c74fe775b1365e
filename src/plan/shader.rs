//! Kernels as text, for those who want to read, check or compile them elsewhere.

use crate::shader::{LinearKey, Source, compose_cache, compose_linear, compose_transpose, every_cache_key, every_linear_key};

/// A kernel as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shader {
    /// Which kernel, and its shape.
    pub name: String,
    /// Bytes of workgroup memory.
    pub workgroup_bytes: u32,
    pub(super) source: Source,
}

impl Shader {
    pub(super) const fn new(name: String, source: Source, workgroup_bytes: u32) -> Self {
        Self { name, workgroup_bytes, source }
    }

    /// The kernel as it is given to naga: WGSL, complete.
    pub fn text(&self) -> &str {
        &self.source.text
    }

    /// The place in the project's own files of a line of [`Self::text`], counted from 1: `shaders/fused/tiles.wgsl:12`.
    pub fn locate(&self, line: usize) -> String {
        self.source.locate(line)
    }

    /// The kernel in standard WGSL, as browsers take it: [`Self::text`] behind the extensions that it uses. `None` for kernels of
    /// cooperative matrices, which the standard does not have.
    pub fn standard(&self) -> Option<Self> {
        Some(Self { source: self.source.standard()?, ..self.clone() })
    }
}

/// The kernels that keep a cache on a device, each variant once.
pub fn cache_shaders() -> Vec<Shader> {
    every_cache_key().into_iter().map(|key| Shader::new(key.to_string(), compose_cache(key), 0)).collect()
}

/// The kernels that a multi-head layer's projections take, each variant once.
pub fn linear_shaders() -> Vec<Shader> {
    let shader = |key: LinearKey| Shader::new(key.to_string(), compose_linear(key), key.tile.workgroup_bytes());
    let transpose = Shader::new("transpose".into(), compose_transpose(), 0);
    every_linear_key().map(shader).chain([transpose]).collect()
}
