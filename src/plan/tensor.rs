//! A tensor that the caller of a plan binds, as plain data.

use crate::problem::TensorSpec;

/// Tensor that the caller binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorExport {
    /// `query`, `key`, `value`, `output`, `lse`, `stats`, `tables` ([`crate::gpu::Tables`]), `bias`, `mask`, `scores`,
    /// `weights`, `key_sums`, `d_output`, `d_lse`, `d_query`, `d_key`, `d_value`, `d_bias`, `d_relative_bias`, `d_sinks` or
    /// `d_term_tables`; of a cache's steps also `cache_state`, `cache_key`, `cache_value`, `page_copies` or `angles`.
    pub name: &'static str,
    /// True if the plan writes it, else it reads it. Those of a cache that are written keep their other elements.
    pub written: bool,
    /// `f32`, `f16`, `bf16`, `q8`, `q4`, `u32` or `u8` (the mask; 0 = masked).
    pub dtype: &'static str,
    /// Extents of the axes. Query, key, value and output: [batch, heads, sequence, width], whatever the layout.
    pub shape: Vec<usize>,
    /// Distances between elements along each axis, in elements.
    pub strides: Vec<usize>,
    /// First element.
    pub offset: usize,
    /// Size in bytes from the start of the binding on, without padding to whole words.
    pub bytes: u64,
    /// Vectors that the `tables` buffer is made up of, in order; empty for other tensors.
    pub vectors: Vec<VectorExport>,
}

impl TensorExport {
    /// Describes a tensor without gaps that is read, of elements of `dtype` with `element_bytes` bytes.
    pub(crate) fn contiguous(name: &'static str, dtype: &'static str, element_bytes: u64, shape: &[usize]) -> Self {
        Self {
            name,
            written: false,
            dtype,
            shape: shape.to_vec(),
            strides: (1..=shape.len()).map(|axis| shape[axis..].iter().product()).collect(),
            offset: 0,
            bytes: shape.iter().fold(element_bytes, |bytes, &extent| bytes * extent as u64),
            vectors: Vec::new(),
        }
    }

    /// Describes a tensor that is read, stored as `spec` says.
    pub(crate) fn stored(name: &'static str, spec: &TensorSpec, shape: [usize; 4]) -> Self {
        let strides = spec.strides(shape);
        Self {
            name,
            written: false,
            dtype: spec.dtype.name(),
            shape: shape.to_vec(),
            strides: vec![strides.batch, strides.head, strides.seq, strides.dim],
            offset: spec.offset,
            bytes: spec.dtype.bytes(spec.required_len(shape).unwrap_or(usize::MAX)) as u64,
            vectors: Vec::new(),
        }
    }
}

/// Vector in the `tables` buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorExport {
    /// Field of [`crate::Inputs`].
    pub name: &'static str,
    /// `f32`, `u32` or `i32`.
    pub dtype: &'static str,
    /// First byte in the buffer.
    pub offset: u64,
    /// Number of elements.
    pub len: u64,
}
